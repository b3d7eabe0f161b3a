"""Which of the images that a data set lists exist: many benchmarks are available in part, and results must say so.

A row whose `image` is null is an image that is missing. It is left out on loading, counted and reported.
"""

import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Image

from cca_hf.models.images import TRUST_DATA, trusts_data

from .columns import ColumnPlace, check_names
from .containment import is_inside

logger = logging.getLogger(__name__)

FILE_NAME_COLUMN = "file_name"


@dataclass(frozen=True)
class Coverage:
    """How many of the listed images exist."""

    found: int
    listed: int

    @property
    def share(self) -> float:
        """In [0, 1]; 1 if nothing is listed."""
        return self.found / self.listed if self.listed else 1.0

    def __str__(self) -> str:
        return f"{self.found:,} of {self.listed:,} images found; results are for a subset"


def leave_out_missing(splits: DatasetDict, image_column: str) -> tuple[DatasetDict, dict[str, Coverage]]:
    """The splits without the rows that have no image, and the coverage of the splits that had such rows.

    Raises:
        ValueError: if no image of a split exists.
    """
    kept, coverage = DatasetDict(), {}
    for split, dataset in splits.items():
        present = rows_with_image(dataset, image_column)
        if len(present) == 0:
            raise ValueError(f"none of the {dataset.num_rows:,} images of the split {split!r} exists")
        kept[split] = dataset
        if len(present) < dataset.num_rows:
            kept[split] = dataset.select(present)
            coverage[split] = Coverage(len(present), dataset.num_rows)
    if coverage:
        logger.warning("images are missing: %s", "; ".join(f"{split}: {part}" for split, part in coverage.items()))
    return kept, coverage


def with_images_of(splits: Mapping[str, Dataset], image_column: str, image_root: str | PathLike[str]) -> DatasetDict:
    """The same rows with the images below `image_root`, at the paths in their column `file_name`.

    Raises:
        ValueError: if there is no column `file_name`, or it contains other values than strings.
        FileNotFoundError: if the folder does not exist.
    """
    root = Path(image_root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root} with images")
    renewed = DatasetDict()
    for split, dataset in splits.items():
        context = "image_root needs the file names of the images: "
        check_names("column", [FILE_NAME_COLUMN], dataset.column_names, context)
        names = ColumnPlace(FILE_NAME_COLUMN).read(dataset).to_pylist()
        strangers = [name for name in names if not isinstance(name, str | None)]
        if strangers:
            raise ValueError(f"{FILE_NAME_COLUMN!r} of the split {split!r} must be strings, got {strangers[0]!r}")
        images = [None if name is None else image_cell(root, name) for name in names]
        kept = dataset.remove_columns([image_column] if image_column in dataset.column_names else [])
        renewed[split] = kept.add_column(image_column, images, feature=Image(decode=False))
    return renewed


def image_cell(root: Path, name: str) -> dict[str, str | None] | None:
    """The absolute path of a file that is not empty, as the cell of an image column; None if there is none.

    Raises:
        ValueError: if the name, which comes from data, leads out of `root`.
    """
    path = os.path.abspath(os.path.join(root, name))
    folder = os.path.abspath(root)
    if not trusts_data() and path != folder and not is_inside(path, [os.path.join(folder, "")]):
        raise ValueError(
            f"the file name {name[:200]!r} leads out of {root}; if you trust the data, set {TRUST_DATA}=1"
        )
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null character in the name
        return None
    return {"bytes": None, "path": path} if status.st_size and stat.S_ISREG(status.st_mode) else None


def rows_with_image(dataset: Dataset, image_column: str) -> np.ndarray:
    """The rows whose image is not null."""
    if dataset.data.column(image_column).null_count == 0:  # known without reading any row
        return np.arange(dataset.num_rows)
    batches = dataset.select_columns([image_column]).with_format("arrow").iter(1000)
    present = [table.column(image_column).is_valid().to_numpy() for table in batches]
    return np.flatnonzero(np.concatenate(present)) if present else np.arange(0)
