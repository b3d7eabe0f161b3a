"""Pictures of one batch to the tensors that a model takes."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor

from .torch_dataset import AttributeExample


class AttributeBatch(TypedDict):
    """One batch."""

    pixel_values: torch.Tensor  # (batch, 3, height, width) float32
    labels: torch.Tensor  # (batch, attributes) int64, -1 where not labelled


class AttributeCollator:
    """Prepares pictures just as the image processor does, in one go where they have their final size already.

    Args:
        resized: whether the pictures come in their final size (from `TrainingTransform`): the processor's resizing and
            cropping are then left out.
    """

    def __init__(self, image_processor: BaseImageProcessor, *, resized: bool) -> None:
        self.image_processor = image_processor
        self.resized = resized
        self._scale_and_shift = _as_scale_and_shift(image_processor) if resized else None

    def __call__(self, examples: Sequence[AttributeExample]) -> AttributeBatch:
        images = [example["image"] for example in examples]
        return {"pixel_values": self._pixel_values(images), "labels": torch.stack([e["labels"] for e in examples])}

    def _pixel_values(self, images: list[Image.Image]) -> torch.Tensor:
        if not self.resized:
            return self.image_processor(images, return_tensors="pt")["pixel_values"]
        if self._scale_and_shift is None:
            return _without_resizing(self.image_processor, images)
        scale, shift = self._scale_and_shift
        stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))  # (B, H, W, 3) uint8
        pixel_values = stacked.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return pixel_values.mul_(scale).add_(shift)


def _without_resizing(image_processor: BaseImageProcessor, images: list[Image.Image]) -> torch.Tensor:
    return image_processor(images, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]


def _as_scale_and_shift(image_processor: BaseImageProcessor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What the processor does to a pixel, as one factor and one summand for each channel, (3, 1, 1).

    Found by asking it, for every processor has settings of its own: three channels of all 256 values, each in another
    order. None if it does anything else (swaps channels, equalises, pads): it is then called for every batch.
    """
    steps = np.arange(256, dtype=np.uint8).reshape(16, 16)
    probe = np.stack([steps, steps[::-1], steps.T], axis=-1)
    given = _without_resizing(image_processor, [Image.fromarray(probe)])
    if given.shape != (1, 3, 16, 16):
        return None
    given = given[0].double()
    values = torch.from_numpy(probe).permute(2, 0, 1).double()
    at_0, at_255 = (torch.stack([given[c][values[c] == value][0] for c in range(3)]) for value in (0, 255))
    scale, shift = ((at_255 - at_0) / 255).view(3, 1, 1), at_0.view(3, 1, 1)
    if not torch.allclose(values * scale + shift, given, rtol=0, atol=1e-5):
        return None
    return scale.float(), shift.float()
