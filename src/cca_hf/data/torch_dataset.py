"""One split for a `torch.utils.data.DataLoader`: decoded, upright RGB images with the labels of all attributes."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset

from cca_hf.models.images import UnreadableImageError, decode_image

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
        # a dataset of one column reads nothing of the others
        self._images = data[split].select_columns([IMAGE_COLUMN])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | SampleKey) -> AttributeExample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | SampleKey]) -> list[AttributeExample]:
        rows = [key.index if isinstance(key, SampleKey) else int(key) for key in keys]
        encoded = self._images[rows][IMAGE_COLUMN]
        return [
            {"image": self._decode(key, row, image), "labels": self.labels[row]}
            for key, row, image in zip(keys, rows, encoded, strict=True)
        ]

    def _decode(self, key: int | SampleKey, row: int, encoded: dict[str, object]) -> np.ndarray:
        try:
            levels = decode_image(encoded)
        except UnreadableImageError as error:
            raise UnreadableImageError(
                f"{self.split}[{row}]: {error}; AttributeDataset.check_images finds all such images beforehand"
            ) from error
        if self.transform is None or not isinstance(key, SampleKey):
            return levels
        return self.transform(levels, np.random.default_rng(key.seed))


class QueriesAndGallery(ConcatDataset[AttributeExample]):
    """The queries of a benchmark, then its gallery: one pass of an evaluation embeds both."""

    def __init__(self, queries: AttributeImages, gallery: AttributeImages) -> None:
        super().__init__([queries, gallery])
        self.queries = queries
        self.gallery = gallery
