"""Batches of identities: an image is resized, flipped, padded and cropped, and a rectangle of it is erased.

This is the augmentation of TransReID (He et al., ICCV 2021, https://arxiv.org/abs/2102.04378). It is a function of the
seeds in the `SampleKey`s of a batch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import BaseImageProcessor

from cca_hf.models.images import ImageReader

from .augmentation import Augmentation
from .class_images import ClassExample


class IdentityCollator:
    """Images with an identity -> a batch of `pixel_values` (batch, 3, height, width) and `labels` (batch,) int64.

    Args:
        image_processor: one that only resizes, rescales and normalises, as `make_image_processor` returns it.
        horizontal_flip: probability.
        padding: black pixels on each side before the image is cropped to its size at a random place; 0 for none.
        random_erasing: probability with which a rectangle is replaced by the mean colour; above 0 it needs kornia.

    Raises:
        ImportError: for random erasing without kornia.
        ValueError: for a setting outside its range.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        *,
        horizontal_flip: float = 0.5,
        padding: int = 10,
        random_erasing: float = 0.5,
    ) -> None:
        if not 0 <= horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip must be a probability; got {horizontal_flip}")
        if padding < 0:
            raise ValueError(f"padding must be at least 0, got {padding}")
        self.reader = ImageReader(image_processor)
        self.horizontal_flip = horizontal_flip
        self.padding = padding
        self.augmentation = Augmentation(random_erasing=random_erasing) if random_erasing else None

    def __call__(self, examples: Sequence[ClassExample]) -> dict[str, torch.Tensor]:
        levels = [
            self._change(self.reader.resize(example["image"]), np.random.default_rng(example["seed"]))
            for example in examples
        ]
        pixel_values = self.reader.scale(torch.stack(levels), torch.device("cpu"), torch.float32)
        labels = torch.tensor([example["label"] for example in examples])
        if self.augmentation is not None:
            pixel_values, labels = self.augmentation.change_batch(pixel_values, labels, examples[0]["seed"])
        return {"pixel_values": pixel_values, "labels": labels}

    def _change(self, levels: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        """(3, height, width), flipped and shifted."""
        if random.random() < self.horizontal_flip:
            levels = levels.flip(2)
        height, width = levels.shape[1:]
        top, left = random.integers(2 * self.padding + 1, size=2).tolist()
        padded = torch.nn.functional.pad(levels, [self.padding] * 4)
        return padded[:, top : top + height, left : left + width]
