"""A generated data set for trying everything without data or network: one shape on a background, five attributes.

The attributes are balanced in every split and independent of each other: nothing about one can be told from another.
Every picture differs in place, rotation, shade, and noise, and is a function of (seed, split, row, size) alone.
"""

import math

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from datasets.utils import tqdm
from PIL import Image as PILImage
from PIL import ImageFilter

from .shape_drawing import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, SIZES, draw_shape, rim_width

SHAPE_ATTRIBUTES: dict[str, list[str]] = {
    "colour": list(COLOURS),
    "shape": list(SHAPES),
    "pattern": list(PATTERNS),
    "size": list(SIZES),
    "background": list(BACKGROUNDS),
}

_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
_LEAST_IMAGES = 100


def generate_shapes_dataset(num_images: int = 3000, image_size: int = 64, seed: int = 0) -> DatasetDict:
    """Draws the splits train (70 %), validation (10 %) and test (20 %).

    The columns are `image`, a `ClassLabel` for each of colour, shape, pattern, size and background, and where it
    is: `bbox` (left, top, right, bottom in pixels) and `mask` (255 on the shape).

    Args:
        num_images: of all splits together, at least 100.
        image_size: height and width in pixels, at least 32.
    """
    if num_images < _LEAST_IMAGES:
        raise ValueError(
            f"num_images must be at least {_LEAST_IMAGES}, for all values in all splits; got {num_images}"
        )
    if image_size < 32:
        raise ValueError(f"image_size must be at least 32, or the patterns cannot be seen; got {image_size}")
    sizes = {split: round(num_images * share) for split, share in _SHARES.items()}
    sizes["train"] = num_images - sizes["validation"] - sizes["test"]
    return DatasetDict(
        {
            split: _generate_split(split, number, image_size, [seed, index])
            for index, (split, number) in enumerate(sizes.items())
        }
    )


def _generate_split(split: str, num_images: int, image_size: int, seed: list[int]) -> Dataset:
    labels = np.random.default_rng(seed)
    columns: dict[str, list] = {
        attribute: labels.permutation(np.arange(num_images) % len(values)).tolist()
        for attribute, values in SHAPE_ATTRIBUTES.items()
    }
    drawn = [
        draw_shape(
            **{attribute: values[columns[attribute][row]] for attribute, values in SHAPE_ATTRIBUTES.items()},
            image_size=image_size,
            random=np.random.default_rng([*seed, row]),
        )
        for row in tqdm(range(num_images), desc=f"Drawing {split}", unit=" images")
    ]
    features = Features(
        image=Image(),
        **{attribute: ClassLabel(names=values) for attribute, values in SHAPE_ATTRIBUTES.items()},
        bbox=List(Value("float32"), length=4),
        mask=Image(),
    )
    columns["image"] = [{"bytes": picture.image, "path": None} for picture in drawn]
    columns["bbox"] = [list(picture.bbox) for picture in drawn]
    columns["mask"] = [{"bytes": picture.mask, "path": None} for picture in drawn]
    return Dataset.from_dict({column: columns[column] for column in features}, features=features)


def shape_regions(masks: np.ndarray) -> dict[str, np.ndarray]:
    """Where each attribute of a drawn picture is to be seen.

    Colour and pattern are inside the shape; shape and size are told by its outline, so that the light rim around it
    belongs to them; the background is all that lies outside the rim.

    Args:
        masks: (N, H, W), the column `mask`: not 0 on the shape.

    Returns:
        attribute -> (N, H, W) bool.
    """
    inside = np.asarray(masks) > 0
    rim = 2 * math.ceil(rim_width(inside.shape[-1])) + 1
    pictures = (PILImage.fromarray(255 * each.astype(np.uint8)) for each in inside)
    with_rim = np.stack([np.asarray(picture.filter(ImageFilter.MaxFilter(rim))) for picture in pictures]) > 0
    return {"colour": inside, "shape": with_rim, "pattern": inside, "size": with_rim, "background": ~with_rim}
