"""Images that users upload: decoded within limits, or refused with a message for the user."""

from os import PathLike
from pathlib import Path

from PIL import Image

from cca_hf.models.images import UnreadableImageError, load_image

MOST_BYTES = 20 * 2**20
MOST_PIXELS = 64_000_000  # photos of phones have up to 50 million; 200 MB once decoded
# Pillow's other formats are rare, and for some Pillow starts other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_FORMATS = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]}"


def open_upload(path: str | PathLike[str], name: str) -> Image.Image:
    """Decodes an upload to an upright RGB image.

    Raises:
        UnreadableImageError: if it is not an image, or too large. The message is for the user: it has `name`, because
            the path is private.
    """
    size = Path(path).stat().st_size
    if size > MOST_BYTES:
        raise UnreadableImageError(f"{name} has {size / 2**20:.0f} MB; the limit is {MOST_BYTES // 2**20} MB.")
    try:
        with Image.open(path, formats=FORMATS) as image:  # reads only the header
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            return load_image(image)
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(
            f"{name} has more than {MOST_PIXELS // 10**6} million pixels. Upload a smaller image."
        ) from error
    except OSError as error:  # UnidentifiedImageError is one
        raise UnreadableImageError(f"{name} is not an image in a supported format: {_FORMATS}.") from error
    except (ValueError, SyntaxError) as error:
        raise UnreadableImageError(f"{name} is damaged or incomplete.") from error
