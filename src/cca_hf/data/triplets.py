"""Ready triplets: under the condition, the anchor is closer to the positive than to the negative.

Zappos50K is published in this form. Triplets have a schema of their own, beside that of images with labels.
"""

from collections.abc import Sequence

from datasets import ClassLabel, Dataset, DatasetDict, Image

from .columns import ColumnPlace, encode_labels, missing_message

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
    missing = [column for column in (CONDITION_COLUMN, *TRIPLET_COLUMNS) if column not in dataset.column_names]
    if missing:
        raise ValueError(missing_message("column", missing, dataset.column_names))
    if dataset.num_rows == 0:
        raise ValueError("there are no triplets: the data set is empty")
    labels, names = encode_labels(
        CONDITION_COLUMN,
        {"triplets": ColumnPlace(CONDITION_COLUMN).read(dataset)},
        {"triplets": dataset.features[CONDITION_COLUMN]},
        attributes,
    )
    conditions = labels["triplets"]
    if (conditions < 0).any():
        raise ValueError(f"{(conditions < 0).sum()} of {len(conditions)} triplets have no condition")
    for column in TRIPLET_COLUMNS:
        dataset = dataset.cast_column(column, Image(decode=False))
    dataset = dataset.remove_columns(CONDITION_COLUMN)
    return dataset.add_column(CONDITION_COLUMN, conditions, feature=ClassLabel(names=names))
