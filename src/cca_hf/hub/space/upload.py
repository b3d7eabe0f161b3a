"""A picture that a stranger sends: decoded if it is one that can be, else refused in a sentence that can be shown."""

from os import PathLike
from pathlib import Path

from PIL import Image

from cca_hf.models.images import UnreadableImageError, load_image

MOST_BYTES = 20 * 2**20
MOST_PIXELS = 64_000_000  # what phones take; 200 MB once decoded
# Pillow's other readers are for archives and printers, and some start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_FORMATS = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]}"


def open_upload(path: str | PathLike[str], name: str) -> Image.Image:
    """An upright RGB picture.

    Args:
        name: what the sender calls it; the path is nothing to tell.

    Raises:
        UnreadableImageError: for all else. The message is for the sender.
    """
    size = Path(path).stat().st_size
    if size > MOST_BYTES:
        raise UnreadableImageError(f"{name} has {size / 2**20:.0f} MB; at most {MOST_BYTES // 2**20} are taken.")
    try:
        with Image.open(path, formats=FORMATS) as picture:  # reads the head alone
            if picture.width * picture.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            return load_image(picture)
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(
            f"{name} has more pixels than are taken, which is {MOST_PIXELS // 10**6} million. Send it smaller."
        ) from error
    except OSError as error:  # UnidentifiedImageError is one
        raise UnreadableImageError(f"{name} is no picture that can be read; {_FORMATS} can.") from error
    except (ValueError, SyntaxError) as error:
        raise UnreadableImageError(f"{name} is damaged: not all of the picture is there.") from error
