"""Tables of images as data sets: files, DataFrames, and lists of rows. One column has the images.

The paths in a file are relative to its folder, and must stay in it, as in every data set from elsewhere; see
`containment.py`. A DataFrame and a list are the user's own program: their paths may lead anywhere.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, Features, Image
from PIL import Image as PILImage

from cca_hf.models.fetching import is_url
from cca_hf.models.images import UnreadableImageError, load_image

from .columns import ColumnPlace, check_names
from .coverage import FILE_NAME_COLUMN
from .image_column import IMAGE_COLUMN, image_kind, image_of_text
from .image_files import TABLE_SUFFIXES
from .metadata import array_of, columns_of_frame, columns_of_rows, read_tables, shown_columns
from .path_column import absolute_path, find_path_column, is_text

logger = logging.getLogger(__name__)

_FIRST_ROWS = {".parquet": 0, ".jsonl": 1}  # of other files 2, as a spreadsheet shows it below the header


@dataclass(frozen=True)
class TableImages:
    """How to find the images of a table.

    Args:
        column: default: the column whose cells name images, see `find_path_column`.
        reads_images: False leaves the paths as they are, in the column `file_name`, for an `image_root`.
        on_unreadable: "skip" makes a row whose image file is missing a row without an image, which is left out.
    """

    column: str | None = None
    reads_images: bool = True
    on_unreadable: Literal["error", "skip"] = "error"


@dataclass(frozen=True)
class _Origin:
    """Where a table comes from, for its paths and messages."""

    name: str
    folder: str
    first_row: int = 0


def load_table(file: Path, images: TableImages) -> Dataset:
    """The rows of a CSV, TSV, Excel, JSON lines or parquet file, with the images in an undecoded image column.

    Raises:
        ValueError: if the file cannot be read, has no rows or no column of images, or names a missing image file; the
            message names the file, the row and the path.
        ImportError: for an Excel file without openpyxl.
    """
    suffix = file.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise ValueError(
            f"{str(file)!r} is a file that is no table ({', '.join(TABLE_SUFFIXES)}); give a table, or the folder "
            "that contains the data set"
        )
    origin = _Origin(str(file), str(file.absolute().parent), _FIRST_ROWS.get(suffix, 2))
    (table,) = read_tables([file])
    return _with_images(_dataset(table), images, origin)


def load_frame(frame: pandas.DataFrame | pa.Table, images: TableImages) -> Dataset:
    """The rows of a DataFrame of pandas, or of an Arrow table; see `load_table`.

    The cells of a pandas column may also be PIL images, bytes or arrays.
    """
    name = "the DataFrame" if isinstance(frame, pandas.DataFrame) else "the table"
    dataset = _dataset_of_columns(columns_of_frame(frame)) if isinstance(frame, pandas.DataFrame) else _dataset(frame)
    return _with_images(dataset, images, _Origin(name, os.getcwd()))


def load_rows(rows: Sequence[Mapping[str, object]], images: TableImages) -> Dataset:
    """A list of dicts, one for each image, which is a path, URL, PIL image, bytes or an array; see `load_table`."""
    strangers = [row for row in rows if not isinstance(row, Mapping)]
    if strangers:
        raise TypeError(f"a list of rows contains a dict for each image; got {type(strangers[0]).__name__}")
    dataset = _dataset_of_columns(columns_of_rows(rows))
    return _with_images(dataset, images, _Origin("the list", os.getcwd()))


# ---- From columns to a data set ----


def _dataset(table: pa.Table) -> Dataset:
    """A table of any origin, with types that all versions of `datasets` know."""
    for place, name in enumerate(table.column_names):
        column = table.column(name)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        kind = {"string_view": pa.string(), "binary_view": pa.binary()}.get(str(kind), kind)  # of polars
        if kind != column.type:
            table = table.set_column(place, name, column.cast(kind))
    return Dataset(table)


def _dataset_of_columns(columns: Mapping[str, Sequence[object]]) -> Dataset:
    arrays, features = {}, Features()
    for name, cells in columns.items():
        if any(map(_is_image, cells)):
            arrays[name] = pa.array([_image_cell(row, cell) for row, cell in enumerate(cells)], Image().pa_type)
            features[name] = Image(decode=False)
        else:
            arrays[name] = array_of([str(cell) if isinstance(cell, os.PathLike) else cell for cell in cells])
            features[name] = Features.from_arrow_schema(pa.schema([(name, arrays[name].type)]))[name]
    return Dataset(pa.table(arrays).replace_schema_metadata(features.arrow_schema.metadata))


def _is_image(cell: object) -> bool:
    if isinstance(cell, Mapping):
        return "bytes" in cell or "path" in cell
    return isinstance(cell, PILImage.Image | bytes | bytearray) or (isinstance(cell, np.ndarray) and cell.ndim > 1)


def _image_cell(row: int, cell: Any) -> dict[str, Any] | None:
    if cell is None:
        return None
    if isinstance(cell, np.ndarray):
        try:
            cell = load_image(cell)
        except UnreadableImageError as error:
            raise ValueError(f"row {row}: {error}") from error
    if isinstance(cell, os.PathLike):  # datasets 4.0 takes a text only
        cell = os.fspath(cell)
    return Image().encode_example(dict(cell) if isinstance(cell, Mapping) else cell)


# ---- The column of images ----


def _with_images(dataset: Dataset, images: TableImages, origin: _Origin) -> Dataset:
    if dataset.num_rows == 0:
        raise ValueError(f"{origin.name} contains no rows")
    if images.column is not None:
        check_names("image column", [images.column], dataset.column_names, f"{origin.name}: ")
    column = images.column or _find_image_column(dataset, origin)
    if not is_text(dataset.data.schema.field(column).type):
        is_image = image_kind(dataset.features[column]) == "image"
        return dataset.cast_column(column, Image(decode=False)) if is_image else dataset
    if not images.reads_images:
        return _with_file_names(dataset, column, images.column or IMAGE_COLUMN)
    texts = ColumnPlace(column).read(dataset).to_pylist()
    cells = [None if text is None else _image_of_path(text, origin.folder) for text in texts]
    missing = [row for row, cell in enumerate(cells) if cell is not None and _is_missing(cell)]
    if missing:
        problem = (
            f"{origin.name}, row {origin.first_row + missing[0]}: there is no image '{texts[missing[0]]}'. "
            f"{len(missing):,} of {len(texts):,} rows name missing files"
        )
        if images.on_unreadable == "error":
            raise ValueError(
                f"{problem}. Paths are relative to {origin.folder}, or to an image_root. Correct them, or leave the "
                "rows out with on_unreadable='skip' or --on_unreadable skip"
            )
        logger.warning("%s; these rows are left out", problem)
        for row in missing:
            cells[row] = None
    if dataset.column_names == [column]:
        return Dataset.from_dict({column: cells}, Features({column: Image(decode=False)}))
    return dataset.remove_columns(column).add_column(column, cells, feature=Image(decode=False))


def _find_image_column(dataset: Dataset, origin: _Origin) -> str:
    images = [name for name, feature in dataset.features.items() if image_kind(feature) == "image"]
    if IMAGE_COLUMN in images:
        return IMAGE_COLUMN
    if len(images) > 1:
        raise ValueError(
            f"{origin.name}: several columns contain images: {', '.join(images)}; choose one with image_column"
        )
    if images:
        return images[0]
    try:
        found = find_path_column(dataset.data.table, origin.folder)
    except ValueError as error:
        raise ValueError(f"{origin.name}: {error}; choose one with image_column") from error
    if found is not None:
        return found
    if IMAGE_COLUMN in dataset.column_names and not is_text(dataset.data.schema.field(IMAGE_COLUMN).type):
        return IMAGE_COLUMN  # such as lists of images
    raise ValueError(
        f"{origin.name}: no column names images. One column must contain the path of each image, relative to "
        f"{origin.folder}, or its URL. The columns are {shown_columns(dataset.column_names)}"
    )


def _image_of_path(text: str, folder: str) -> dict[str, Any] | None:
    image = image_of_text(text)
    if image is None or image["bytes"] is not None:
        return image
    path = text.strip()
    return {"bytes": None, "path": path if is_url(path) else absolute_path(folder, path)}


def _is_missing(image: dict[str, Any]) -> bool:
    return image["bytes"] is None and not is_url(image["path"]) and not os.path.isfile(image["path"])


def _with_file_names(dataset: Dataset, column: str, image_column: str) -> Dataset:
    """The paths in the column `file_name`, from which `with_images_of` makes the `image_column`."""
    names = [
        None if text is None else text.strip().replace("\\", "/")
        for text in ColumnPlace(column).read(dataset).to_pylist()
    ]
    others = [name for name in dataset.column_names if name not in (column, FILE_NAME_COLUMN, image_column)]
    kept = dataset.select_columns([column, *others])
    if column != image_column:
        kept = kept.rename_column(column, image_column)
    return kept.add_column(FILE_NAME_COLUMN, names)
