"""Published changes of values as a data set: the file name of a reference, and the new values of its attributes.

`cca data prepare` writes them as the configuration `changes`: the columns `reference`, `positive` and `negative`, and
a column for each attribute, null where the attribute stays.
"""

import logging

import numpy as np
from datasets import Dataset, DatasetDict

from .columns import ColumnPlace, check_names
from .coverage import FILE_NAME_COLUMN
from .schema import AttributeDataset
from .split_names import same_split
from .value_changes import Changes, draw_targets
from .values import same_value

logger = logging.getLogger(__name__)

CHANGES_CONFIG = "changes"
REFERENCE_COLUMN = "reference"
TRIPLET_COLUMNS = ("positive", "negative")  # file names of an image with the target labels and of another; or null


def holds_changes(source: DatasetDict) -> bool:
    """Whether every split has the columns of changes, and no image."""
    return all(REFERENCE_COLUMN in rows.column_names and "image" not in rows.column_names for rows in source.values())


def read_changes(source: DatasetDict, data: AttributeDataset, split: str, gallery_split: str | None = None) -> Changes:
    """The changes of a split. Changes whose reference or target is missing are left out, and a warning counts them.

    Args:
        source: the configuration `changes`.
        data: the images, with the column `file_name`.
        split: the split of the references.
        gallery_split: the split of the targets, if it is another one.

    Raises:
        KeyError, ValueError: if a split, a column or a value is missing.
    """
    split = same_split(split, data.splits)
    check_names("split of changes", [split], source)
    rows, images = source[split], data.splits[split]
    check_names("column", [FILE_NAME_COLUMN], images.column_names, f"in the split {split!r}: ")
    check_names("attribute of the changes", data.attributes, rows.column_names)
    left_out = sorted(set(rows.column_names) - {REFERENCE_COLUMN, *TRIPLET_COLUMNS, *data.attributes})
    if left_out:
        raise ValueError(f"the changes are also of {', '.join(left_out)}: evaluate all of these attributes")
    row_of = {name: row for row, name in enumerate(ColumnPlace(FILE_NAME_COLUMN).read(images).to_pylist())}
    names = ColumnPlace(REFERENCE_COLUMN).read(rows).to_pylist()
    reference = np.array([row_of.get(name, -1) for name in names], dtype=np.int64)
    new = np.stack([_values(rows, name, values) for name, values in data.attributes.items()], axis=1)
    changes = Changes(reference, new >= 0, np.where(new >= 0, new, data.labels(split)[reference]))
    changes = changes.select(reference >= 0)
    targets = draw_targets(changes, data.labels(gallery_split or split), np.random.default_rng(0))
    changes = changes.select(targets >= 0)
    if len(changes) < len(reference):
        text = "%d of %d changes are left out, because the image of the reference or of the target is missing"
        logger.warning(text, len(reference) - len(changes), len(reference))
    return changes


def _values(rows: Dataset, name: str, values: list[str]) -> np.ndarray:
    """(rows,) ids of the new values of an attribute, -1 = no change."""
    ids = {same_value(value): number for number, value in enumerate(values)}
    column = ColumnPlace(name).read(rows).to_pylist()
    check_names(
        f"value of {name}", [str(each) for each in column if each is not None and same_value(each) not in ids], values
    )
    return np.array([-1 if each is None else ids[same_value(each)] for each in column], dtype=np.int64)
