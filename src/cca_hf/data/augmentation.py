"""Random changes of training images by kornia: rand-augment, random erasing, mixup and cutmix.

kornia draws from torch's generator of the CPU. It is seeded for each change and restored afterwards, so that a change
is a function of the image and a seed.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_OPERATIONS = 2  # of rand-augment on an image


class Augmentation:
    """Changes images, and batches with the probabilities of their classes.

    Args:
        rand_augment: magnitude of rand-augment (Cubuk et al., 2019), above 0 and below 30: two random operations on
            each image. Default: none.
        random_erasing: probability with which a rectangle of an image is replaced by the mean colour.
        mixup: share of the batches in which each image is blended with another one. The weight of the other is drawn
            uniformly from 0 to 1.
        cutmix: share of the batches in which a rectangle of each image is replaced by that of another one. Its area is
            drawn uniformly from 0 to 1.

    Raises:
        ImportError: without kornia.
        ValueError: for a setting outside its range.
    """

    def __init__(
        self,
        *,
        rand_augment: float | None = None,
        random_erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ) -> None:
        from kornia.augmentation import RandomCutMixV2, RandomErasing, RandomMixUpV2
        from kornia.augmentation.auto import RandAugment

        if rand_augment is not None and not 0 < rand_augment < 30:
            raise ValueError(f"rand_augment must be above 0 and below 30, got {rand_augment}")
        for name, value in {"random_erasing": random_erasing, "mixup": mixup, "cutmix": cutmix}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        if mixup + cutmix > 1:
            raise ValueError(f"mixup and cutmix are shares of the batches: {mixup} and {cutmix} are more than 1")
        self.mixup, self.cutmix = mixup, cutmix
        self._rand_augment = None if rand_augment is None else RandAugment(n=_OPERATIONS, m=rand_augment)
        self._erase = RandomErasing(p=random_erasing) if random_erasing else None
        keys = ["input", "class"]
        self._blend = RandomMixUpV2(data_keys=keys)
        self._paste = RandomCutMixV2(data_keys=keys, use_correct_lambda=True)

    def change_image(self, levels: torch.Tensor, seed: int) -> torch.Tensor:
        """Levels (3, height, width) from 0 to 255 -> levels float32."""
        if self._rand_augment is None:
            return levels
        with _seeded(seed):
            return 255 * self._rand_augment(levels[None].float() / 255)[0]

    def change_batch(
        self, pixel_values: torch.Tensor, labels: torch.Tensor, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixel values (batch, 3, height, width) and probabilities (batch, classes) -> the same of the new images."""
        draw = np.random.default_rng([seed, 1])
        with _seeded(int(draw.integers(2**63))):
            if self._erase is not None:
                pixel_values = self._erase(pixel_values)
            chance = draw.random()
            if chance >= self.mixup + self.cutmix:
                return pixel_values, labels
            places = torch.arange(len(labels))  # in place of classes: kornia returns the place of the other image
            if chance < self.mixup:
                pixel_values, mixed = self._blend(pixel_values, places)
                share = mixed[:, 2]
            else:
                pixel_values, (mixed,) = self._paste(pixel_values, places)
                share = 1 - mixed[:, 2]
        share = share[:, None]
        return pixel_values, (1 - share) * labels + share * labels[mixed[:, 1].long()]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the generator of the CPU within the block; those of the devices do not change."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
