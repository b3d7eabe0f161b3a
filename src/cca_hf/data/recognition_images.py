"""The images of a [`RecognitionDataset`] with their targets, for a `torch.utils.data.DataLoader`."""

import numpy as np
import torch

from .recognition import RecognitionDataset
from .torch_dataset import AttributeImages, Transform


class RecognitionImages(AttributeImages):
    """As [`AttributeImages`], with `labels` (columns of the targets,) float32 of 1, 0, and -1 for "not labelled"."""

    def __init__(self, data: RecognitionDataset, split: str, transform: Transform | None = None) -> None:
        super().__init__(data, split, transform)
        self.labels = torch.from_numpy(data.targets(split))


class PadAndCrop:
    """Pads an image with black, crops it to its size at a random place, and flips it at random.

    Args:
        padding: on each side, as shares of the height and of the width.
        horizontal_flip: probability.

    Raises:
        ValueError: for a setting outside its range.
    """

    def __init__(self, padding: tuple[float, float], *, horizontal_flip: float = 0.5) -> None:
        if not all(0 <= share < 1 for share in padding):
            raise ValueError(f"padding must be shares of a side, at least 0 and below 1; got {padding}")
        if not 0 <= horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip must be a probability; got {horizontal_flip}")
        self.padding = padding
        self.horizontal_flip = horizontal_flip

    def __call__(self, levels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Levels (height, width, 3) uint8 -> levels of the same shape."""
        height, width = levels.shape[:2]
        most = [round(share * side) for share, side in zip(self.padding, (height, width), strict=True)]
        top, left = (int(generator.integers(2 * limit + 1)) for limit in most)
        padded = np.pad(levels, [(most[0], most[0]), (most[1], most[1]), (0, 0)])
        cropped = padded[top : top + height, left : left + width]
        flipped = generator.random() < self.horizontal_flip
        return np.ascontiguousarray(cropped[:, ::-1] if flipped else cropped)
