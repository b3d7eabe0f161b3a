"""Images of one batch to the tensors that a model takes."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from transformers import BaseImageProcessor

from cca_hf.models.images import ImageReader

from .torch_dataset import AttributeExample


class AttributeBatch(TypedDict):
    """One batch."""

    pixel_values: torch.Tensor  # (batch, 3, height, width) float32
    labels: torch.Tensor  # (batch, attributes) int64, -1 where not labelled


class AttributeCollator:
    """Resizes and normalises images by the reader that `encode` uses, to the same pixel values."""

    def __init__(self, image_processor: BaseImageProcessor) -> None:
        self.reader = ImageReader(image_processor)

    def __call__(self, examples: Sequence[AttributeExample]) -> AttributeBatch:
        resized = torch.stack([self.reader.resize(example["image"]) for example in examples])
        pixel_values = self.reader.scale(resized, torch.device("cpu"), torch.float32)
        return {"pixel_values": pixel_values, "labels": torch.stack([example["labels"] for example in examples])}
