"""Read images of any kind as `pixel_values`, in training, evaluation and use alike.

`ImageReader` computes the pixel values of an image processor in a fraction of its time: torch resizes 8-bit levels,
and scales a batch of them on the model's device. `simplejpeg` decodes plain JPEGs, to the same bytes, if it is
installed. The resizing is that of transformers' torchvision backend: a value differs from PIL's by at most one of the
256 levels (two if a bicubic resampling enlarges).
"""

import base64
import io
from functools import cached_property
from os import PathLike, fspath
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from transformers import BaseImageProcessor
from transformers.image_utils import load_image as load_image_from_url

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

ImageInput: TypeAlias = str | PathLike | bytes | dict | Image.Image | np.ndarray

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_JPEG_START = b"\xff\xd8\xff"
# A JPEG with one of these may have an orientation, which PIL reads.
_ORIENTATION_MARKS = (b"Exif\x00\x00", b"tiff:Orientation")
_MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


class UnreadableImageError(ValueError):
    """An image that cannot be decoded; the message names the image and the reason."""


def load_image(image: ImageInput) -> Image.Image:
    """Decode an image to upright 8-bit RGB.

    `Image.convert("RGB")` alone would ignore the EXIF orientation of phones, clip the 16-bit greys of scanners to
    white, and show the hidden colour of transparent pixels, mostly black.

    Args:
        image: a path, a URL (`http://`, `https://` or `data:`), encoded bytes, the `{"bytes", "path"}` of an undecoded
            `datasets.Image`, a PIL image, or an array of shape (height, width) or (height, width, 1 | 3 | 4): `uint8`,
            `uint16`, or floats in [0, 1].

    Raises:
        UnreadableImageError: if the image is missing, truncated, not an image, or an array of another kind.
    """
    try:
        return _to_rgb(_open(_source(image)))
    except UnreadableImageError:
        raise
    # A broken file or a dead server can raise anything: Pillow's decoders struct.error, RuntimeError, EOFError and
    # others, the HTTP client errors that are no OSError.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise UnreadableImageError(f"{_name(image)} cannot be read as an image: {reason}") from error


def decode_image(image: ImageInput) -> np.ndarray:
    """As `load_image`, with the fastest decoder that is installed; a writable array of levels (height, width, 3)."""
    levels = decode_plain_jpeg(image)
    return np.array(load_image(image)) if levels is None else levels


class ImageReader:
    """Reads images for an image processor in two steps: `read` for one image, in any thread, and `scale` for a batch.

    If the image processor does more than resize, rescale and normalise, such as cropping, it is called itself.
    """

    def __init__(self, image_processor: BaseImageProcessor):
        self.image_processor = image_processor
        settings = image_processor.to_dict()
        size = settings.get("size") or {}
        self._size: list[Any] = [size.get("height"), size.get("width")]  # None for another kind of size
        self._mode = _MODES.get(settings.get("resample"))
        self.resizes_only = (
            type(image_processor).__name__ in ("ViTImageProcessor", "ViTImageProcessorPil")
            and bool(settings.get("do_resize"))
            and self._mode is not None
            and None not in self._size
            and not any(settings.get(step) for step in ("do_center_crop", "do_pad"))
        )
        steps = settings if self.resizes_only else {}
        levels = 1 / steps["rescale_factor"] if steps.get("do_rescale") else 1.0
        mean, std = (steps["image_mean"], steps["image_std"]) if steps.get("do_normalize") else (0.0, 1.0)
        self._mean = torch.tensor(mean).reshape(-1, 1, 1) * levels  # in levels of the image
        self._std = torch.tensor(std).reshape(-1, 1, 1) * levels

    @cached_property
    def height_and_width(self) -> tuple[int, int]:
        """Size of the pixel values in pixels."""
        height, width = self.resize(np.zeros((64, 64, 3), dtype=np.uint8)).shape[1:]
        return height, width

    def read(self, image: ImageInput) -> torch.Tensor:
        """Decode and resize an image to (3, height, width).

        The values are 8-bit levels, or pixel values if the image processor does more than resizing.

        Raises:
            UnreadableImageError: if the image cannot be read; see `load_image`.
        """
        return self.resize(decode_image(image))

    def resize(self, levels: np.ndarray) -> torch.Tensor:
        """The second half of `read`: decoded levels (height, width, 3) -> (3, height, width)."""
        if not self.resizes_only:
            return self.image_processor(Image.fromarray(levels), return_tensors="pt")["pixel_values"][0]
        pixels = torch.from_numpy(levels).permute(2, 0, 1)[None]  # (1, 3, h, w), channels last in memory
        return torch.nn.functional.interpolate(pixels, self._size, mode=str(self._mode), antialias=True)[0]

    def scale(self, batch: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """A stack of what `read` returned, (batch, 3, height, width) -> `pixel_values` on the device."""
        batch = batch.to(device, non_blocking=True)
        if self.resizes_only:
            # not in place: glibc keeps the freed blocks, without which a MobileNetV2 takes 15 % longer to encode
            batch = (batch.float() - self._mean.to(device)) / self._std.to(device)
        return batch.to(dtype)


def decode_plain_jpeg(image: ImageInput) -> np.ndarray | None:
    """Levels (height, width, 3) of a JPEG in colour or grey that has no orientation mark.

    Returns `None` for any other input, for a broken JPEG, and if `simplejpeg` is not installed.
    """
    if simplejpeg is None:
        return None
    encoded = _jpeg_bytes(_source(image))
    if encoded is None or any(mark in encoded for mark in _ORIENTATION_MARKS):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        too_large = Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS
        if too_large or colours not in ("YCbCr", "Gray"):  # CMYK is for printing
            return None
        return simplejpeg.decode_jpeg(encoded, "RGB")
    except ValueError:
        return None


def _source(image: ImageInput) -> ImageInput:
    """The bytes or the path in an undecoded `datasets.Image`; another image as it is."""
    if image is None:  # a row of a data set without an image
        raise UnreadableImageError("there is no image in this row")
    if not isinstance(image, dict):
        return image
    source = image["bytes"] if image.get("bytes") is not None else image.get("path")
    if source is None:
        raise UnreadableImageError("an image given as a dict needs 'bytes' or 'path'; both are missing")
    return source


def _jpeg_bytes(image: ImageInput) -> bytes | None:
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


def _open(image: ImageInput) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, bytes):
        return Image.open(io.BytesIO(image))
    if isinstance(image, (str, PathLike)):
        path = fspath(image)
        if path.startswith(("http://", "https://")):
            return load_image_from_url(path, timeout=30.0)
        if path.startswith("data:image/"):
            return Image.open(io.BytesIO(base64.b64decode(path.partition(",")[2])))
        return Image.open(path)
    raise UnreadableImageError(
        f"an image can be a path, a URL, bytes, a PIL image or an array; got {type(image).__name__}"
    )


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise UnreadableImageError(
            f"an array must be (height, width) or (height, width, 1, 3 or 4), channels last; got shape {array.shape}"
        )
    if array.dtype == np.uint16:
        array = (array // 257).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):  # NaN fails both comparisons
            raise UnreadableImageError(f"an array of floats must be in [0, 1]; got [{low:g}, {high:g}]")
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise UnreadableImageError(f"an array must be uint8, uint16 or floats in [0, 1]; got {array.dtype}")
    return Image.fromarray(array)


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT_MODES:
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    # PIL decodes at first use, so that a truncated file raises here or in `convert`
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _name(image: ImageInput) -> str:
    if isinstance(image, dict):
        return str(image.get("path") or _name(image.get("bytes") or b""))
    if isinstance(image, bytes):
        return f"an image of {len(image)} bytes"
    if isinstance(image, (str, PathLike)):
        return repr(fspath(image)[:200])
    if isinstance(image, ImageFile.ImageFile) and image.filename:
        return repr(image.filename)
    return f"an image of type {type(image).__name__}"
