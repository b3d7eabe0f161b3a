"""HTML pages that need no other file: images are data: URIs, style and curves are inline.

The templates are beside this file. Their content security policy forbids loading anything else.
"""

import base64
import io
from functools import cache, partial

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from cca_hf.evaluation.text_table import percent
from cca_hf.models.images import ImageInput, load_image

_THUMBNAIL = 168  # pixels: twice the displayed size, so that it is sharp on screens of a high resolution
_LARGE = 380


def data_uri(image: ImageInput, size: int) -> str:
    """The image as a data: URI, reduced to sides of at most `size` pixels."""
    loaded = load_image(image)
    if max(loaded.size) > size:
        loaded = loaded.copy()
        loaded.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    loaded.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def render(template: str, **values: object) -> str:
    """Fill in a template that is beside this file; values are escaped."""
    return templates("cca_hf.visualization").get_template(template).render(values)


@cache
def templates(package: str) -> Environment:
    """The Jinja templates in the folder of a package."""
    environment = Environment(loader=PackageLoader(package, ""), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters |= {"thumbnail": partial(data_uri, size=_THUMBNAIL), "large": partial(data_uri, size=_LARGE)}
    environment.filters["percent"] = percent
    return environment
