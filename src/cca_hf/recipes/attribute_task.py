"""The task of attribute retrieval, from the training arguments: its batches, its loss and its evaluator."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import torch
from torch import nn
from torch.utils.data import Dataset, default_collate
from transformers import BaseImageProcessor

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.sampler import AttributeBatchSampler
from cca_hf.data.schema import AttributeDataset
from cca_hf.data.torch_dataset import AttributeCollator, AttributeImages, QueriesAndGallery
from cca_hf.data.transforms import TrainingTransform
from cca_hf.evaluation.retrieval.embeddings import Gallery, evaluate_splits
from cca_hf.evaluation.retrieval.evaluator import query_and_gallery
from cca_hf.evaluation.retrieval.result import EvaluationResult
from cca_hf.training.arguments import CCATrainingArguments
from cca_hf.training.attribute_losses import LabelLoss, TripletLoss, embed_under_all
from cca_hf.training.losses import ConditionalSoftTripletLoss, ConditionalTripletLoss
from cca_hf.training.per_attribute_loss import PerAttributeLoss
from cca_hf.training.task import Batches, Task
from cca_hf.training.token_cache import TokenCache
from cca_hf.training.value_proxies import ValueProxies

Collator = Callable[[list[Any]], Any]


def make_label_task(
    args: CCATrainingArguments,
    data: AttributeDataset,
    image_processor: BaseImageProcessor,
    dim: int,
    *,
    loss: PerAttributeLoss | None = None,
    cache: TokenCache | None = None,
) -> Task:
    """Images with labels, from the files or from a token cache; `dim` is the width of the embeddings."""
    transform = TrainingTransform(
        horizontal_flip=args.horizontal_flip,
        crop_scale=(args.crop_scale, 1.0),
        crop_ratio=(1 / args.crop_ratio, args.crop_ratio),
        colour_jitter=args.colour_jitter,
    )
    collator: Collator
    if cache is None:
        images, collator = AttributeImages(data, "train", transform), AttributeCollator(image_processor)
    else:
        images, collator = cache.images_of("train", transform), cache.collator
    batch_sampler = AttributeBatchSampler(
        images.labels.numpy(),
        batch_size=args.train_batch_size,
        images_per_value=args.images_per_value,
        values_per_batch=args.values_per_batch,
        seed=args.seed if args.data_seed is None else args.data_seed,
    )
    return Task(
        Batches(images, collator, batch_sampler),
        make_loss(args, data.attributes, dim, loss),
        AttributeEvaluator(data, image_processor, args.device, cache),
    )


def make_triplet_task(
    args: CCATrainingArguments,
    data: AttributeDataset,
    image_processor: BaseImageProcessor,
    triplets: Dataset[Any],
    collator: Collator | None,
) -> Task:
    """Ready triplets, in random order; evaluated on the images with labels of `data`."""
    return Task(
        Batches(triplets, collator or default_collate),
        TripletLoss(args.margin, list(data.attributes), args.micro_batch_size),
        AttributeEvaluator(data, image_processor, args.device),
    )


def make_loss(
    args: CCATrainingArguments, attributes: Mapping[str, Sequence[str]], dim: int, loss: PerAttributeLoss | None = None
) -> LabelLoss:
    """`loss`, or the loss that `args` describe: between images, plus the loss of the value proxies."""
    names, micro_batch_size = list(attributes), args.micro_batch_size
    if loss is not None:
        return LabelLoss(loss.settle(attributes, dim), names, micro_batch_size=micro_batch_size)
    criterion = (
        ConditionalSoftTripletLoss(args.temperature, args.margin)
        if args.loss == "soft_triplet"
        else ConditionalTripletLoss(args.margin, args.mining)
    )
    proxies = None
    if args.proxy_weight > 0:
        proxies = ValueProxies(
            [len(values) for values in attributes.values()],
            dim,
            temperature=args.temperature,
            learning_rate=args.proxy_learning_rate,
            seed=args.seed,
        )
    return LabelLoss(
        criterion, names, proxies=proxies, proxy_weight=args.proxy_weight, micro_batch_size=micro_batch_size
    )


class AttributeEvaluator:
    """Retrieval under every attribute: leave-one-out, or queries against a gallery.

    Args:
        device: an accelerator ranks the embeddings as well.
        cache: the features of the images, instead of the images.
    """

    primary_metric = "map"
    shown_metrics = ("map", "map_weighted", "map_macro", "chance_map")

    def __init__(
        self,
        data: AttributeDataset,
        image_processor: BaseImageProcessor,
        device: torch.device,
        cache: TokenCache | None = None,
    ) -> None:
        self.data = data
        self.device = device
        self.cache = cache
        self.collator: Collator = AttributeCollator(image_processor) if cache is None else cache.collator

    def images(self, split: Any) -> Dataset[Any]:
        """A split by its name, or a `datasets.Dataset` with the columns of the training data.

        `"test"` means `test_query` and `test_gallery` if the data set has these two instead.
        """
        if isinstance(split, datasets.Dataset):
            given, split = split, next((name for name, known in self.data.splits.items() if known is split), None)
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
        gallery, splits = None, []
        if isinstance(images, QueriesAndGallery):
            start, answers = len(images.queries), images.gallery
            splits = [answers.split]
            gallery = Gallery.of_split(answers.data, answers.split, predictions[start:], labels[start:])
            images, predictions, labels = images.queries, predictions[:start], labels[:start]
        if not isinstance(images, AttributeImages):
            raise TypeError(
                "retrieval is evaluated on a split's name, a datasets.Dataset, AttributeImages or QueriesAndGallery; "
                f"got {type(images).__name__}"
            )
        queries = Gallery.of_split(images.data, images.split, predictions, labels)
        return evaluate_splits(images.data, queries, gallery, [images.split, *splits], self.device)


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
