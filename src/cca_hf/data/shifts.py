"""Protocols for other data than the training's: later images, and values that the training does not have.

Both take a data set with the splits `train`, `validation` and `test`, and return one with fewer training images. The
evaluation on its test split measures a model on data that differ from those of its training.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import ClassLabel, Dataset, DatasetDict, concatenate_datasets

from .columns import check_names, column_places, group_codes
from .image_column import IMAGE_COLUMN
from .schema import AttributeDataset

_SPLITS = ("train", "validation", "test")
_TRAINING = ("train", "validation")


def split_by_threshold(data: AttributeDataset, column: str, last: float | str) -> AttributeDataset:
    """Trains on the images up to a value of a column, and tests on those after it, such as the later years.

    `train` and `validation` keep their images with column <= last. `test` gets the images of all three splits with
    column > last, without exact copies of training images and without images of their groups. Images without a value
    in the column are left out.

    Args:
        column: a column of numbers, or of strings, which are compared in alphabetical order ("2011", "2011-05-01").
        last: the largest value of the training.

    Raises:
        ValueError: if the data set has other splits, the column is missing or contains something else, or a split is
            empty then.
    """
    _check_splits(data)
    sides = {split: _is_later(data.splits[split], split, column, last) for split in _SPLITS}
    kept = {split: data.splits[split].select(np.flatnonzero(sides[split] == 0)) for split in _TRAINING}
    later = concatenate_datasets([data.splits[split].select(np.flatnonzero(sides[split] == 1)) for split in _SPLITS])
    of_training = set(_image_digests(kept["train"]))
    foreign = np.array([digest not in of_training for digest in _image_digests(later)], dtype=bool)
    if data.group_column is not None:
        groups = group_codes({"train": kept["train"], "later": later}, data.group_column)
        foreign &= ~np.isin(groups["later"], groups["train"][groups["train"] >= 0])
    splits = DatasetDict(**kept, test=later.select(np.flatnonzero(foreign)))
    for split, dataset in splits.items():
        if not dataset.num_rows:
            raise ValueError(f"with {column} up to {last!r} in training, and the rest for test, {split!r} is empty")
    whole = data.coverage_of(*_SPLITS)
    coverage = {} if whole is None else dict.fromkeys(_SPLITS, whole)
    return replace(data, splits=splits, coverage=coverage, cut_splits=())


def leave_values_out(data: AttributeDataset, attribute: str, share: float, *, seed: int = 0) -> AttributeDataset:
    """Drops the images of some values of an attribute from `train` and `validation`; `test` stays as it is.

    The values are a random choice among those that both training and test images have, the same one for the same seed.

    Args:
        share: of these values, in (0, 1); at least one is left out, and at least two stay.

    Raises:
        ValueError: if the data set has other splits or no such attribute, if the share does not fit, or a split is
            empty then.
    """
    _check_splits(data)
    check_names("attribute", [attribute], data.attributes)
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), such as 0.2 for a fifth of the values; got {share}")
    in_training, in_test = (data.values_in(split)[attribute] for split in ("train", "test"))
    shared = [value for value in in_training if value in in_test]
    count = max(1, round(share * len(shared)))
    if len(shared) - count < 2:
        raise ValueError(
            f"{count} of the {len(shared)} values of {attribute!r} that training and test images have cannot be left "
            "out: at least two must stay"
        )
    left_out = np.random.default_rng(seed).choice(shared, count, replace=False)
    ids = [data.attributes[attribute].index(value) for value in left_out]
    index, splits = list(data.attributes).index(attribute), DatasetDict(data.splits)
    for split in _TRAINING:
        rows = np.flatnonzero(~np.isin(data.labels(split)[:, index], ids))
        if not len(rows):
            raise ValueError(f"all images of {split!r} have one of the values left out: {', '.join(left_out)}")
        splits[split] = data.splits[split].select(rows)
    return replace(data, splits=splits, cut_splits=())


def _check_splits(data: AttributeDataset) -> None:
    if set(data.splits) != set(_SPLITS):
        raise ValueError(f"this protocol needs the splits {', '.join(_SPLITS)}; got {', '.join(data.splits)}")


def _is_later(dataset: Dataset, split: str, column: str, last: float | str) -> np.ndarray:
    """(images,) int64: 1 if the value of the column is above `last`, 0 if not, -1 for a missing value."""
    places = column_places(dataset.features)
    check_names("column", [column], places, f"in the split {split!r}: ")
    column_values, feature = places[column].read(dataset), places[column].feature(dataset.features)
    kind, cells = column_values.type, column_values.to_pylist()
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if isinstance(feature, ClassLabel):
        is_number, names = False, [*feature.names, None]  # the label -1 means that there is none
        cells = [names[-1 if label is None else label] for label in cells]
    elif not (is_number or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"the column {column!r} of the split {split!r} must contain numbers or strings, got {kind}")
    threshold = _number(column, last) if is_number else str(last)
    return np.array([-1 if _is_missing(cell) else int(cell > threshold) for cell in cells], dtype=np.int64)


def _is_missing(cell: float | str | None) -> bool:
    return cell is None or cell != cell or not str(cell).strip()  # NaN is not equal to itself


def _number(column: str, last: float | str) -> float:
    try:
        return float(last)
    except ValueError:
        raise ValueError(f"the column {column!r} contains numbers, and {last!r} is none") from None


def _image_digests(dataset: Dataset) -> list[bytes]:
    """A digest of the file of each image, in the order of `dataset`; of its address if the image is a URL."""
    digests = []
    for batch in dataset.select_columns([IMAGE_COLUMN]).with_format("arrow").iter(batch_size=100):
        for image in batch.column(IMAGE_COLUMN).to_pylist():
            content = image["bytes"]
            if content is None:
                path = Path(image["path"])
                content = path.read_bytes() if path.is_file() else image["path"].encode()
            digests.append(hashlib.blake2b(content, digest_size=16).digest())
    return digests
