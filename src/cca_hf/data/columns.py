"""Converts attribute columns of any type to integer labels with named values.

A value is read in the same way from all types and splits: 1, 1.0 and "1" are one value, and so are True and "true".

Only the label columns are read, through Arrow: images are neither loaded nor decoded.
"""

import difflib
import logging
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from .values import same_value

logger = logging.getLogger(__name__)

ValueSetKind: TypeAlias = Literal["all", "maybe"]
_SHOWN_GROUPS = 5
_ONE_VALUE = (
    "An attribute has one value for each image: keep the main one in this column, and put a list of all of them into "
    "a column {0}_all of a JSON lines or parquet file or a DataFrame, which the evaluation reads"
)


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
    if len({column.type for column in columns if len(column)}) > 1:
        columns = [_as_texts(column) for column in columns]
    codes, _ = _codes(pa.chunked_array([chunk for column in columns for chunk in column.chunks]))
    return dict(zip(splits, np.split(codes, np.cumsum([len(column) for column in columns])[:-1]), strict=True))


def encode_labels(
    name: str, columns: dict[str, pa.ChunkedArray], features: dict[str, object], values: Sequence[str] | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Converts the columns of one attribute (split -> column) to ids and value names.

    A `ClassLabel` keeps its names. Other columns get `values`, or else the sorted values of all splits (integers by
    size). None, -1, NaN and blank strings mean "not labelled" and become -1. A warning shows names that differ only in
    spaces, case or zeros.

    Returns:
        split -> int64 ids of shape (images,), and the value names in id order.
    """
    encoded = {split: _encode(name, column, features[split]) for split, column in columns.items()}
    if values is None:
        vocabularies = [feature.names for feature in features.values() if isinstance(feature, datasets.ClassLabel)]
        if len(vocabularies) == len(features) and all(names == vocabularies[0] for names in vocabularies):
            _warn_of_similar_names(name, vocabularies[0])
            return {split: codes for split, (codes, _) in encoded.items()}, list(vocabularies[0])
        values = _value_names({value for _, found in encoded.values() for value in found if value is not None})
        _warn_of_similar_names(name, values)
        _check_one_value_each(name, values)
    ids = {value: index for index, value in enumerate(values)}
    ids_of_same = {same_value(value): index for value, index in reversed(ids.items())}
    labels = {}
    for split, (codes, split_values) in encoded.items():
        # the last entry is for the code -1
        table = np.array([_id_of(value, ids, ids_of_same) for value in (*split_values, None)])
        used = np.unique(codes[codes >= 0]).tolist()
        unknown = [str(split_values[code]) for code in used if table[code] < 0 and split_values[code] is not None]
        if unknown:
            shown = missing_message(f"value of the attribute {name!r} called", unknown[:5], values)
            raise ValueError(f"split {split!r} contains {len(unknown)} unexpected value(s): {shown}")
        labels[split] = table[codes]
    return labels, list(values)


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _id_of(value: str | int | None, ids: Mapping[str, int], ids_of_same: Mapping[str | int, int]) -> int:
    return -1 if value is None else ids.get(str(value), ids_of_same.get(same_value(value), -1))


def _value_names(found: Iterable[str | int]) -> list[str]:
    """One name for each value, sorted. A value that is spelled in one way keeps this spelling."""
    found = list(found)
    spellings: dict[str | int, set[str]] = {}
    for value in found:
        spellings.setdefault(same_value(value), set()).add(str(value))
    names = {value: min(texts) if len(texts) == 1 else str(value) for value, texts in spellings.items()}
    numbers = [value for value in names if isinstance(value, int)]
    if len(numbers) == len(names) and any(isinstance(value, int) for value in found):
        return [names[value] for value in sorted(numbers)]
    return sorted(names.values())


def _warn_of_similar_names(attribute: str, names: Sequence[str]) -> None:
    groups: dict[str, list[str]] = {}
    for name in names:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        groups.setdefault(plain.lstrip("0") if plain.isdigit() else plain, []).append(name)
    similar = [", ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    if similar:
        more = f"; and {len(similar) - _SHOWN_GROUPS:,} more" if len(similar) > _SHOWN_GROUPS else ""
        text = (
            "the attribute %r has values that differ only in spaces, case or zeros; they stay different values: %s%s"
        )
        logger.warning(text, attribute, "; ".join(similar[:_SHOWN_GROUPS]), more)


def several_values(names: Collection[str]) -> str | None:
    """A name such as `red|blue`, whose parts are values of other images too; None without such a name."""
    parts_of = {name: [part.strip() for part in name.split("|")] for name in names}
    counts = Counter(part for parts in parts_of.values() for part in set(parts))
    combined = (name for name, parts in parts_of.items() if len(parts) > 1 and any(counts[part] > 1 for part in parts))
    return next(combined, None)


def _check_one_value_each(attribute: str, names: Collection[str]) -> None:
    cell = several_values(names)
    if cell is not None:
        raise ValueError(
            f"the column {attribute!r} has cells with several values, such as {cell!r}. {_ONE_VALUE.format(attribute)}"
        )


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
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        raise ValueError(f"the column {name!r} contains lists. {_ONE_VALUE.format(name)}")
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
        if not np.all(np.abs(numbers[~holes]) < 2.0**63):
            raise ValueError(f"the column {name!r} contains infinite or huge numbers; empty or correct these cells")
        if not np.all(numbers[~holes] == np.round(numbers[~holes])):
            fraction = numbers[~holes][numbers[~holes] != np.round(numbers[~holes])][0]
            raise ValueError(
                f"the column {name!r} contains fractions, such as {fraction:g}; convert it to a few named ranges "
                "first, such as 'under 50' and '50 to 100' (pandas.cut does this)"
            )
        column = pa.chunked_array([pa.array(np.where(holes, -1, numbers).astype(np.int64))])
    elif pa.types.is_boolean(kind):
        column = pc.if_else(column, "true", "false")
    elif pa.types.is_null(kind):
        column = column.cast(pa.string())
    codes, values = _codes(column)
    return codes, [None if _is_blank(value) or same_value(value) == -1 else value for value in values]


def _as_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with one text for one value, so that columns of other types can be compared with it."""
    codes, values = _codes(column)
    texts = pa.array([None if _is_blank(value) else str(same_value(value)) for value in values], pa.string())
    return pa.chunked_array([texts.take(pa.array(codes, mask=codes < 0))])


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list]:
    """int64 codes, -1 for missing values, and the values that they stand for."""
    coded = column.combine_chunks().dictionary_encode()
    codes = pc.fill_null(coded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return codes, coded.dictionary.to_pylist()
