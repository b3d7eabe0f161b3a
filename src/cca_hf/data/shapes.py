"""A generated data set to try the package without data or network: one shape on a background, five attributes.

The attributes are balanced in every split and independent of each other: one reveals nothing about another. Images
differ in position, rotation, shade and noise, and depend only on (seed, split, row, size).
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

    The columns are `image`, a `ClassLabel` for each of colour, shape, pattern, size and background, and the position
    of the shape: `bbox` (left, top, right, bottom in pixels) and `mask` (255 on the shape).

    Args:
        num_images: number of images in all splits together, at least 100.
        image_size: height and width in pixels, at least 32.
    """
    if num_images < _LEAST_IMAGES:
        raise ValueError(
            f"num_images must be at least {_LEAST_IMAGES}, so that all splits have all values; got {num_images}"
        )
    if image_size < 32:
        raise ValueError(f"image_size must be at least 32, so that patterns are visible; got {image_size}")
    sizes = {split: round(num_images * share) for split, share in _SHARES.items()}
    sizes["train"] = num_images - sizes["validation"] - sizes["test"]
    splits = DatasetDict()
    for index, (split, number) in enumerate(sizes.items()):
        splits[split] = _generate_split(split, number, image_size, [seed, index])
    return splits


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
    columns["image"] = [{"bytes": drawing.image, "path": None} for drawing in drawn]
    columns["bbox"] = [list(drawing.bbox) for drawing in drawn]
    columns["mask"] = [{"bytes": drawing.mask, "path": None} for drawing in drawn]
    return Dataset.from_dict({column: columns[column] for column in features}, features=features)


def shape_regions(masks: np.ndarray) -> dict[str, np.ndarray]:
    """The regions of an image that show each attribute.

    Colour and pattern are visible inside the shape; shape and size also on the light rim around it; the background is
    everything outside the rim.

    Args:
        masks: (N, H, W), the column `mask`: not 0 on the shape.

    Returns:
        attribute -> (N, H, W) bool.
    """
    inside = np.asarray(masks) > 0
    rim = 2 * math.ceil(rim_width(inside.shape[-1])) + 1
    filled = (PILImage.fromarray(255 * mask.astype(np.uint8)) for mask in inside)
    with_rim = np.stack([np.asarray(mask.filter(ImageFilter.MaxFilter(rim))) for mask in filled]) > 0
    return {"colour": inside, "shape": with_rim, "pattern": inside, "size": with_rim, "background": ~with_rim}
