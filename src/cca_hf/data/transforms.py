"""Augmentation of one image as a function of the image and a seeded generator.

Colour is an attribute, so it does not change by default. Flip and crop preserve most attributes; set
`horizontal_flip=0` where left and right matter.
"""

import math

import numpy as np
import torch
from PIL import Image, ImageEnhance

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


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

    def draw(self, size: tuple[int, ...], generator: np.random.Generator) -> tuple[Box, bool]:
        """The crop of an image of `size` (height, width), and whether it is flipped."""
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
