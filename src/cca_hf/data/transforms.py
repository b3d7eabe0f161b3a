"""Augmentation of one picture, on PIL, as a function of the picture and a seeded generator.

Colour is an attribute, so nothing changes it unless asked. Flip and crop keep most attributes; set `horizontal_flip=0`
where left and right matter.
"""

import math

import numpy as np
from PIL import Image, ImageEnhance


class TrainingTransform:
    """Random resized crop, horizontal flip and, if asked for, colour jitter.

    Args:
        size: (height, width) of the result.
        horizontal_flip: probability.
        crop_scale: range of the crop's area as a share of the picture's.
        crop_ratio: range of the crop's shape relative to the picture's own: at 1 a tall picture is cropped tall, and
            then squashed to `size` just as the whole picture is at evaluation.
        colour_jitter: brightness, contrast and saturation each change by a factor in [1 - x, 1 + x].
        resample: take the image processor's, so that training and evaluation see pictures of the same sharpness.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        horizontal_flip: float = 0.5,
        crop_scale: tuple[float, float] = (0.6, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        colour_jitter: float = 0.0,
        resample: Image.Resampling = Image.Resampling.BILINEAR,
    ) -> None:
        if not 0 <= horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip must be a probability; got {horizontal_flip}")
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be a range within (0, 1]; got {crop_scale}")
        if not 0 < crop_ratio[0] <= 1 <= crop_ratio[1]:
            raise ValueError(f"crop_ratio must be a range around 1; got {crop_ratio}")
        if not 0 <= colour_jitter < 1:
            raise ValueError(f"colour_jitter must lie in [0, 1); got {colour_jitter}")
        if min(size) < 1:
            raise ValueError(f"size must be (height, width) in pixels; got {size}")
        self.size = size
        self.horizontal_flip = horizontal_flip
        self.crop_scale = crop_scale
        self.crop_ratio = crop_ratio
        self.colour_jitter = colour_jitter
        self.resample = resample

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        box, flipped = self.draw(image.size, generator)
        height, width = self.size
        # one resampling for both: the crop may start between two pixels
        image = image.resize((width, height), resample=self.resample, box=box)
        if flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.colour_jitter:
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = enhance(image).enhance(1 + generator.uniform(-self.colour_jitter, self.colour_jitter))
        return image

    def draw(
        self, size: tuple[int, int], generator: np.random.Generator
    ) -> tuple[tuple[float, float, float, float], bool]:
        """The crop (left, top, right, bottom) of a picture of `size` (width, height), and whether it is flipped."""
        box = self._crop_box(size, generator)
        return box, bool(generator.random() < self.horizontal_flip)

    def _crop_box(self, size: tuple[int, int], generator: np.random.Generator) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels."""
        scale = generator.uniform(*self.crop_scale)
        # the ratios with which a crop of this area fits into the picture
        low, high = max(self.crop_ratio[0], scale), min(self.crop_ratio[1], 1 / scale)
        ratio = math.exp(generator.uniform(math.log(low), math.log(high)))
        # rounding may put a side a hair above 1
        width = min(math.sqrt(scale * ratio), 1.0) * size[0]
        height = min(math.sqrt(scale / ratio), 1.0) * size[1]
        left = generator.uniform(0, size[0] - width)
        top = generator.uniform(0, size[1] - height)
        return left, top, min(left + width, size[0]), min(top + height, size[1])
