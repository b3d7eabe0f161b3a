"""Read images of any kind as `pixel_values`, in training, evaluation and use alike.

`ImageReader` computes the pixel values of an image processor in a fraction of its time: torch resizes 8-bit levels,
and scales a batch of them on the model's device. `simplejpeg` decodes plain JPEGs, to the same bytes, if it is
installed. The resizing is that of transformers' torchvision backend: a value differs from PIL's by at most one of the
256 levels (two if a bicubic resampling enlarges).
"""

import base64
import io
import math
import os
import stat
from functools import cached_property
from os import PathLike, fspath
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile
from transformers import BaseImageProcessor

from .fetching import FetchError, fetch, is_url
from .image_headers import check_exif, check_header, check_scans, check_sides, jpeg_header

try:
    import simplejpeg
except ImportError:
    simplejpeg = None
try:
    import pillow_heif
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener()

ImageInput: TypeAlias = str | PathLike | bytes | dict | Image.Image | np.ndarray

TRUST_DATA = "CCA_TRUST_DATA"  # the environment variable that allows data what the user may do himself
_TRANSPOSE = {  # EXIF orientation -> what turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_NOTES_OF_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # some versions of Pillow read their 16-bit greys as 32-bit integers
_MOST_RESIZED = 100_000_000  # pixels of a resized image, also when only one side is resized
_BITS_PER_SAMPLE = 258  # tag of a TIFF
_JPEG_START = b"\xff\xd8\xff"
# A JPEG with one of these may have an orientation, which PIL reads.
_ORIENTATION_MARKS = (b"Exif\x00\x00", b"tiff:Orientation")
_MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


class UnreadableImageError(ValueError):
    """An image that cannot be decoded; the message names the image and the reason."""


def trusts_data() -> bool:
    """Whether URLs and file names in data may lead anywhere: `CCA_TRUST_DATA=1`."""
    return os.environ.get(TRUST_DATA, "0") not in ("", "0")


def load_image(image: ImageInput) -> Image.Image:
    """Decode an image to upright 8-bit RGB.

    `Image.convert("RGB")` alone would ignore the EXIF orientation of phones, clip the 16-bit greys of scanners to
    white, and show the hidden colour of transparent pixels, mostly black. EXIF that cannot be read is ignored.

    Greys of more than 8 bits are scaled if their range is known: 16 bits, or 12 in a TIFF that says so; 32-bit
    integers in [0, 255] or [0, 65535], as 8 or 16 bits; floats in [0, 1]. Others are refused.

    Args:
        image: a path, a URL (`http://`, `https://` or `data:`), encoded bytes, the `{"bytes", "path"}` of an undecoded
            `datasets.Image`, a PIL image, or an array of shape (height, width) or (height, width, 1 | 3 | 4): `uint8`,
            `uint16`, or floats in [0, 1]. A URL may lead to any host if it is given as text, and to public hosts if it
            is the "path" of a dict, which comes from data; see `CCA_TRUST_DATA` in docs/your_own_data.md.

    Raises:
        UnreadableImageError: if the image is missing, truncated, not an image, an array or greys of another kind, or
            if decoding it would take far more memory or time than its size explains.
    """
    source = _source(image)
    try:
        if isinstance(source, (bytes, str, PathLike)):
            with _open(source, from_data=isinstance(image, dict)) as file:
                check_header(file)
                opened = Image.open(file)
                check_sides(*opened.size)
                if opened.format in ("JPEG", "MPO"):
                    file.seek(0)
                    check_scans(file.read(), opened.width * opened.height)
                return _to_rgb(opened)
        given = _from_memory(source)
        loaded = _to_rgb(given)
        return loaded.copy() if loaded is given else loaded
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{_name(image)} cannot be read as an image: {error}") from error
    # A broken file can raise anything: Pillow's decoders struct.error, RuntimeError, EOFError and others.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
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
        _check_normalisation(settings)
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
        levels = decode_image(image)
        try:
            return self.resize(levels)
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{_name(image)} cannot be resized: {error}") from error

    def resize(self, levels: np.ndarray) -> torch.Tensor:
        """The second half of `read`: decoded levels (height, width, 3) -> (3, height, width).

        Raises:
            UnreadableImageError: if the image is so long that the image processor would need gigabytes for it.
        """
        height, width = levels.shape[:2]
        if not self.resizes_only:
            self._check_shape(height, width)
            return self.image_processor(Image.fromarray(levels), return_tensors="pt")["pixel_values"][0]
        pixels = torch.from_numpy(levels).permute(2, 0, 1)[None]  # (1, 3, h, w), channels last in memory
        if height * self._size[1] > max(height * width, _MOST_RESIZED):
            # torch changes the width first: 1 x 25,000,000 pixels would be 224 x 25,000,000 in between
            pixels = self._interpolate(pixels, [self._size[0], width])
        return self._interpolate(pixels, self._size)[0]

    def _interpolate(self, pixels: torch.Tensor, size: list[int]) -> torch.Tensor:
        return torch.nn.functional.interpolate(pixels, size, mode=str(self._mode), antialias=True)

    def _check_shape(self, height: int, width: int) -> None:
        size = self.image_processor.to_dict().get("size") or {}
        edge = size.get("shortest_edge")
        if edge is None or "longest_edge" in size:
            resized = height * (size.get("width") or 0)  # as torch, PIL changes the width first
        else:
            resized = edge * edge * max(height, width) // min(height, width)
        if resized > _MOST_RESIZED:
            raise UnreadableImageError(
                f"{width} x {height} pixels are too long for this image processor, which would need {resized:,} pixels"
            )

    def scale(self, batch: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """A stack of what `read` returned, (batch, 3, height, width) -> `pixel_values` on the device."""
        batch = batch.to(device, non_blocking=True)
        if self.resizes_only:
            # not in place: glibc keeps the freed blocks, without which a MobileNetV2 takes 15 % longer to encode
            batch = (batch.float() - self._mean.to(device)) / self._std.to(device)
        return batch.to(dtype)


def _check_normalisation(settings: dict[str, Any]) -> None:
    """Raises ValueError for settings of an image processor that make pixel values NaN or infinite."""
    normalises, rescales = settings.get("do_normalize"), settings.get("do_rescale")
    read = {"image_mean": normalises, "image_std": normalises, "rescale_factor": rescales}
    for name in (name for name, is_read in read.items() if is_read):
        value = settings.get(name)
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
            raise ValueError(f"{name} of the image processor must be a finite number or a list of them; got {value!r}")
        if name != "image_mean" and 0 in numbers:
            raise ValueError(f"{name} of the image processor must not be 0; got {value!r}")


def decode_plain_jpeg(image: ImageInput) -> np.ndarray | None:
    """Levels (height, width, 3) of a JPEG in colour or grey that has no orientation mark.

    Returns `None` for any other input, for a broken JPEG, and if `simplejpeg` is not installed.
    """
    if simplejpeg is None:
        return None
    encoded = _jpeg_bytes(_source(image))
    if encoded is None:
        return None
    try:
        header, has_one_scan = jpeg_header(encoded)
        if any(mark in header for mark in _ORIENTATION_MARKS):
            return None
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        too_large = Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS
        if too_large or colours not in ("YCbCr", "Gray"):  # CMYK is for printing
            return None
        if not has_one_scan:
            check_scans(encoded, height * width)
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
        with _open_file(path) as file:
            start = file.read(len(_JPEG_START))
            return start + file.read() if start == _JPEG_START else None
    except (OSError, ValueError):
        return None


def _open(image: bytes | str | PathLike, *, from_data: bool) -> BinaryIO:
    if isinstance(image, bytes):
        return io.BytesIO(image)
    text = fspath(image)
    if is_url(text):
        return io.BytesIO(_fetch(text, private_hosts=not from_data or trusts_data()))
    if text.startswith("data:image/"):
        return io.BytesIO(base64.b64decode(text.partition(",")[2]))
    return _open_file(text)


def _fetch(url: str, *, private_hosts: bool) -> bytes:
    try:
        return fetch(url, private_hosts=private_hosts)
    except FetchError as error:
        if error.part != "private" or private_hosts:
            raise
        hint = f"data may refer to public hosts only, unless {TRUST_DATA}=1 is set"
        raise UnreadableImageError(f"{error}; {hint}") from error


def _open_file(path: str) -> BinaryIO:
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its other end
        raise UnreadableImageError("it is not a file")
    return open(path, "rb")


def _from_memory(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        return _from_array(image)
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
    # PIL decodes at first use, so that a truncated file raises here
    image.load()
    turn = _turn(image)
    if image.mode in (*_SIXTEEN_BIT_MODES, "I", "F"):
        image = _eight_bit_grey(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if turn is not None:
        image = image.transpose(turn)
        for note in _NOTES_OF_ORIENTATION:
            image.info.pop(note, None)
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns the image upright, by its EXIF or XMP. A note that cannot be read is no note."""
    try:
        if "exif" in image.info:
            check_exif(image.info["exif"])
        elif "Raw profile type exif" in image.info:  # hexadecimal, in a PNG
            check_exif(bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:])))
        return _TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises errors of many types
        return None


def _eight_bit_grey(image: Any) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F":
        return _from_array(values)
    low, high = int(values.min()), int(values.max())
    most = 65535
    if image.format == "TIFF" and image.tag_v2.get(_BITS_PER_SAMPLE) == (12,):
        most = 4095
    elif image.mode == "I" and image.format not in _SIXTEEN_BIT_FORMATS and high <= 255:
        most = 255
    if low < 0 or high > most:
        raise UnreadableImageError(f"integers must be in [0, 255] or [0, 65535]; got [{low}, {high}]")
    return Image.fromarray((values.astype(np.uint32) * 255 // most).astype(np.uint8))


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
