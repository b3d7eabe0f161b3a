"""One split for a `torch.utils.data.DataLoader`, and its collator.

The images are decoded, upright and RGB; the labels are those of all attributes.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset
from transformers import BaseImageProcessor

from cca_hf.models.images import ImageReader, UnreadableImageError, decode_image

from .sampler import SampleKey
from .schema import IMAGE_COLUMN, AttributeDataset
from .transforms import TrainingTransform


class AttributeExample(TypedDict):
    """One image."""

    image: np.ndarray  # (height, width, 3) uint8
    labels: torch.Tensor  # (attributes,) int64, -1 where not labelled


class AttributeImages(Dataset[AttributeExample]):
    """The images and labels of one split, by row, or by the `SampleKey` of a batch sampler.

    The transform is applied for a `SampleKey` only, because a row has no seed.

    Raises:
        UnreadableImageError: if an image cannot be decoded; names the split and the row.
    """

    def __init__(self, data: AttributeDataset, split: str, transform: TrainingTransform | None = None) -> None:
        self.data = data
        self.split = split
        self.labels = torch.from_numpy(data.labels(split))
        self.transform = transform
        # reads no other column
        self._images = data[split].select_columns([IMAGE_COLUMN])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | SampleKey) -> AttributeExample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | SampleKey]) -> list[AttributeExample]:
        rows = [key.index if isinstance(key, SampleKey) else int(key) for key in keys]
        examples: list[AttributeExample] = []
        for key, row, encoded in zip(keys, rows, self._images[rows][IMAGE_COLUMN], strict=True):
            try:
                levels = decode_image(encoded)
            except UnreadableImageError as error:
                raise UnreadableImageError(
                    f"{self.split}[{row}]: {error}; AttributeDataset.check_images finds all such images beforehand"
                ) from error
            if self.transform is not None and isinstance(key, SampleKey):
                levels = self.transform(levels, np.random.default_rng(key.seed))
            examples.append({"image": levels, "labels": self.labels[row]})
        return examples


class QueriesAndGallery(ConcatDataset[AttributeExample]):
    """The queries of a benchmark, then its gallery: one pass of an evaluation embeds both."""

    def __init__(self, queries: AttributeImages, gallery: AttributeImages) -> None:
        super().__init__([queries, gallery])
        self.queries = queries
        self.gallery = gallery


class AttributeCollator:
    """Resizes and normalises images by the reader that `encode` uses, to the same pixel values.

    A batch has `pixel_values` (batch, 3, height, width) float32 and `labels` (batch, attributes) int64.
    """

    def __init__(self, image_processor: BaseImageProcessor) -> None:
        self.reader = ImageReader(image_processor)

    def __call__(self, examples: Sequence[AttributeExample]) -> dict[str, torch.Tensor]:
        resized = torch.stack([self.reader.resize(example["image"]) for example in examples])
        pixel_values = self.reader.scale(resized, torch.device("cpu"), torch.float32)
        return {"pixel_values": pixel_values, "labels": torch.stack([example["labels"] for example in examples])}
