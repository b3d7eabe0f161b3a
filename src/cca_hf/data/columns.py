"""Converts attribute columns of any type to integer labels with named values.

Only the label columns are read, through Arrow: images are neither loaded nor decoded.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

ValueSetKind: TypeAlias = Literal["all", "maybe"]


@dataclass(frozen=True)
class ColumnPlace:
    """The place of an attribute: a column, or one field of a struct column (the `json` of a WebDataset)."""

    column: str
    field: str | None = None

    def feature(self, features: datasets.Features) -> object:
        feature = features[self.column]
        return feature if self.field is None else feature[self.field]

    def read(self, dataset: datasets.Dataset) -> pa.ChunkedArray:
        """The column in the order of `dataset`, after `select` and `shuffle`."""
        if dataset.num_rows == 0:
            return pa.chunked_array([], type=pa.null())
        column = dataset.select_columns([self.column]).with_format("arrow")[:].column(self.column)
        return column if self.field is None else pc.struct_field(column, self.field)


def column_places(features: datasets.Features) -> dict[str, ColumnPlace]:
    """Name -> place, for all columns and struct fields. A column hides a field with the same name."""
    places: dict[str, ColumnPlace] = {}
    for column, feature in features.items():
        if isinstance(feature, dict):
            for field in feature:
                places.setdefault(field, ColumnPlace(column, field))
    places.update({column: ColumnPlace(column) for column in features})
    return places


def missing_message(kind: str, missing: Sequence[str], available: Iterable[str]) -> str:
    """The text of an error for unknown names, with the closest names and all available names."""
    names = sorted(map(str, available))
    shown = []
    for name in missing:
        close = difflib.get_close_matches(name, names, n=1)
        shown.append(f"{name!r} (did you mean {close[0]!r}?)" if close else repr(name))
    return f"no {kind} {', '.join(shown)}; there are: {', '.join(names) or 'none'}"


def check_names(kind: str, names: Iterable[str], available: Iterable[str], context: str = "") -> None:
    """Raises ValueError, whose text begins with `context`, if some names are not available."""
    missing = [name for name in names if name not in available]
    if missing:
        raise ValueError(context + missing_message(kind, missing, available))


def is_label_feature(feature: object) -> bool:
    """Whether a column of this feature can contain the values of an attribute."""
    if not isinstance(feature, (datasets.ClassLabel, datasets.Value)):
        return False
    kind = feature.dtype.rstrip("0123456789")  # without the number of bits
    return kind in ("string", "large_string", "int", "uint", "bool", "float", "null")


def integers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of integers as int64, with -1 for missing values."""
    return pc.fill_null(column.cast(pa.int64()), -1).to_numpy()


def group_codes(splits: Mapping[str, datasets.Dataset], group_column: str) -> dict[str, np.ndarray]:
    """split -> int64 codes, equal for equal values in all splits, and -1 for missing values."""
    columns = [ColumnPlace(group_column).read(dataset) for dataset in splits.values()]
    codes, _ = _codes(pa.chunked_array([chunk for column in columns for chunk in column.chunks]))
    return dict(zip(splits, np.split(codes, np.cumsum([len(column) for column in columns])[:-1]), strict=True))


def encode_labels(
    name: str, columns: dict[str, pa.ChunkedArray], features: dict[str, object], values: Sequence[str] | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Converts the columns of one attribute (split -> column) to ids and value names.

    A `ClassLabel` keeps its names. Other columns get `values`, or else the sorted values of all splits (integers by
    size). None, -1, NaN and blank strings mean "not labelled" and become -1.

    Returns:
        split -> int64 ids of shape (images,), and the value names in id order.
    """
    encoded = {split: _encode(name, column, features[split]) for split, column in columns.items()}
    if values is None:
        vocabularies = [feature.names for feature in features.values() if isinstance(feature, datasets.ClassLabel)]
        if len(vocabularies) == len(features) and all(names == vocabularies[0] for names in vocabularies):
            return {split: codes for split, (codes, _) in encoded.items()}, list(vocabularies[0])
        found = {value for _, split_values in encoded.values() for value in split_values if value is not None}
        try:
            values = [str(value) for value in sorted(found)]
        except TypeError:  # strings in one split, integers in another
            values = sorted(map(str, found))
    ids = {value: index for index, value in enumerate(values)}
    labels = {}
    for split, (codes, split_values) in encoded.items():
        used = [split_values[code] for code in np.unique(codes[codes >= 0]).tolist()]
        unknown = [str(value) for value in used if value is not None and str(value) not in ids]
        if unknown:
            shown = missing_message(f"value of the attribute {name!r} called", unknown[:5], values)
            raise ValueError(f"split {split!r} contains {len(unknown)} unexpected value(s): {shown}")
        # the last entry is for the code -1
        table = np.array([-1 if value is None else ids.get(str(value), -1) for value in (*split_values, None)])
        labels[split] = table[codes]
    return labels, list(values)


def read_value_sets(
    dataset: datasets.Dataset, split: str, attribute: str, values: list[str], kind: ValueSetKind
) -> np.ndarray | None:
    """As `AttributeDataset.value_sets`, for one attribute; None without a column of lists.

    Lists are read by the names of their values, so they stay correct if `values` has another order, that of a trained
    model. A column of that name without lists has another meaning, and is ignored.
    """
    column = f"{attribute}_{kind}"
    feature = dataset.features.get(column)
    if not isinstance(feature, (datasets.List, datasets.LargeList)):
        return None
    sets = np.zeros((dataset.num_rows, len(values)), dtype=bool)
    if dataset.num_rows:
        lists = ColumnPlace(column).read(dataset).combine_chunks()
        items = pa.chunked_array([pc.list_flatten(lists)])
        ids = encode_labels(column, {split: items}, {split: feature.feature}, values)[0][split]
        rows = pc.list_parent_indices(lists).to_numpy()
        sets[rows[ids >= 0], ids[ids >= 0]] = True
    return sets


def _encode(name: str, column: pa.ChunkedArray, feature: object) -> tuple[np.ndarray, list[str | int | None]]:
    """Codes of one split, and the values that they stand for. The code -1 and the value None mean "not labelled"."""
    if isinstance(feature, datasets.ClassLabel):
        codes = integers(column)
        if len(codes) and not -1 <= codes.min() <= codes.max() < len(feature.names):
            raise ValueError(
                f"the attribute {name!r} has {len(feature.names)} named values, so its labels must be -1 (not "
                f"labelled) to {len(feature.names) - 1}; got {codes.min()} to {codes.max()}"
            )
        return codes, list(feature.names)
    if not is_label_feature(feature):
        raise ValueError(
            f"the column {name!r} is {feature}; an attribute needs a ClassLabel, strings, integers or booleans, "
            "one value per image"
        )
    kind = column.type
    if pa.types.is_floating(kind):
        # integers with missing values are floats in a CSV file
        numbers = column.to_numpy()
        holes = np.isnan(numbers)
        if not np.all(numbers[~holes] == np.round(numbers[~holes])):
            raise ValueError(f"the column {name!r} contains fractions; convert it to a few named ranges first")
        column = pa.chunked_array([pa.array(np.where(holes, -1, numbers).astype(np.int64))])
    elif pa.types.is_boolean(kind):
        column = pc.if_else(column, "true", "false")
    elif pa.types.is_null(kind):
        column = column.cast(pa.string())
    codes, values = _codes(column)
    return codes, [
        None if value == -1 or (isinstance(value, str) and not value.strip()) else value for value in values
    ]


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list]:
    """int64 codes, -1 for missing values, and the values that they stand for."""
    coded = column.combine_chunks().dictionary_encode()
    codes = pc.fill_null(coded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return codes, coded.dictionary.to_pylist()
