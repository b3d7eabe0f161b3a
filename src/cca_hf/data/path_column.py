"""Which column of a table has the paths or URLs of the images."""

import os
import re

import pyarrow as pa  # type: ignore[import-untyped]

from cca_hf.models.fetching import is_url

from .image_column import image_of_text
from .image_files import image_suffixes

# without case, spaces, dashes and underscores; the first one in a table is taken
_USUAL_NAMES = (
    *("filename", "image", "imagepath", "path", "filepath", "file", "imagefile", "imagefilename", "imagename"),
    *("img", "imgpath", "photo", "photopath", "picture", "imageurl", "imgurl", "photourl", "imagelink", "url"),
)
_LOOKED_AT = 200  # rows
_NEEDED_SHARE = 0.5  # of the cells that are not empty


def find_path_column(table: pa.Table, folder: str) -> str | None:
    """The column of texts whose cells name images; None if there is none.

    A cell names an image if it ends in the suffix of an image format, if it is a file, or if it contains an image. A
    column with a usual name, such as `file_name` or `image_url`, comes before others, and its URLs need no suffix.

    Args:
        folder: the paths are relative to it.

    Raises:
        ValueError: if several columns name images, and none has a usual name.
    """
    suffixes = image_suffixes()
    found = []
    for name in table.column_names:
        if not is_text(table.schema.field(name).type):
            continue
        cells = [cell for cell in table.column(name).slice(0, _LOOKED_AT).to_pylist() if cell and cell.strip()]
        is_usual = _plain(name) in _USUAL_NAMES
        number = sum(_names_image(cell, folder, suffixes) or (is_usual and is_url(cell.strip())) for cell in cells)
        if cells and number >= _NEEDED_SHARE * len(cells):
            found.append(name)
    for usual in _USUAL_NAMES:
        for name in found:
            if _plain(name) == usual:
                return name
    if len(found) > 1:
        raise ValueError(f"several columns name images: {', '.join(found)}")
    return found[0] if found else None


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def absolute_path(folder: str, path: str) -> str:
    """The place of a path that is relative to `folder`, with the separators of Windows or of this system."""
    place = os.path.join(folder, path)
    if "\\" in path and not os.path.exists(place):
        place = os.path.join(folder, path.replace("\\", "/"))
    return os.path.abspath(place)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()


def _names_image(cell: str, folder: str, suffixes: frozenset[str]) -> bool:
    image = image_of_text(cell)
    if image is None or image["bytes"] is not None:
        return image is not None
    text = cell.strip()
    place = re.split("[?#]", text)[0] if is_url(text) else text
    if os.path.splitext(place)[1].lower() in suffixes:
        return True
    return not is_url(text) and os.path.isfile(absolute_path(folder, text))
