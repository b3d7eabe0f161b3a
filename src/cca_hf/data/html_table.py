"""Tables and thumbnails for notebooks: HTML without scripts, other files or style sheets, with all texts escaped.

Styles are in the elements of the template `table.html`, because JupyterLab removes the style sheets of untrusted
notebooks.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from cca_hf.models.fetching import is_url
from cca_hf.models.images import ImageInput, UnreadableImageError, load_image

_SHOWN = 56  # pixels
_THUMBNAIL = 2 * _SHOWN  # sharp on screens of a high resolution


class Thumbnail(NamedTuple):
    """A small image with a text below it; a grey square without a `uri`."""

    uri: str | None
    caption: str


Cell: TypeAlias = str | Sequence[Thumbnail]
Place: TypeAlias = tuple[int, int, int]  # section, row, column


def html_table(
    header: Sequence[str],
    sections: Sequence[Sequence[Sequence[Cell]]],
    notes: Sequence[str] = (),
    *,
    title: str = "",
    styles: Mapping[Place, str] | None = None,
    align: str = "right",
) -> str:
    """Rows in sections, each with a name in its first column, and lines of text below the table.

    Args:
        styles: the CSS of some cells, such as `{(0, 2, 1): "font-weight: bold"}`.
        align: of the texts in all columns but the first.
    """
    return _template().render(
        header=header,
        sections=sections,
        notes=notes,
        title=title,
        styles=styles or {},
        align=align,
        size=_SHOWN,
    )


def thumbnail(image: ImageInput | None, caption: str) -> Thumbnail:
    """A grey square for no image, a broken one and a URL: the display of a data set opens no connection."""
    if image is None or _is_remote(image):
        return Thumbnail(None, caption)
    try:
        return Thumbnail(data_uri(image, _THUMBNAIL), caption)
    except UnreadableImageError:
        return Thumbnail(None, caption)


def data_uri(image: ImageInput, size: int) -> str:
    """The image as a data: URI, reduced to sides of at most `size` pixels."""
    loaded = load_image(image)
    if max(loaded.size) > size:
        loaded = loaded.copy()
        loaded.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    loaded.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _is_remote(image: ImageInput) -> bool:
    if isinstance(image, dict):
        image = image.get("path") or "" if image.get("bytes") is None else image["bytes"]
    return isinstance(image, str) and is_url(image)


@cache
def _template() -> Template:
    environment = Environment(loader=PackageLoader("cca_hf.data", ""), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment.get_template("table.html")
