"""Pages that hold everything they show: images as data: URIs, style and curves inline.

The templates lie beside this file. A content security policy forbids the pages to load anything else.
"""

import base64
import io
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from cca_hf.evaluation.text_table import percent
from cca_hf.models.images import ImageInput, load_image

_THUMBNAIL = 168  # pixels: twice what a desktop shows, so that it stays sharp on fine screens
_LARGE = 380


def data_uri(image: Image.Image, size: int) -> str:
    """The image, no side longer than `size` pixels, as a data: URI."""
    if max(image.size) > size:
        image = image.copy()
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def public_name(name: str) -> str:
    """An id on the Hub, or the last part of a path, which is private."""
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def render(template: str, **values: object) -> str:
    """One of the templates beside this file, with its names filled in and escaped."""
    return templates("cca_hf.visualization").get_template(template).render(values)


@cache
def templates(package: str) -> Environment:
    """The Jinja templates in the folder of a package."""
    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"percent": percent, "thumbnail": _thumbnail, "large": _large}
    return environment


def _thumbnail(image: ImageInput) -> str:
    return data_uri(load_image(image), _THUMBNAIL)


def _large(image: ImageInput) -> str:
    return data_uri(load_image(image), _LARGE)
