"""Anything that a user calls a picture, as an upright 8-bit RGB `PIL.Image`.

Phones store pictures lying on their side with an EXIF note, shops store CMYK JPEGs, scanners 16-bit greys and
designers transparent PNGs. `Image.convert("RGB")` alone gets all four wrong: it ignores the note, clips 16-bit values
to white and puts whatever lies under the transparency, mostly black, behind the product.
"""

import io
from os import PathLike, fspath
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps
from transformers.image_utils import load_image as load_image_from_url

ImageInput: TypeAlias = str | PathLike | bytes | dict | Image.Image | np.ndarray

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class UnreadableImageError(ValueError):
    """A picture that cannot be decoded; the message names it and gives the reason."""


def load_image(image: ImageInput) -> Image.Image:
    """Decodes a picture to upright 8-bit RGB.

    Args:
        image: a path, a URL (`http://`, `https://` or `data:`), encoded bytes, the `{"bytes", "path"}` of an undecoded
            `datasets.Image`, a PIL image, or an array of shape (height, width) or (height, width, 1 | 3 | 4): `uint8`,
            `uint16`, or floats in [0, 1].

    Raises:
        UnreadableImageError: if it is missing, truncated, not a picture, or an array of another kind.
    """
    try:
        return _to_rgb(_open(image))
    except UnreadableImageError:
        raise
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f"{_name(image)} cannot be read as a picture: {error}") from error


def _open(image: ImageInput) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, dict):
        source = image["bytes"] if image.get("bytes") is not None else image.get("path")
        if source is None:
            raise UnreadableImageError("a picture given as a dict needs 'bytes' or 'path'; both are missing")
        return _open(source)
    if isinstance(image, bytes):
        return Image.open(io.BytesIO(image))
    if isinstance(image, (str, PathLike)):
        path = fspath(image)
        if path.startswith(("http://", "https://", "data:image/")):
            return load_image_from_url(path, timeout=30.0)
        return Image.open(path)
    raise UnreadableImageError(
        f"a picture can be a path, a URL, bytes, a PIL image or an array; got {type(image).__name__}"
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
            raise UnreadableImageError(f"an array of floats must lie in [0, 1]; got [{low:g}, {high:g}]")
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
    # PIL decodes lazily: a truncated file shows itself here, or in `convert`
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _name(image: ImageInput) -> str:
    if isinstance(image, dict):
        return str(image.get("path") or _name(image.get("bytes") or b""))
    if isinstance(image, bytes):
        return f"a picture of {len(image)} bytes"
    if isinstance(image, (str, PathLike)):
        return repr(fspath(image)[:200])
    return f"a picture of type {type(image).__name__}"
