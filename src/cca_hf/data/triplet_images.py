"""The distinct pictures of a triplet data set: one picture stands in many triplets, and needs to be embedded once."""

import hashlib
from collections.abc import Iterator
from os import PathLike

import numpy as np
from datasets import Dataset, DatasetDict, Image, concatenate_datasets

from .columns import ColumnPlace, missing_message
from .coverage import FILE_NAME_COLUMN
from .schema import IMAGE_COLUMN
from .sources import load_source
from .splits import with_usual_names
from .triplets import TRIPLET_COLUMNS


def load_triplets(
    source: str | PathLike[str], split: str = "test", config_name: str | None = None
) -> tuple[Dataset, Dataset | None]:
    """Ready triplets, and the pictures where the triplets only name them.

    A benchmark written by `cca data prepare` holds its triplets as the configuration `triplets`: file names, of the
    pictures in its default configuration.

    Returns:
        The split, and the columns `image` and `file_name` of all splits of the default configuration; None where the
        triplets hold their pictures.

    Raises:
        KeyError: if there is no such split; the message names those there are.
        ValueError: if the pictures are not where the triplets need them.
    """
    splits = with_usual_names(load_source(source, config_name, None))
    if split not in splits:
        raise KeyError(missing_message("split", [split], splits))
    triplets = splits[split]
    if config_name is None or isinstance(triplets.features[TRIPLET_COLUMNS[0]], Image):
        return triplets, None
    return triplets, _all_pictures(load_source(source, None, None))


def distinct_pictures(triplets: Dataset, pictures: Dataset | None = None) -> tuple[Dataset, np.ndarray]:
    """Each picture once, and where the triplets find theirs.

    Pictures are the same if their bytes are, or, where they are files, their paths.

    Args:
        triplets: in the schema of `to_triplet_dataset`.
        pictures: where the triplets name their pictures instead of holding them: a data set with the columns `image`
            and `file_name`.

    Returns:
        A data set with the column `image`, and its rows that the triplets are made of, (triplets, 3) int64: anchor,
        positive, negative; -1 for one that is not among `pictures`.

    Raises:
        ValueError: if a triplet lacks a picture, or `pictures` a column.
    """
    numbers: dict[bytes | str, int] = {}
    rows = np.empty((triplets.num_rows, len(TRIPLET_COLUMNS)), dtype=np.int64)
    parts = []
    for place, column in enumerate(TRIPLET_COLUMNS):
        own = triplets.select_columns([column])  # a data set of one column reads nothing of the others
        first = []
        for row, key in enumerate(_keys(own, column)):
            if key not in numbers:
                numbers[key] = len(numbers)
                first.append(row)
            rows[row, place] = numbers[key]
        parts.append(own.select(first).rename_column(column, IMAGE_COLUMN))
    if pictures is None:
        return concatenate_datasets(parts), rows
    places = _places_of(list(numbers), pictures)
    there = places >= 0
    renumbered = np.where(there, np.cumsum(there) - 1, -1)
    return pictures.select_columns([IMAGE_COLUMN]).select(places[there]), renumbered[rows]


def _all_pictures(source: DatasetDict) -> Dataset:
    parts = []
    for dataset in source.values():
        missing = [name for name in (IMAGE_COLUMN, FILE_NAME_COLUMN) if name not in dataset.column_names]
        if missing:
            raise ValueError(
                "the triplets name their pictures, which the default configuration must hold: "
                + missing_message("column", missing, dataset.column_names)
            )
        parts.append(dataset.select_columns([IMAGE_COLUMN, FILE_NAME_COLUMN]))
    return concatenate_datasets(parts).cast_column(IMAGE_COLUMN, Image(decode=False))


def _keys(pictures: Dataset, column: str) -> Iterator[bytes | str]:
    """What makes the picture of each row the picture it is."""
    row = 0
    for batch in pictures.with_format("arrow").iter(batch_size=1000):
        for picture in batch.column(column).to_pylist():
            if picture is not None and picture["bytes"] is not None:
                yield hashlib.blake2b(picture["bytes"], digest_size=16).digest()
            elif picture is not None and picture["path"] is not None:
                yield picture["path"]
            else:
                raise ValueError(f"the triplet of row {row} has no {column}: bytes and path are empty")
            row += 1


def _places_of(names: list[bytes | str], pictures: Dataset) -> np.ndarray:
    """(names,) rows of `pictures`, -1 where a picture is missing or null."""
    known = ColumnPlace(FILE_NAME_COLUMN).read(pictures).to_pylist()
    there = _is_there(pictures)
    row_of = {name: row for row, name in enumerate(known) if there[row]}
    return np.array([row_of.get(name, -1) for name in names], dtype=np.int64)


def _is_there(pictures: Dataset) -> np.ndarray:
    batches = pictures.select_columns([IMAGE_COLUMN]).with_format("arrow").iter(batch_size=1000)
    return np.concatenate([batch.column(IMAGE_COLUMN).is_valid().to_numpy() for batch in batches])
