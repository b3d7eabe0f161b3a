"""Images with values of attributes to recognise: one of several values, any number of values, or yes and no.

A column of lists holds any number of values. As everywhere in the package, the lists of an attribute are in a column
`<attribute>_all`, and its column has the first value of each list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import ClassLabel, Dataset, DatasetDict, LargeList, List

from .columns import ColumnPlace, column_places, encode_labels
from .loading import load_attribute_dataset, with_usual_names
from .schema import AttributeDataset
from .sources import Source, load_source

NOT_LABELLED = -1.0
_SHOWN = 5
_NO_AND_YES = (("no", "yes"), ("false", "true"), ("0", "1"))
_ALL = "_all"


@dataclass(frozen=True, repr=False)
class RecognitionDataset(AttributeDataset):
    """An [`AttributeDataset`] that knows how many values of an attribute an image has.

    Args:
        kinds: `"exclusive"`, `"multiple"` or `"binary"` by attribute, as `attribute_kinds` of a configuration.
    """

    kinds: dict[str, str] = field(default_factory=dict)

    @property
    def slices(self) -> dict[str, slice]:
        """Attribute -> its columns in `targets`: one for each value, or one for the second value if it is binary."""
        slices, start = {}, 0
        for name, values in self.attributes.items():
            stop = start + (1 if self.kinds[name] == "binary" else len(values))
            slices[name] = slice(start, stop)
            start = stop
        return slices

    def targets(self, split: str) -> np.ndarray:
        """(images, columns of `slices`) float32: 1 and 0, and -1 where an image is not labelled."""
        ids, sets = self.labels(split), self.value_sets(split, "all")
        slices = self.slices
        targets = np.full((len(ids), max(part.stop for part in slices.values())), NOT_LABELLED, np.float32)
        for index, (name, part) in enumerate(slices.items()):
            if self.kinds[name] == "multiple":
                labelled = _has_list(self[split], name)
                targets[labelled, part] = sets[name][labelled]
                continue
            labelled = ids[:, index] >= 0
            one_hot = np.eye(len(self.attributes[name]), dtype=np.float32)[ids[labelled, index]]
            targets[labelled, part] = one_hot[:, 1:] if self.kinds[name] == "binary" else one_hot
        return targets

    def count_values(self, split: str) -> dict[str, dict[str, int]]:
        """Attribute -> value -> number of images that have it."""
        targets, counts = self.targets(split), {}
        for name, part in self.slices.items():
            of_values = (targets[:, part] == 1).sum(axis=0).tolist()
            if self.kinds[name] == "binary":
                of_values.insert(0, int((targets[:, part] == 0).sum()))
            counts[name] = dict(zip(self.attributes[name], of_values, strict=True))
        return counts


def load_recognition_dataset(
    source: Source,
    attributes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    *,
    kinds: Mapping[str, str] | None = None,
    group_column: str | None = None,
    image_column: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    make_splits: bool = True,
    split_seed: int = 0,
    on_unreadable: Literal["error", "skip"] = "error",
) -> RecognitionDataset:
    """Loads images whose values are to be recognised.

    Args:
        source, group_column, image_column, config_name, revision, make_splits, split_seed, on_unreadable: as in
            [`load_attribute_dataset`].
        attributes: the attribute columns, as in [`load_attribute_dataset`], or columns of lists. A mapping also sets
            the values and their order, as in a trained model.
        kinds: of the attributes of a trained model. Default: `"multiple"` for lists; `"binary"` for booleans and for
            the values no and yes, false and true, or 0 and 1; otherwise `"exclusive"`.

    Raises:
        ValueError: for a column that is missing or does not fit its kind, and see [`load_attribute_dataset`].
    """
    loaded = load_source(source, config_name, revision, image_column=image_column, on_unreadable=on_unreadable)
    splits = with_usual_names(loaded)
    values = dict(attributes) if isinstance(attributes, Mapping) else {}
    several = _columns_of_lists(splits, () if attributes is None or isinstance(attributes, str) else attributes)
    for name in several:
        splits = _with_first_values(splits, name, values.get(name))
    data = load_attribute_dataset(
        splits,
        attributes,
        group_column=group_column,
        image_column=image_column,
        make_splits=make_splits,
        split_seed=split_seed,
        check_labels=False,
    )
    _check_kinds(kinds or {}, several)
    found = {name: "multiple" if name in several else _kind_of(names) for name, names in data.attributes.items()}
    if kinds is not None:
        found = {name: kinds.get(name, "exclusive") for name in data.attributes}
    return RecognitionDataset(
        data.splits, data.attributes, data.group_column, data.coverage, data.cut_splits, kinds=found
    )


def check_learnable(data: RecognitionDataset) -> None:
    """Checks that a model can learn each attribute from the training images, and can know the values elsewhere.

    Raises:
        ValueError: if the training images have no two answers for an attribute, or another split has a value that no
            training image has.
    """
    known = data.count_values("train")
    for name, counts in known.items():
        present = [value for value, count in counts.items() if count]
        least = 1 if data.kinds[name] == "multiple" else 2
        if len(present) < least:
            shown = f"only {present[0]!r}" if present else "no label"
            raise ValueError(
                f"the attribute {name!r} cannot be learned: in the training images it has {shown}. Label some "
                "images, or leave the attribute out of --attributes"
            )
    for split in data.splits:
        for name, counts in data.count_values(split).items():
            new = [value for value, count in counts.items() if count and not known[name][value]]
            if new and split not in data.cut_splits:
                images = sum(counts[value] for value in new)
                shown = ", ".join(map(repr, new[:_SHOWN])) + (", ..." if len(new) > _SHOWN else "")
                raise ValueError(
                    f"{images} labels of {name!r} in the split {split!r} are values that no training image has: "
                    f"{shown}. Move some of these images into the training split, or empty these cells"
                )


def is_labelled(rows: Dataset, name: str) -> np.ndarray:
    """(images,) bool: whether each row has a value, or a list of values, of an attribute; False without a column."""
    place = column_places(rows.features).get(name)
    if place is None:
        return np.zeros(rows.num_rows, bool)
    feature, column = place.feature(rows.features), place.read(rows)
    if isinstance(feature, List | LargeList):
        return np.asarray(pc.is_valid(column))
    ids, _ = encode_labels(name, {"rows": column}, {"rows": feature})
    return ids["rows"] >= 0


def with_indicator_columns(rows: Dataset, column: str, names: Sequence[str]) -> Dataset:
    """Replaces a column of fixed-length lists of 0 and 1 by one column of no and yes for each of its places.

    Args:
        names: of the new columns, in the order of the lists.

    Raises:
        ValueError: for a list of another length, or a number other than 0 and 1.
    """
    lists = ColumnPlace(column).read(rows).combine_chunks()
    numbers = pc.list_flatten(lists).to_numpy(zero_copy_only=False)
    if len(numbers) != rows.num_rows * len(names) or not np.isin(numbers, (0, 1)).all():
        raise ValueError(f"each list in {column!r} must be {len(names)} numbers, 0 or 1: one for each name")
    table = numbers.reshape(rows.num_rows, len(names)).astype(np.int64)
    for place, name in enumerate(names):
        rows = rows.add_column(name, table[:, place], feature=ClassLabel(names=["no", "yes"]))
    return rows.remove_columns(column)


def _columns_of_lists(splits: DatasetDict, names: Sequence[str] | Mapping[str, Sequence[str]]) -> list[str]:
    return [
        name
        for name in names
        if all(isinstance(rows.features.get(name), List | LargeList) for rows in splits.values())
    ]


def _check_kinds(kinds: Mapping[str, str], several: Sequence[str]) -> None:
    for name, kind in kinds.items():
        if kind == "multiple" and name not in several:
            raise ValueError(
                f"the model recognises any number of values of {name!r}: the column must contain lists in all splits"
            )


def _kind_of(values: Sequence[str]) -> str:
    return "binary" if tuple(value.casefold() for value in values) in _NO_AND_YES else "exclusive"


def _has_list(rows: Dataset, name: str) -> np.ndarray:
    return np.asarray(pc.is_valid(ColumnPlace(f"{name}{_ALL}").read(rows)))


def _with_first_values(splits: DatasetDict, name: str, values: Sequence[str] | None) -> DatasetDict:
    """Renames a column of lists to `<name>_all`, and adds the first value of each list as the column `name`."""
    lists = f"{name}{_ALL}"
    for split, rows in splits.items():
        if lists in rows.column_names:
            raise ValueError(
                f"the split {split!r} has the lists {name!r} and also a column {lists!r}: remove or rename one of them"
            )
    columns = {split: ColumnPlace(name).read(rows).combine_chunks() for split, rows in splits.items()}
    items = {split: pa.chunked_array([pc.list_flatten(column)]) for split, column in columns.items()}
    features = {split: rows.features[name].feature for split, rows in splits.items()}
    ids, names = encode_labels(name, items, features, values)
    result = DatasetDict()
    for split, rows in splits.items():
        parents, present = pc.list_parent_indices(columns[split]).to_numpy(), ids[split] >= 0
        first = np.full(rows.num_rows, -1, np.int64)
        first[parents[present][::-1]] = ids[split][present][::-1]  # writes the first of several values last
        renamed = rows.with_format(None).rename_column(name, lists)
        result[split] = renamed.add_column(name, first, feature=ClassLabel(names=names))
    return result
