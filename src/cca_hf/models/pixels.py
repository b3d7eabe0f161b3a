"""From a picture to `pixel_values` as the image processor makes them, in a fraction of its time.

Without torchvision an image processor resizes through PIL and scales in numpy, one picture after the other. Here the
picture is resized by torch on 8-bit values, and scaled as part of a batch on the model's device, to which a quarter of
the bytes have to travel. Where `simplejpeg` is installed (`pip install "cca_hf[fast]"`), it decodes plain JPEGs.

Decoding gives the same bytes either way. Resizing is that of transformers' torchvision backend: every value lies
within one of the 256 levels of PIL's (two where a bicubic resampling enlarges), which rounds its weights at another
digit, and in newer versions goes through tall pictures in another order. An image processor that does anything but
resize, rescale and normalise is called itself.
"""

from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor

from .images import ImageInput, load_image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

_JPEG_START = b"\xff\xd8\xff"
# PIL turns a picture by a note in either; which of them it says is for PIL to read
_ORIENTATION_NOTES = (b"Exif\x00\x00", b"tiff:Orientation")
_MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


class ImageReader:
    """Reads pictures for one image processor, in two steps: each by itself, in any thread, then a batch of them."""

    def __init__(self, image_processor: BaseImageProcessor):
        self.image_processor = image_processor
        settings = image_processor.to_dict()
        self.mode = _MODES.get(settings.get("resample"))
        size = settings.get("size") or {}
        self.size: list[Any] = [size.get("height"), size.get("width")]  # None where it names another side
        self.resizes_only = (
            type(image_processor).__name__ in ("ViTImageProcessor", "ViTImageProcessorPil")
            and bool(settings.get("do_resize"))
            and self.mode is not None
            and None not in self.size
            and not any(settings.get(step) for step in ("do_center_crop", "do_pad"))
        )
        levels = 1 / settings["rescale_factor"] if settings.get("do_rescale") else 1.0
        mean, std = (settings["image_mean"], settings["image_std"]) if settings.get("do_normalize") else (0.0, 1.0)
        self.mean = torch.tensor(mean).reshape(-1, 1, 1) * levels  # in the levels of the picture
        self.std = torch.tensor(std).reshape(-1, 1, 1) * levels

    def read(self, image: ImageInput) -> torch.Tensor:
        """A picture as (3, height, width): 8-bit levels, or what the image processor makes where it does more.

        Raises:
            UnreadableImageError: if it cannot be read; see `load_image`.
        """
        if self.mode is None or not self.resizes_only:
            return self.image_processor(load_image(image), return_tensors="pt")["pixel_values"][0]
        decoded = decode_plain_jpeg(image)
        if decoded is None:
            decoded = np.array(load_image(image))  # np.asarray would not be writable, of which torch warns
        pixels = torch.from_numpy(decoded).permute(2, 0, 1)[None]  # (1, 3, h, w), channels last in memory
        return torch.nn.functional.interpolate(pixels, self.size, mode=self.mode, antialias=True)[0]

    def scale(self, batch: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """What `read` gave, stacked to (batch, 3, height, width) -> `pixel_values` on the device."""
        batch = batch.to(device, non_blocking=True)
        if self.resizes_only:
            batch = (batch.float() - self.mean.to(device)) / self.std.to(device)
        return batch.to(dtype)


def decode_plain_jpeg(image: ImageInput) -> np.ndarray | None:
    """(height, width, 3) levels of a JPEG that is nothing but an upright picture in colour or grey.

    `None` for whatever else is given, a broken JPEG included, and where `simplejpeg` is not installed: `load_image`
    reads it, or says what is wrong with it.
    """
    if simplejpeg is None:
        return None
    encoded = _jpeg_bytes(image)
    if encoded is None or any(note in encoded for note in _ORIENTATION_NOTES):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        too_large = Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS
        if too_large or colours not in ("YCbCr", "Gray"):  # others are for printing
            return None
        return simplejpeg.decode_jpeg(encoded, "RGB")
    except ValueError:
        return None


def _jpeg_bytes(image: ImageInput) -> bytes | None:
    if isinstance(image, dict):
        source = image.get("bytes") if image.get("bytes") is not None else image.get("path")
        return None if source is None else _jpeg_bytes(source)
    if isinstance(image, bytes):
        return image if image.startswith(_JPEG_START) else None
    if not isinstance(image, (str, PathLike)) or "://" in (path := fspath(image)) or path.startswith("data:"):
        return None
    try:
        with open(path, "rb") as file:
            start = file.read(len(_JPEG_START))
            return start + file.read() if start == _JPEG_START else None
    except OSError:
        return None


__all__ = ["ImageReader", "decode_plain_jpeg"]
