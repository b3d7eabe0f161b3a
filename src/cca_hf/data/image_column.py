"""The image column of a data set in any form, as the rows that the image reader takes.

Training, triplets, `cca embed` and `cca index` use it. The forms are `datasets.Image`, paths and URLs as text, encoded
bytes, base64, `{"bytes", "path"}`, arrays, and lists of one image.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import (
    Array2D,
    Array3D,
    Dataset,
    Features,
    Image,
    LargeList,
    List,
    Value,
    concatenate_datasets,
)

from .columns import ColumnPlace, check_names

IMAGE_COLUMN = "image"
LONGEST_PATH = 4096  # longer texts are images in base64
_SHORTEST_BASE64 = 64
# base64 of the first bytes of JPEG, PNG, GIF, WebP, BMP, TIFF, AVIF and HEIC
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkqA", "TU0AK", "AAAA")
_BLANK_OR_CONTENT = rf"^\s*($|data:|{'|'.join(map(re.escape, _BASE64_STARTS))})"


def find_image_column(splits: Mapping[str, Dataset], image_column: str | None = None) -> str:
    """The column of this name, or else `image`, or else the only column of type `datasets.Image`.

    Raises:
        ValueError: if there is no such column in all splits, or several; names the columns.
    """
    first, *others = splits.values()
    shared = set(first.column_names).intersection(*(dataset.column_names for dataset in others))
    features = {column: feature for column, feature in first.features.items() if column in shared}
    if image_column is not None:
        check_names("image column", [image_column], features)
        return image_column
    if IMAGE_COLUMN in features:
        return IMAGE_COLUMN
    images = [column for column, feature in features.items() if isinstance(feature, Image)]
    if len(images) != 1:
        found = f"several image columns ({', '.join(images)})" if images else "no image column"
        raise ValueError(f"found {found}; choose one with image_column. Columns: {', '.join(features) or 'none'}")
    return images[0]


def with_undecoded_images(dataset: Dataset, column: str) -> Dataset:
    """The data set whose `column` is `datasets.Image(decode=False)`.

    A row without an image is None. A list of several images becomes an image that cannot be read, so that it is
    reported or skipped like any other.

    Raises:
        ValueError: if the column contains anything but images.
    """
    feature = dataset.features[column]
    item = feature
    while isinstance(item, (List, LargeList)):
        item = item.feature
    kind, is_list = image_kind(item), item is not feature
    if kind is None or (kind == "number" and not is_list):
        raise ValueError(
            f"the column {column!r} contains {feature}, not images. An image is a datasets.Image, a path or URL, "
            "bytes, base64, or a dict of bytes and path"
        )
    is_array = kind == "number"
    if kind == "null" or (is_list and not is_array) or (kind == "text" and _has_other_than_paths(dataset, column)):
        return _converted(dataset, column)
    return dataset.cast_column(column, Image(decode=False))


def image_kind(feature: object) -> Literal["image", "text", "null", "number"] | None:
    """How a column of this feature contains images, as far as its type says; None if it cannot."""
    if isinstance(feature, Value):
        if feature.dtype in ("string", "large_string"):
            return "text"
        if feature.dtype in ("binary", "large_binary"):
            return "image"
        if feature.dtype == "null":
            return "null"
        return "number" if feature.dtype.startswith(("int", "uint", "float", "bool")) else None
    is_dict = isinstance(feature, dict) and ("bytes" in feature or "path" in feature)
    return "image" if is_dict or isinstance(feature, (Image, Array2D, Array3D)) else None


def _has_other_than_paths(dataset: Dataset, column: str) -> bool:
    texts = ColumnPlace(column).read(dataset)
    found = pc.or_(
        pc.match_substring_regex(texts, _BLANK_OR_CONTENT), pc.greater(pc.binary_length(texts), LONGEST_PATH)
    )
    return bool(pc.any(found).as_py())


def _converted(dataset: Dataset, column: str) -> Dataset:
    """The column is converted row by row, into a file in the cache of `datasets`."""
    images = dataset.select_columns([column]).with_format("arrow")  # no row is decoded
    images = images.map(
        _image_rows,
        batched=True,
        batch_size=100,
        features=Features({column: Image(decode=False)}),
        fn_kwargs={"column": column},
        desc=f"Reading the column {column}",
    ).with_format(None)
    others = dataset.with_format(None).remove_columns([column])
    return concatenate_datasets([others, images], axis=1) if others.column_names else images


def _image_rows(table: pa.Table, column: str) -> pa.Table:
    rows = [_image_row(value) for value in table.column(column).to_pylist()]
    return pa.table({column: pa.array(rows, Image().pa_type)})


def _image_row(value: object) -> dict[str, object] | None:
    """One cell as the `{"bytes", "path"}` of an undecoded image; None for no image."""
    if isinstance(value, list):
        if len(value) <= 1:
            return _image_row(value[0]) if value else None
        return {"bytes": b"", "path": f"a list of {len(value)} images"}  # the reader reports this name
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
        return None if content is None and path is None else {"bytes": content, "path": path}
    if isinstance(value, str):
        return image_of_text(value)
    return None if value is None else {"bytes": value, "path": None}


def image_of_text(text: str) -> dict[str, Any] | None:
    """A text as the `{"bytes", "path"}` of an image; None if it is blank.

    A path or URL stays; content becomes bytes, so that no message shows it.
    """
    stripped = text.strip()
    if not stripped:
        return None
    is_data_url = stripped.startswith("data:")
    is_long = len(stripped) > LONGEST_PATH and not stripped.startswith(("http://", "https://"))
    if not (is_data_url or is_long or (stripped.startswith(_BASE64_STARTS) and len(stripped) >= _SHORTEST_BASE64)):
        return {"bytes": None, "path": text}
    encoded = "".join((stripped.partition(",")[2] if is_data_url else stripped).split())
    try:
        return {"bytes": base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True), "path": None}
    except binascii.Error:  # a path that begins like base64, or content in another form, which cannot be read
        return {"bytes": text.encode(), "path": None} if is_data_url or is_long else {"bytes": None, "path": text}
