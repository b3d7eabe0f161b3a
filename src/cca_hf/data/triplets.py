"""Ready triplets: under the condition, the anchor is closer to the positive than to the negative.

Zappos50K is published in this form. Its schema is not that of images with labels.
"""

import hashlib
from collections.abc import Iterator, Sequence
from os import PathLike

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Image, concatenate_datasets

from .columns import ColumnPlace, check_names, encode_labels, missing_message
from .coverage import FILE_NAME_COLUMN, rows_with_image
from .image_column import IMAGE_COLUMN, with_undecoded_images
from .loading import with_usual_names
from .schema import find_split
from .sources import load_source

CONDITION_COLUMN = "condition"
TRIPLET_COLUMNS = ("anchor", "positive", "negative")


def holds_triplets(source: DatasetDict) -> bool:
    """Whether every split has the columns of ready triplets."""
    return all({CONDITION_COLUMN, *TRIPLET_COLUMNS} <= set(dataset.column_names) for dataset in source.values())


def to_triplet_dataset(dataset: Dataset, attributes: Sequence[str] | None = None) -> Dataset:
    """Converts ready triplets to their schema: `condition` is a `ClassLabel`, the three images are undecoded.

    Args:
        attributes: the conditions in the order of their ids. Default: the names of the `ClassLabel`, or the sorted
            values of the column.

    Raises:
        ValueError: if a column or a condition is missing, a condition is unknown, or the data set is empty.
    """
    check_names("column", (CONDITION_COLUMN, *TRIPLET_COLUMNS), dataset.column_names)
    if dataset.num_rows == 0:
        raise ValueError("there are no triplets: the data set is empty")
    columns, features = {"triplets": ColumnPlace(CONDITION_COLUMN).read(dataset)}, dataset.features
    labels, names = encode_labels(CONDITION_COLUMN, columns, {"triplets": features[CONDITION_COLUMN]}, attributes)
    conditions = labels["triplets"]
    if (conditions < 0).any():
        raise ValueError(f"{(conditions < 0).sum()} of {len(conditions)} triplets have no condition")
    for column in TRIPLET_COLUMNS:
        dataset = with_undecoded_images(dataset, column)
    dataset = dataset.remove_columns(CONDITION_COLUMN)
    return dataset.add_column(CONDITION_COLUMN, conditions, feature=ClassLabel(names=names))


def load_triplets(
    source: str | PathLike[str], split: str = "test", config_name: str | None = None
) -> tuple[Dataset, Dataset | None]:
    """Loads ready triplets, and their images if the triplets contain only file names.

    A benchmark written by `cca data prepare` has a configuration `triplets` with file names; the images are in its
    default configuration.

    Returns:
        The split, and the columns `image` and `file_name` of all splits of the default configuration, or None if the
        triplets contain their images.

    Raises:
        KeyError: if the split does not exist; the message names the splits that do.
        ValueError: if the default configuration lacks the columns.
    """
    splits = with_usual_names(load_source(source, config_name, None))
    found = find_split(split, splits)
    if found not in splits:
        raise KeyError(missing_message("split", [split], splits))
    triplets = splits[found]
    if config_name is None or isinstance(triplets.features[TRIPLET_COLUMNS[0]], Image):
        return triplets, None
    columns, parts = [IMAGE_COLUMN, FILE_NAME_COLUMN], []
    for images in load_source(source, None, None).values():
        context = "the triplets contain file names, and the default configuration must contain the images: "
        check_names("column", columns, images.column_names, context)
        parts.append(images.select_columns(columns))
    return triplets, with_undecoded_images(concatenate_datasets(parts), IMAGE_COLUMN)


def distinct_images(triplets: Dataset, images: Dataset | None = None) -> tuple[Dataset, np.ndarray]:
    """Every image once, since it may occur in many triplets, and the rows of the images of each triplet.

    Two images are the same if their bytes are equal; files are the same if their paths are equal.

    Args:
        triplets: in the schema of `to_triplet_dataset`.
        images: for triplets with file names instead of images: a data set with the columns `image` and
            `file_name`.

    Returns:
        A data set with the column `image`, and the rows of anchor, positive and negative in it, (triplets, 3) int64;
        -1 for an image that `images` lacks.

    Raises:
        ValueError: if a triplet lacks an image, or `images` a column.
    """
    numbers: dict[bytes | str, int] = {}
    rows = np.empty((triplets.num_rows, len(TRIPLET_COLUMNS)), dtype=np.int64)
    parts = []
    for place, column in enumerate(TRIPLET_COLUMNS):
        column_only = triplets.select_columns([column])  # other columns are not read
        first = []
        for row, key in enumerate(_keys(column_only, column)):
            if key not in numbers:
                numbers[key] = len(numbers)
                first.append(row)
            rows[row, place] = numbers[key]
        parts.append(column_only.select(first).rename_column(column, IMAGE_COLUMN))
    if images is None:
        return concatenate_datasets(parts), rows
    known = ColumnPlace(FILE_NAME_COLUMN).read(images).to_pylist()
    row_of = {known[row]: row for row in rows_with_image(images, IMAGE_COLUMN).tolist()}
    places = np.array([row_of.get(name, -1) for name in numbers], dtype=np.int64)
    present = places >= 0
    renumbered = np.where(present, np.cumsum(present) - 1, -1)
    return images.select_columns([IMAGE_COLUMN]).select(places[present]), renumbered[rows]


def _keys(images: Dataset, column: str) -> Iterator[bytes | str]:
    """For each row a hash of the bytes of the image, or its path."""
    batches = images.with_format("arrow").iter(batch_size=1000)
    for row, image in enumerate(image for batch in batches for image in batch.column(column).to_pylist()):
        if image is not None and image["bytes"] is not None:
            yield hashlib.blake2b(image["bytes"], digest_size=16).digest()
        elif image is not None and image["path"] is not None:
            yield image["path"]
        else:
            raise ValueError(f"the triplet of row {row} has no {column}: bytes and path are empty")
