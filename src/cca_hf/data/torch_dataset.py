"""One split for a `torch.utils.data.DataLoader`, and its collator.

The images are decoded, upright and RGB; the labels are those of all attributes. The augmentation is a function of the
image and a seed. Colour is an attribute, so it does not change by default. Flip and crop preserve most attributes; set
`horizontal_flip=0` where left and right matter.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypedDict

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.utils.data import ConcatDataset, Dataset
from transformers import BaseImageProcessor

from cca_hf.models.images import ImageReader, UnreadableImageError, decode_image

from .sampler import SampleKey
from .schema import IMAGE_COLUMN, AttributeDataset
from .split_names import same_split

Transform: TypeAlias = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # of levels (height, width, 3)


class TrainingTransform:
    """Random crop, horizontal flip and optional colour jitter.

    The result has the size of the crop. The image processor resizes it afterwards, as it does at evaluation.

    Args:
        horizontal_flip: probability.
        crop_scale: range of the crop's area as a share of the image's.
        crop_ratio: range of the crop's shape relative to the image's. At 1 a tall image is cropped tall.
        colour_jitter: brightness, contrast and saturation each change by a factor in [1 - x, 1 + x].
    """

    def __init__(
        self,
        *,
        horizontal_flip: float = 0.5,
        crop_scale: tuple[float, float] = (0.6, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        colour_jitter: float = 0.0,
    ) -> None:
        if not 0 <= horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip must be a probability; got {horizontal_flip}")
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be a range within (0, 1]; got {crop_scale}")
        if not 0 < crop_ratio[0] <= 1 <= crop_ratio[1]:
            raise ValueError(f"crop_ratio must be a range around 1; got {crop_ratio}")
        if not 0 <= colour_jitter < 1:
            raise ValueError(f"colour_jitter must be in [0, 1); got {colour_jitter}")
        self.horizontal_flip = horizontal_flip
        self.crop_scale = crop_scale
        self.crop_ratio = crop_ratio
        self.colour_jitter = colour_jitter

    def __call__(self, levels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Levels (height, width, 3) uint8 -> levels of the crop; the given ones are not changed."""
        (left, top, right, bottom), flipped = self.draw(levels.shape[:2], generator)
        levels = levels[top:bottom, left:right]
        if flipped:
            levels = torch.from_numpy(levels).flip(1).numpy()  # 20 times as fast as numpy's copy
        if self.colour_jitter:
            image = Image.fromarray(levels)
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = enhance(image).enhance(1 + generator.uniform(-self.colour_jitter, self.colour_jitter))
            levels = np.array(image)
        return levels

    def draw(self, size: tuple[int, ...], generator: np.random.Generator) -> tuple[tuple[int, int, int, int], bool]:
        """(left, top, right, bottom) of the crop of an image of `size` (height, width), and whether it is flipped."""
        height, width = size
        scale = generator.uniform(*self.crop_scale)
        # the ratios at which a crop of this area fits into the image
        low, high = max(self.crop_ratio[0], scale), min(self.crop_ratio[1], 1 / scale)
        ratio = math.exp(generator.uniform(math.log(low), math.log(high)))
        # rounding errors may make a side longer than the image's
        crop_width = min(max(1, round(math.sqrt(scale * ratio) * width)), width)
        crop_height = min(max(1, round(math.sqrt(scale / ratio) * height)), height)
        left = round(generator.uniform(0, width - crop_width))
        top = round(generator.uniform(0, height - crop_height))
        return (left, top, left + crop_width, top + crop_height), bool(generator.random() < self.horizontal_flip)


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

    def __init__(self, data: AttributeDataset, split: str, transform: Transform | None = None) -> None:
        self.data = data
        self.split = split
        self.labels = torch.from_numpy(data.labels(split))
        self.transform = transform
        # reads no other column
        self._images = data.splits[same_split(split, data.splits)].select_columns([IMAGE_COLUMN])

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
