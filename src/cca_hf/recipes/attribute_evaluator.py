"""Attribute retrieval as an evaluator of the Trainer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import Dataset
from transformers import BaseImageProcessor

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.schema import AttributeDataset
from cca_hf.data.torch_dataset import AttributeCollator, AttributeImages, QueriesAndGallery
from cca_hf.evaluation.retrieval.embeddings import Gallery, evaluate_splits, unknown_values
from cca_hf.evaluation.retrieval.evaluator import query_and_gallery
from cca_hf.evaluation.retrieval.result import EvaluationResult
from cca_hf.models.configuration_images import AttributeConfig
from cca_hf.training.attribute_losses import embed_under_all
from cca_hf.training.token_cache import TokenCache

Collator = Callable[[list[Any]], Any]


class AttributeEvaluator:
    """Retrieval under every attribute: leave-one-out, or queries against a gallery; with `cache`, from features.

    `config` is that of the model: its `known_values`, which the training sets, are those of the evaluations.
    """

    primary_metric = "map"
    shown_metrics = ("map", "map_weighted", "map_macro", "chance_map")

    def __init__(
        self,
        data: AttributeDataset,
        image_processor: BaseImageProcessor,
        config: AttributeConfig,
        cache: TokenCache | None = None,
    ) -> None:
        self.data = data
        self.config = config
        self.cache = cache
        self.collator: Collator = AttributeCollator(image_processor) if cache is None else cache.collator

    def images(self, split: Any) -> Dataset[Any]:
        """A split by its name, or a `datasets.Dataset` with the columns of the training data.

        `"test"` means `test_query` and `test_gallery` if the data set has these two instead.
        """
        if isinstance(split, datasets.Dataset):
            given, data = split, self.data
            split = next((name for name in data if given is data[name] or given is data.splits[name]), None)
            if split is None and self.cache is not None:
                raise ValueError(
                    "with cache_tokens only the splits of the data set can be evaluated: give a split's name"
                )
            if split is None:
                data = as_attribute_dataset(given, "test", self.data.attributes, self.data.group_column)
                return AttributeImages(data, "test")
        if not isinstance(split, str):
            return split
        queries, gallery = query_and_gallery(self.data, split)
        images, *others = (
            AttributeImages(self.data, part) if self.cache is None else self.cache.images_of(part)
            for part in (queries, gallery)
            if part is not None
        )
        return QueriesAndGallery(images, *others) if others else images

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (batch, attributes, dim) in float32, and labels (batch, attributes)."""
        embeddings, labels = embed_under_all(model, batch)
        return embeddings.float(), labels

    def score(self, images: Dataset[Any], predictions: Any, labels: Any) -> EvaluationResult:
        """The retrieval of what `images` returned, with embeddings as predictions."""
        return self._evaluate(images, *sides_of(images, predictions, labels), self.config.known_values)

    def metric_names(self, images: Dataset[Any], known_values: Mapping[str, Sequence[str]] | None = None) -> list[str]:
        """The names of the metrics that `score` computes for these images; no image is read.

        For each attribute, one image of a known and one of a new value are enough for the same metrics, whatever their
        embeddings are.

        Args:
            known_values: those that the model will have then. Default: those that it has.

        Raises:
            ValueError: if there is no image, or none with a label.
        """
        parts = parts_of(images)
        labels = np.concatenate([part.labels.numpy() for part in parts])
        if not len(parts[0]):
            raise ValueError(f"the split {parts[0].split!r} is empty: there is nothing to evaluate")
        queries, gallery = sides_of(images, np.ones((len(labels), 1), dtype=np.float32), labels)
        known = self.config.known_values if known_values is None else known_values
        rows = {0}
        for (name, values), column in zip(parts[0].data.attributes.items(), queries.labels.T, strict=True):
            new = [] if known is None else unknown_values(values, known.get(name, ()))
            is_new = np.isin(column, [values.index(value) for value in new])
            for kind in (is_new, (column >= 0) & ~is_new):
                rows.update(np.flatnonzero(kind)[:1].tolist())
        return list(self._evaluate(images, queries.rows(np.array(sorted(rows))), gallery, known).metrics())

    def _evaluate(
        self,
        images: Dataset[Any],
        queries: Gallery,
        gallery: Gallery | None,
        known_values: Mapping[str, Sequence[str]] | None,
    ) -> EvaluationResult:
        parts = parts_of(images)
        splits, device = [part.split for part in parts], PartialState().device
        return evaluate_splits(parts[0].data, queries, gallery, splits, device=device, known_values=known_values)


def parts_of(images: Dataset[Any]) -> list[AttributeImages]:
    """The queries, and the gallery if there is one."""
    parts: list[AttributeImages] = []
    for part in (images.queries, images.gallery) if isinstance(images, QueriesAndGallery) else (images,):
        if not isinstance(part, AttributeImages):
            raise TypeError(
                "retrieval is evaluated on a split's name, a datasets.Dataset, AttributeImages or QueriesAndGallery; "
                f"got {type(part).__name__}"
            )
        parts.append(part)
    return parts


def sides_of(images: Dataset[Any], embeddings: Any, labels: Any) -> tuple[Gallery, Gallery | None]:
    """Embeddings and labels of queries and gallery."""
    sides, start = [], 0
    for part in parts_of(images):
        rows = slice(start, start + len(part))
        sides.append(Gallery.of_split(part.data, part.split, embeddings[rows], labels[rows]))
        start = rows.stop
    return sides[0], sides[1] if sides[1:] else None


def as_attribute_dataset(
    dataset: datasets.Dataset, split: str, attributes: Mapping[str, Sequence[str]], group_column: str | None
) -> AttributeDataset:
    """A `datasets.Dataset` as the only split of a data set with these attributes; an empty list of values is read."""
    group_column = group_column if group_column in dataset.column_names else None
    splits = datasets.DatasetDict({split: dataset})
    labelled = {name: datasets.ClassLabel(names=list(values)) for name, values in attributes.items()}
    if all(dataset.features.get(name) == label for name, label in labelled.items()):
        return AttributeDataset(splits, {name: list(values) for name, values in attributes.items()}, group_column)
    known = {name: values for name, values in attributes.items() if values}
    given = attributes if len(known) == len(attributes) else list(attributes)
    return load_attribute_dataset(splits, given, group_column=group_column, make_splits=False)
