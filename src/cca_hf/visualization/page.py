"""Pages that hold everything they show: images as data: URIs, style and curves inline.

The templates lie beside this file. A content security policy forbids the pages to load anything.
"""

import base64
import io

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


def render(template: str, **values: object) -> str:
    """One of the templates beside this file, with its names filled in and escaped."""
    return _TEMPLATES.get_template(template).render(values)


def _thumbnail(image: ImageInput) -> str:
    return data_uri(load_image(image), _THUMBNAIL)


def _large(image: ImageInput) -> str:
    return data_uri(load_image(image), _LARGE)


_TEMPLATES = Environment(
    loader=PackageLoader("cca_hf.visualization", ""),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_TEMPLATES.filters |= {"percent": percent, "thumbnail": _thumbnail, "large": _large}
