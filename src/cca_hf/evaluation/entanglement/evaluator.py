"""Measure entanglement on a split: one pass computes the embeddings and the backbone's features."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.logging import tqdm

from cca_hf.data.schema import AttributeDataset
from cca_hf.evaluation.retrieval.evaluator import check_attributes, query_and_gallery
from cca_hf.models.encoding import pixel_batches
from cca_hf.models.images import ImageInput
from cca_hf.models.modeling_conditional import ConditionalPreTrainedModel

from .measure import entanglement
from .result import EntanglementResult


class ConditionedImages(NamedTuple):
    """Embeddings (N, A, D), L2-normalised, and the unconditioned features (N, F) of the backbone."""

    embeddings: NDArray[np.float32]
    features: NDArray[np.float32]


def measure_entanglement(
    model: ConditionalPreTrainedModel,
    dataset: AttributeDataset,
    split: str = "test",
    *,
    batch_size: int = 64,
    num_workers: int | None = None,
    show_progress: bool | None = None,
    max_images: int = 3000,
    seed: int = 0,
) -> EntanglementResult:
    """[`entanglement`] of a split that the model was not trained on, or of `<split>_query` and `<split>_gallery`.

    Raises:
        KeyError: if the split does not exist; the message names the existing ones.
        ValueError: if the model does not know an attribute of the data set, or the data set has fewer than two.
        ImportError: if scikit-learn is missing.
        UnreadableImageError: if an image cannot be read; the message names it.
    """
    check_attributes(model, dataset.attributes)
    parts = [part for part in query_and_gallery(dataset, split) if part is not None]
    labels = np.concatenate([dataset.labels(part) for part in parts])
    groups = [group for part in parts if (group := dataset.groups(part)) is not None]
    embed = partial(embed_with_features, batch_size=batch_size, num_workers=num_workers, show_progress=show_progress)
    embedded = [embed(model, dataset[part]["image"], list(dataset.attributes)) for part in parts]
    embeddings, features = map(np.concatenate, zip(*embedded, strict=True))
    return entanglement(
        embeddings,
        labels,
        dataset.attributes,
        features,
        groups=np.concatenate(groups) if groups else None,
        max_images=max_images,
        seed=seed,
    )


@torch.inference_mode()
def embed_with_features(
    model: ConditionalPreTrainedModel,
    images: Sequence[ImageInput],
    attributes: Sequence[str],
    *,
    batch_size: int = 64,
    num_workers: int | None = None,
    show_progress: bool | None = None,
) -> ConditionedImages:
    """Embeddings under `attributes`, and the backbone's features that the conditional layer attends to.

    The features of a level are its prefix tokens (CLS) and the mean over its cells. Raises as `model.encode`.
    """
    model = model.in_eval_mode()
    ids = torch.tensor(model.config.attribute_ids(list(attributes)), device=model.device)
    prefix = model.config.num_prefix_tokens
    show = len(images) > batch_size if show_progress is None else show_progress
    embeddings, features = [], []
    with tqdm(total=len(images), desc="Encoding", unit="image", disable=not show) as progress:
        for batch in pixel_batches(model, images, batch_size=batch_size, num_workers=num_workers):
            count = len(batch.rows)
            levels = model.get_backbone_features(batch.values[:count])
            output = model(backbone_features=levels, attribute_ids=ids.expand(count, -1))
            embeddings.append(output.embeddings.float().cpu())
            # (B, cells, channels) -> (B, prefix * channels) and (B, channels), side by side for all levels
            parts = [(cells[:, :prefix].flatten(1), cells[:, prefix:].mean(dim=1)) for cells in levels]
            features.append(torch.cat([part for pair in parts for part in pair], dim=1).float().cpu())
            progress.update(count)
    return ConditionedImages(torch.cat(embeddings).numpy(), torch.cat(features).numpy())
