"""Images with one class each, for a `torch.utils.data.DataLoader`: the labelled images, shuffled batches, collators.

An epoch is a pure function of (seed, epoch), and the random changes of an image or a batch are a function of the seeds
in its `SampleKey`s. A batch is therefore the same for any number of workers, and after a resume in the middle of an
epoch.
"""

from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers import BaseImageProcessor

from cca_hf.models.images import ImageReader

from .augmentation import Augmentation
from .sampler import SampleKey
from .schema import AttributeDataset
from .torch_dataset import AttributeImages, TrainingTransform


class ClassExample(TypedDict):
    """One image."""

    image: np.ndarray  # (height, width, 3) uint8
    label: int
    seed: int  # of its augmentation; 0 for an image that was given by its place


class ClassImages(Dataset[ClassExample]):
    """The labelled images of one split, by their place among them, or by the `SampleKey` of [`ShuffledBatches`].

    Args:
        data: a data set with one attribute, whose values are the classes.
        transform: applied for a `SampleKey` only, because a place has no seed.

    Raises:
        ValueError: if no image of the split is labelled.
    """

    def __init__(self, data: AttributeDataset, split: str, transform: TrainingTransform | None = None) -> None:
        ((self.label_column, self.classes),) = data.attributes.items()
        self.split = split
        self._images = AttributeImages(data, split, transform)
        labels = self._images.labels[:, 0].numpy()
        self.rows = np.flatnonzero(labels >= 0)  # of the split
        if not len(self.rows):
            raise ValueError(f"no image of the split {split!r} is labelled: its column {self.label_column!r} is empty")
        self.labels = labels[self.rows]
        groups = data.groups(split)
        self.groups = None if groups is None else groups[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | SampleKey) -> ClassExample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | SampleKey]) -> list[ClassExample]:
        of_split: list[int | SampleKey] = []
        for key in keys:
            row = int(self.rows[key.index if isinstance(key, SampleKey) else key])
            of_split.append(SampleKey(row, key.seed) if isinstance(key, SampleKey) else row)
        return [
            {
                "image": example["image"],
                "label": int(example["labels"][0]),
                "seed": key.seed if isinstance(key, SampleKey) else 0,
            }
            for key, example in zip(keys, self._images.__getitems__(of_split), strict=True)
        ]


class ShuffledBatches(Sampler[list[SampleKey]]):
    """Yields batches of `SampleKey`s; an epoch contains each place once, in random order.

    The sampler yields the batches of all processes; accelerate's `BatchSamplerShard` distributes them over the ranks.

    Args:
        count: number of images.
        batch_size: images of a batch, on one process. The last batch of an epoch may be smaller.
        seed: seed of the order and of the augmentation.
        drop_last: leave out a last batch that is smaller.

    Raises:
        ValueError: if `drop_last` leaves no batch.
    """

    def __init__(self, count: int, *, batch_size: int, seed: int = 0, drop_last: bool = False) -> None:
        if drop_last and count < batch_size:
            raise ValueError(
                f"dataloader_drop_last leaves no batch: {count} images are fewer than a batch of {batch_size}"
            )
        self.count = count
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.seed = seed
        self.epoch = 0

    @property
    def sampler(self) -> "ShuffledBatches":
        """This object: accelerate looks here for `set_epoch` when it has wrapped a batch sampler for several ranks."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch whose batches are drawn next. The Trainer and accelerate call this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.batch_size if self.drop_last else -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = np.random.default_rng([self.seed, self.epoch, 0]).permutation(self.count).tolist()
        # a separate generator: the augmentation must not depend on how a batch was assembled
        seeds = np.random.default_rng([self.seed, self.epoch, 1]).integers(2**63, size=self.count).tolist()
        keys = [SampleKey(place, seed) for place, seed in zip(order, seeds, strict=True)]
        for batch in range(len(self)):
            yield keys[batch * self.batch_size : (batch + 1) * self.batch_size]


class ClassCollator:
    """Resizes and normalises images as the model's image processor does.

    A batch has `pixel_values` (batch, 3, height, width) float32 and `labels` (batch,) int64.
    """

    def __init__(self, image_processor: BaseImageProcessor) -> None:
        self.reader = ImageReader(image_processor)

    def __call__(self, examples: Sequence[ClassExample]) -> dict[str, torch.Tensor]:
        levels = torch.stack([self.reader.resize(example["image"]) for example in examples])
        pixel_values = self.reader.scale(levels, torch.device("cpu"), torch.float32)
        return {"pixel_values": pixel_values, "labels": torch.tensor([example["label"] for example in examples])}


class TrainingCollator:
    """As [`ClassCollator`], with smoothed labels and an augmentation.

    A batch has `labels` (batch, classes) float32, the probabilities of the classes: label smoothing and mixed images
    need them.

    Args:
        image_processor: one that only resizes, rescales and normalises, as `make_image_processor` returns it.
        label_smoothing: share of the probability that all classes divide equally.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.reader = ImageReader(image_processor)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.augmentation = augmentation

    def __call__(self, examples: Sequence[ClassExample]) -> dict[str, torch.Tensor]:
        levels = [self.reader.resize(example["image"]) for example in examples]
        if self.augmentation is not None:
            seeds = [example["seed"] for example in examples]
            levels = [self.augmentation.change_image(each, seed) for each, seed in zip(levels, seeds, strict=True)]
        pixel_values = self.reader.scale(torch.stack(levels), torch.device("cpu"), torch.float32)
        ids = torch.tensor([example["label"] for example in examples])
        labels = torch.nn.functional.one_hot(ids, self.num_classes)
        labels = (1 - self.label_smoothing) * labels.float() + self.label_smoothing / self.num_classes
        if self.augmentation is not None:
            pixel_values, labels = self.augmentation.change_batch(pixel_values, labels, seeds[0])
        return {"pixel_values": pixel_values, "labels": labels}
