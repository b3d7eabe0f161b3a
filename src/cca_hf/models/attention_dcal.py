"""What DCAL changes in the self-attention of a backbone of transformers, whose layers stay as they are.

The layers take their attention function from transformers' attention interface, under the name `DCAL_ATTENTION`. This
function computes the attention of an [`AttentionPass`], which is a keyword of the backbone's call. The model keeps
nothing of a call: several threads can use it at a time, and gradient checkpointing computes the same again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit.modeling_vit import eager_attention_forward

DCAL_ATTENTION = "dcal"

# Attention weights that are computed at a time: as many as fit into a CPU's cache, and more on an accelerator.
_WEIGHTS_ON_CPU, _WEIGHTS_ON_DEVICE = 2**20, 2**26

Attended = tuple[torch.Tensor, torch.Tensor | None]  # (batch, tokens, heads, head_dim), and the weights if eager


@dataclass(eq=False)
class AttentionPass:
    """The self-attention of one forward pass, with what GLCA and PWCA need.

    Args:
        implementation: `"sdpa"`, `"eager"`, `"flash_attention_2"`, ...
        rollout_layers: number of layers of the backbone if the roll-out is needed, otherwise 0.
        partners: (images,), the row of each image's partner, for PWCA. The batch then has two rows for each image: one
            of self-attention, and `images` rows later one of pair-wise attention.
        num_calls: layers that were computed.
        mean_weights: (images, tokens, tokens), the weights of the layers so far, averaged over the heads; of the last
            layer, the row of the class token alone.
    """

    implementation: str = "sdpa"
    rollout_layers: int = 0
    partners: torch.Tensor | None = None
    num_calls: int = 0
    mean_weights: list[torch.Tensor] = field(default_factory=list)

    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: dict[str, Any]
    ) -> Attended:
        """(batch, heads, tokens, head_dim) -> the attended values, and the weights of self-attention if eager."""
        self.num_calls += 1
        if self.partners is None:
            return self._attend_to_itself(module, query, key, value, settings)
        images = self.partners.shape[0]
        output, weights = self._attend_to_itself(module, query[:images], key[:images], value[:images], settings)
        # one softmax over the tokens of both images; those of the partner come from its row of self-attention
        keys = torch.cat([key[images:], key[self.partners]], dim=2)
        values = torch.cat([value[images:], value[self.partners]], dim=2)
        pairs, _ = self._function(module, query[images:], keys, values, None, **settings)
        return torch.cat([output, pairs]), weights

    def roll_out(self) -> torch.Tensor:
        """The row of the class token in S'_L ... S'_1, where S' = (S + I) / 2: a vector times L matrices.

        It frees the weights, and none are kept when gradient checkpointing computes the layers again.

        Returns:
            (images, tokens); a row sums to 1.
        """
        last, earlier = self.mean_weights[-1], self.mean_weights[:-1]
        row = last[:, 0] / 2
        row[:, 0] += 0.5
        with torch.autocast(row.device.type, enabled=False):  # which would round the products to 16 bits
            for weights in reversed(earlier):
                row = (row + torch.bmm(row[:, None], weights)[:, 0]) / 2
        self.mean_weights, self.rollout_layers = [], 0
        return row

    @property
    def _function(self) -> Callable[..., Attended]:
        return ALL_ATTENTION_FUNCTIONS.get_interface(self.implementation, eager_attention_forward)

    def _attend_to_itself(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: dict[str, Any]
    ) -> Attended:
        """Self-attention; keeps the weights for the roll-out."""
        if len(self.mean_weights) == self.rollout_layers:
            return self._function(module, query, key, value, None, **settings)
        is_last = len(self.mean_weights) + 1 == self.rollout_layers
        learns = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
        if self.implementation == "sdpa" and not learns and not is_last:
            output, mean = attend_in_blocks(query, key, value, settings["scaling"])
            self.mean_weights.append(mean)
            return output, None
        output, weights = self._function(module, query, key, value, None, **settings)
        with torch.no_grad():
            queries = query[:, :, :1] if is_last else query
            self.mean_weights.append(mean_weights(queries, key, settings["scaling"]))
        return output, weights


def attend_in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in one go with the mean of its weights, which SDPA does not return.

    To compute the weights after SDPA takes 13 % more multiplications for a ViT-S at 448 pixels.

    Returns:
        The attended values (batch, tokens, heads, head_dim), and weights (batch, tokens, tokens).
    """
    output = torch.empty_like(value.transpose(1, 2), memory_format=torch.contiguous_format)
    mean = _empty_mean(query, key)
    for images, head, weights in _blocks_of_weights(query, key, scaling):
        output[images, :, head] = weights.to(value.dtype) @ value[images, head]
        _add_head(mean[images], weights, head, query.shape[1])
    return output, mean


def mean_weights(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """The attention weights, averaged over the heads: (batch, queries, tokens) in at least float32."""
    mean = _empty_mean(query, key)
    for images, head, weights in _blocks_of_weights(query, key, scaling):
        _add_head(mean[images], weights, head, query.shape[1])
    return mean


def _blocks_of_weights(
    query: torch.Tensor, key: torch.Tensor, scaling: float
) -> Iterator[tuple[slice, int, torch.Tensor]]:
    """Some images, a head, and its weights (images, queries, tokens)."""
    at_a_time = _WEIGHTS_ON_CPU if query.device.type == "cpu" else _WEIGHTS_ON_DEVICE
    step = max(1, at_a_time // (query.shape[2] * key.shape[2]))
    for start in range(0, query.shape[0], step):
        images = slice(start, start + step)
        for head in range(query.shape[1]):
            scores = (query[images, head] * scaling) @ key[images, head].transpose(1, 2)
            yield images, head, scores.softmax(dim=-1, dtype=_precise(query.dtype))


def _empty_mean(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return query.new_empty(query.shape[0], query.shape[2], key.shape[2], dtype=_precise(query.dtype))


def _add_head(mean: torch.Tensor, weights: torch.Tensor, head: int, num_heads: int) -> None:
    if head == 0:
        torch.mul(weights, 1 / num_heads, out=mean)
    else:
        mean.add_(weights, alpha=1 / num_heads)


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    attention_pass: AttentionPass | None = None,
    **settings: Any,
) -> Attended:
    """The attention function that the layers of the backbone call; without an `AttentionPass`, it is SDPA.

    Raises:
        ValueError: for a mask or a bias, which plain vision transformers do not have.
    """
    if attention_mask is not None or settings.get("position_bias") is not None:
        raise ValueError("the attention of this backbone has a mask or a bias: it is no plain vision transformer")
    return (attention_pass or AttentionPass()).attend(module, query, key, value, settings)


ALL_ATTENTION_FUNCTIONS.register(DCAL_ATTENTION, attend)
