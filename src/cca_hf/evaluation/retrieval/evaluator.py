"""Evaluate the retrieval of a model on a data set, or of its backbone without a condition, the baseline."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.logging import tqdm

from cca_hf.data.schema import AttributeDataset
from cca_hf.data.split_names import same_split
from cca_hf.evaluation.arrays import to_numpy
from cca_hf.models.backbones import extract_features
from cca_hf.models.encoding import pixel_batches
from cca_hf.models.images import ImageInput
from cca_hf.models.modeling_cca import CCAModel

from .embeddings import Gallery, evaluate_splits
from .result import EvaluationResult

logger = logging.getLogger(__name__)


class RetrievalEvaluator:
    """Embeds a split with a model and measures retrieval under every attribute of the data set.

    A split is evaluated leave-one-out. If the data set has `<split>_query` and `<split>_gallery` instead, the
    gallery is ranked for the queries. Images of the query's group are near copies and no candidates.

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
            KeyError: if the split does not exist; the message names the existing ones.
            ValueError: if the split is empty.
        """
        self.dataset = dataset
        self.batch_size, self.show_progress, self.num_workers = batch_size, show_progress, num_workers
        self.query_split, self.gallery_split = query_and_gallery(dataset, split)
        self._splits = [split for split in (self.query_split, self.gallery_split) if split is not None]
        for name in self._splits:
            if not len(dataset[name]):
                raise ValueError(f"the split {name!r} is empty: there is nothing to evaluate")

    def __call__(self, model: CCAModel) -> EvaluationResult:
        """
        Raises:
            ValueError: if the model does not know an attribute of the data set, or none of its values.
            UnreadableImageError: if an image cannot be read; the message names it.
        """
        check_attributes(model, self.dataset.attributes)
        sides = []
        for split in reversed(self._splits):  # a gallery first
            embeddings = self.embed(model, self.dataset.splits[split]["image"])
            sides.append(Gallery.of_split(self.dataset, split, embeddings, self.dataset.labels(split)))
        *gallery, queries = sides
        return evaluate_splits(
            self.dataset,
            queries,
            gallery[0] if gallery else None,
            self._splits,
            device=model.device,
            known_values=model.config.known_values,
        )

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


class BackboneEvaluator(RetrievalEvaluator):
    """The baseline without a condition: one embedding for every attribute, the mean of the backbone's output.

    With a new `CCAModel.from_backbone(...)` it measures the backbone before any training. For a ViT the output is that
    of the last layer but one, to which the conditional layer attends.
    """

    @torch.inference_mode()
    def embed(self, model: CCAModel, images: Sequence[ImageInput]) -> NDArray[np.float32]:
        """(images, dim)"""
        model = model.in_eval_mode()
        show = len(images) > self.batch_size if self.show_progress is None else self.show_progress
        rows = []
        with tqdm(total=len(images), desc="Encoding (backbone)", unit="image", disable=not show) as progress:
            for batch in pixel_batches(model, images, batch_size=self.batch_size, num_workers=self.num_workers):
                # (B, N, C) of a transformer or (B, C, h, w) of a convolutional network
                features = extract_features(model.backbone, batch.values, (), model.interpolates_positions)[-1]
                means = features.float().mean(dim=1 if features.ndim == 3 else (2, 3))
                rows.append(means[: len(batch.rows)].cpu())
                progress.update(len(batch.rows))
        return torch.cat(rows).numpy()


def query_and_gallery(dataset: AttributeDataset, split: str) -> tuple[str, str | None]:
    """The parts of `split`: itself, or `<split>_query` and `<split>_gallery`; `valid` is `validation`."""
    split = same_split(split, dataset.splits)
    if split not in dataset.splits and f"{split}_query" in dataset.splits:
        return f"{split}_query", f"{split}_gallery"
    return split, None


def check_attributes(model: CCAModel, attributes: Mapping[str, Sequence[str]]) -> None:
    """Check that a model knows every attribute and at least one value of each; other values are only reported.

    Raises:
        ValueError: if an attribute is unknown (the message names the closest one) or no value is shared, because the
            column then belongs to another data set.
    """
    for name, values in attributes.items():
        model.config.attribute_id(name)
        known = (model.config.attribute_values or {}).get(name)
        if not known:
            continue
        unknown = [value for value in values if value not in known]
        if len(unknown) == len(values):
            raise ValueError(
                f"the model and the data set have no value of {name!r} in common: the model was trained on "
                f"{_shortened(known)}, the data set has {_shortened(values)}"
            )
        if unknown:
            logger.warning("%r has values that the model was not trained on: %s", name, _shortened(unknown))


def _shortened(values: Sequence[str], most: int = 8) -> str:
    rest = f", ... ({len(values)} in all)" if len(values) > most else ""
    return ", ".join(map(repr, values[:most])) + rest
