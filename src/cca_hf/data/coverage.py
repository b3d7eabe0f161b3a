"""Which of the pictures that a data set lists are there: a benchmark is often had in part, and figures must say so.

A row whose `image` is null stands for a picture that is missing. It is left out on loading, counted and reported.
"""

import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, DatasetDict, Image

from .columns import ColumnPlace, missing_message

logger = logging.getLogger(__name__)

FILE_NAME_COLUMN = "file_name"
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Coverage:
    """How many of the listed pictures are there."""

    found: int
    listed: int

    def __add__(self, other: "Coverage") -> "Coverage":
        return Coverage(self.found + other.found, self.listed + other.listed)

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.found / self.listed

    def __str__(self) -> str:
        return f"{self.found:,} of {self.listed:,} images found; results are for a subset"


def leave_out_missing(splits: DatasetDict, image_column: str) -> tuple[DatasetDict, dict[str, Coverage]]:
    """The splits without the rows that have no picture, and the coverage of those that had any.

    Raises:
        ValueError: if nothing is left of a split.
    """
    kept, coverage = DatasetDict(), {}
    for split, dataset in splits.items():
        present = _rows_with_picture(dataset, image_column)
        if len(present) == 0:
            raise ValueError(f"none of the {dataset.num_rows:,} pictures of the split {split!r} is there")
        kept[split] = dataset
        if len(present) < dataset.num_rows:
            kept[split] = dataset.select(present)
            coverage[split] = Coverage(len(present), dataset.num_rows)
    if coverage:
        logger.warning("pictures are missing: %s", "; ".join(f"{split}: {own}" for split, own in coverage.items()))
    return kept, coverage


def with_pictures_of(splits: Mapping[str, Dataset], image_column: str, image_root: str | PathLike[str]) -> DatasetDict:
    """The same rows with the pictures that lie under `image_root`, where their `file_name` says.

    Raises:
        ValueError: if there is no column `file_name`.
        FileNotFoundError: if there is no such folder.
    """
    root = Path(image_root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root} with pictures")
    renewed = DatasetDict()
    for split, dataset in splits.items():
        if FILE_NAME_COLUMN not in dataset.column_names:
            missing = missing_message("column", [FILE_NAME_COLUMN], dataset.column_names)
            raise ValueError(f"image_root needs the names of the pictures: {missing}")
        names = ColumnPlace(FILE_NAME_COLUMN).read(dataset).to_pylist()
        paths = [picture_path(root, name) for name in names]
        pictures = [None if path is None else {"bytes": None, "path": path} for path in paths]
        kept = dataset.remove_columns([image_column] if image_column in dataset.column_names else [])
        renewed[split] = kept.add_column(image_column, pictures, feature=Image(decode=False))
    return renewed


def picture_path(root: Path, name: str) -> str | None:
    """The absolute path of a file with something in it; None where there is none."""
    path = os.path.abspath(os.path.join(root, name))
    try:
        found = os.stat(path)
    except OSError:
        return None
    return path if found.st_size and stat.S_ISREG(found.st_mode) else None


def _rows_with_picture(dataset: Dataset, image_column: str) -> np.ndarray:
    if dataset.data.column(image_column).null_count == 0:  # known without a look at any row
        return np.arange(dataset.num_rows)
    batches = dataset.select_columns([image_column]).with_format("arrow").iter(_ROWS_AT_ONCE)
    present = [_is_valid(table.column(image_column)) for table in batches]
    return np.flatnonzero(np.concatenate(present)) if present else np.arange(0)


def _is_valid(column: pa.ChunkedArray) -> np.ndarray:
    return column.is_valid().to_numpy()
