"""Ready triplets: under this condition, the anchor is closer to the positive than to the negative.

Zappos50K is published so. They are a data set of their own, beside the schema of labelled pictures.
"""

from collections.abc import Sequence

from datasets import ClassLabel, Dataset, DatasetDict, Image

from .columns import ColumnPlace, encode_labels, missing_message

CONDITION_COLUMN = "condition"
TRIPLET_COLUMNS = ("anchor", "positive", "negative")


def holds_triplets(source: DatasetDict) -> bool:
    """Whether the columns of every split are those of ready triplets."""
    return all({CONDITION_COLUMN, *TRIPLET_COLUMNS} <= set(dataset.column_names) for dataset in source.values())


def to_triplet_dataset(dataset: Dataset, attributes: Sequence[str] | None = None) -> Dataset:
    """Brings ready triplets into their schema: `condition` a `ClassLabel`, the three images undecoded.

    Args:
        attributes: the conditions in the order of their ids. Default: the `ClassLabel`'s own, or those found, sorted.

    Raises:
        ValueError: a column is missing, a condition is missing or unknown, or there are no triplets.
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
