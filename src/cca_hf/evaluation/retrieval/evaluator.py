"""From a model and a data set to an EvaluationResult.

`RetrievalEvaluator` embeds a split with a model; `BackboneEvaluator` is the baseline below every CCA: the same
backbone, never asked anything.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.logging import tqdm

from cca_hf.data.schema import AttributeDataset
from cca_hf.models.backbones import extract_features
from cca_hf.models.encoding import pixel_batches
from cca_hf.models.images import ImageInput
from cca_hf.models.modeling_cca import CCAModel

from .candidates import to_numpy
from .embeddings import Gallery, evaluate_splits
from .result import EvaluationResult

logger = logging.getLogger(__name__)


class RetrievalEvaluator:
    """Embeds a split with a model and measures retrieval under every attribute of the data set.

    A split is evaluated leave-one-out; where the data set has `<split>_query` and `<split>_gallery` in its place, the
    gallery answers the queries. The data set's groups are excluded as near copies.

    Example:

    ```python
    >>> result = RetrievalEvaluator(data, split="test")(model)
    >>> print(result.table())
    ```
    """

    primary_metric = "map"

    def __init__(
        self,
        dataset: AttributeDataset,
        split: str = "test",
        *,
        batch_size: int = 64,
        show_progress: bool | None = None,
        num_workers: int | None = None,
    ) -> None:
        """
        Raises:
            KeyError: if there is no such split; the message names those there are.
            ValueError: if a split to evaluate is empty.
        """
        self.dataset = dataset
        self.batch_size = batch_size
        self.show_progress = show_progress
        self.num_workers = num_workers
        self.query_split = split
        self.gallery_split: str | None = None
        if split not in dataset and f"{split}_query" in dataset:
            self.query_split, self.gallery_split = f"{split}_query", f"{split}_gallery"
        for name in (self.query_split, self.gallery_split):
            if name is not None and not len(dataset[name]):
                raise ValueError(f"the split {name!r} is empty: there is nothing to evaluate")

    def __call__(self, model: CCAModel) -> EvaluationResult:
        """
        Raises:
            ValueError: if the model does not know an attribute of the data set, or none of its values.
            UnreadableImageError: for a picture that cannot be read; names it.
        """
        check_attributes(model, self.dataset.attributes)
        gallery = None if self.gallery_split is None else self._embedded(model, self.gallery_split)
        queries = self._embedded(model, self.query_split)
        splits = [split for split in (self.query_split, self.gallery_split) if split is not None]
        return evaluate_splits(self.dataset, queries, gallery, splits, model.device)

    def embed(self, model: CCAModel, images: Sequence[ImageInput]) -> NDArray[np.float32]:
        """(images, attributes, dim), the attributes in the order of the data set."""
        embeddings = model.encode(
            images,
            list(self.dataset.attributes),
            batch_size=self.batch_size,
            show_progress=self.show_progress,
            num_workers=self.num_workers,
        )
        return to_numpy(embeddings)

    def _embedded(self, model: CCAModel, split: str) -> Gallery:
        embeddings = self.embed(model, self.dataset[split]["image"])
        return Gallery.of_split(self.dataset, split, embeddings, self.dataset.labels(split))


class BackboneEvaluator(RetrievalEvaluator):
    """The baseline without a condition: one embedding for every attribute, the mean of the backbone's own output.

    Give it a fresh `CCAModel.from_backbone(...)`: it measures what the backbone knew before any training. The
    untrained projections between backbone and conditional layer take no part. Of a ViT the output is that of the last
    layer but one, the same tokens that the conditional layer asks.
    """

    @torch.inference_mode()
    def embed(self, model: CCAModel, images: Sequence[ImageInput]) -> NDArray[np.float32]:
        """(images, dim)"""
        batches = pixel_batches(model, images, batch_size=self.batch_size, num_workers=self.num_workers)
        show = len(images) > self.batch_size if self.show_progress is None else self.show_progress
        was_training = model.training
        model.eval()
        try:
            rows = []
            with tqdm(total=len(images), desc="Encoding (backbone)", unit="picture", disable=not show) as progress:
                for batch in batches:
                    # (B, N, C) of a transformer or (B, C, h, w) of a convolutional network
                    features = extract_features(model.backbone, batch.values, (), model.interpolates_positions)[-1]
                    means = features.float().mean(dim=1 if features.ndim == 3 else (2, 3))
                    rows.append(means[: len(batch.rows)].cpu())
                    progress.update(len(batch.rows))
        finally:
            model.train(was_training)
        return torch.cat(rows).numpy()


def check_attributes(model: CCAModel, attributes: Mapping[str, Sequence[str]]) -> None:
    """Whether a model can be asked for these attributes: it must know each, and at least one value of each.

    Values the model was not trained on are fair questions (retrieval asks for likeness, not for names) and are only
    reported; values without a single one in common mean another data set under the same column name.

    Raises:
        ValueError: naming the attribute, and the closest one the model has or both lists of values.
    """
    for name, values in attributes.items():
        model.config.attribute_id(name)
        known = (model.config.attribute_values or {}).get(name)
        if not known:
            continue
        strange = [value for value in values if value not in known]
        if len(strange) == len(values):
            raise ValueError(
                f"the model and the data set have no value of {name!r} in common: the model was trained on "
                f"{_shortened(known)}, the data set has {_shortened(values)}"
            )
        if strange:
            logger.warning("%r has values that the model was not trained on: %s", name, _shortened(strange))


def _shortened(values: Sequence[str], most: int = 8) -> str:
    rest = f", ... ({len(values)} in all)" if len(values) > most else ""
    return ", ".join(map(repr, values[:most])) + rest
