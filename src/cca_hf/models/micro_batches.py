"""Large batches on small memory, with the gradient of the large batch: a few pictures are embedded at a time, twice.

A loss over pairs needs the embeddings of the whole batch, and no activation of the network before the gradient of
those embeddings is known. So each micro-batch is first embedded keeping nothing else, and embedded again when the
backward pass comes to it: the gradient cache of Gao et al. (2021, https://arxiv.org/abs/2101.06983), by PyTorch's
activation checkpoints, which bring back the random state and the autocast of the first time. It costs a forward pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def embed_in_micro_batches(
    embed: Callable[..., torch.Tensor],
    size: int,
    pixel_values: torch.Tensor | None,
    attribute_ids: torch.Tensor,
    backbone_features: Sequence[torch.Tensor] | None,
) -> torch.Tensor:
    """`embed(pixel_values, attribute_ids, backbone_features)` of all rows, `size` of them at once.

    `embed` must treat each row by itself.

    Raises:
        ValueError: for a size below 1.
    """
    if size < 1:
        raise ValueError(f"micro_batch_size must be at least 1, got {size}")
    ids = attribute_ids.split(size)
    pictures: Sequence[Any] = [None] * len(ids) if pixel_values is None else pixel_values.split(size)
    features: Sequence[Any] = [None] * len(ids)
    if backbone_features is not None:
        features = list(zip(*(feature.split(size) for feature in backbone_features), strict=True))
    parts = zip(pictures, ids, features, strict=True)
    return torch.cat([checkpoint(embed, *part, use_reentrant=False) for part in parts])


__all__ = ["embed_in_micro_batches"]
