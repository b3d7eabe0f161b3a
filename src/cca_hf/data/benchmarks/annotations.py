"""Converts the annotations of a benchmark to data sets of the package's schema. No image is opened.

Columns: `image` (its path; null if the file is missing), one `ClassLabel` per attribute (-1: not labelled),
`file_name` (relative to the root of the benchmark), and, if the benchmark lists several values of an attribute, the
lists `<attribute>_all` and `<attribute>_maybe` (see `AttributeDataset.value_sets`).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from cca_hf.data.columns import ValueSetKind
from cca_hf.data.coverage import FILE_NAME_COLUMN, image_cell
from cca_hf.data.schema import IMAGE_COLUMN

Pairs: TypeAlias = list[tuple[int, int]]  # (attribute, value) ids of one image


@dataclass(frozen=True)
class Annotations:
    """The images of one split, in the order of the benchmark's files. None stands for unknown values of an image."""

    file_names: list[str]  # relative to the root of the benchmark, with forward slashes
    pairs: list[Pairs]  # the labels of each image; the first of several values of an attribute is the label
    all_values: list[Pairs | None] | None = None  # all values of all attributes
    maybe: list[Pairs | None] | None = None  # the values that an image may show, for its labelled attributes


@dataclass(frozen=True)
class Benchmark:
    """A local copy of a benchmark."""

    name: str
    source: str  # origin of the images
    splits: DatasetDict  # with the columns above
    remarks: list[str] = field(default_factory=list)  # further facts about this copy, as sentences
    triplets: DatasetDict | None = None  # ready triplets: `condition`, and the file names of the three images
    files: Mapping[str, Any] = field(default_factory=dict)  # further content, for JSON files with these paths
    changes: DatasetDict | None = None  # changes of values, as in `data/change_queries.py`


def read_lines(path: Path) -> list[str]:
    """Stripped lines, for any line ending. Empty lines at the end are dropped, others are kept."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def existing(path: Path, source: str) -> Path:
    """The path; raises FileNotFoundError with the origin of the file if it is missing."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it comes with {source}")
    return path


def find_file(root: Path, name: str) -> list[Path]:
    """All files with this name, at any depth and through links, sorted."""
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    return sorted(Path(folder) / name for folder, _, files in os.walk(root, followlinks=True) if name in files)


def to_splits(
    annotations: Mapping[str, Annotations], attributes: Mapping[str, Sequence[str]], root: Path
) -> DatasetDict:
    """All splits; see `to_dataset`."""
    return DatasetDict({split: to_dataset(rows, attributes, root) for split, rows in annotations.items()})


def to_dataset(annotations: Annotations, attributes: Mapping[str, Sequence[str]], root: Path) -> Dataset:
    """One split, with the images found in `root`. An empty file counts as missing."""
    count, names = len(annotations.file_names), list(attributes)
    labels = np.full((len(names), count), -1, dtype=np.int64)
    for row, pairs in enumerate(annotations.pairs):
        for attribute, value in reversed(pairs):  # writes the first of several values last
            labels[attribute, row] = value
    columns: dict[str, Sequence] = {
        IMAGE_COLUMN: [image_cell(root, name) for name in annotations.file_names],
        **{name: labels[index] for index, name in enumerate(names)},
    }
    features = Features({IMAGE_COLUMN: Image(), **{name: ClassLabel(names=list(attributes[name])) for name in names}})
    lists: dict[ValueSetKind, list[Pairs | None] | None] = {"all": annotations.all_values, "maybe": annotations.maybe}
    for kind, rows in lists.items():
        if rows is None:
            continue
        for index, name in enumerate(names):
            known = np.ones(count, dtype=bool) if kind == "all" else labels[index] >= 0
            features[f"{name}_{kind}"] = List(ClassLabel(names=list(attributes[name])))
            columns[f"{name}_{kind}"] = [
                None if pairs is None or not is_known else [value for attribute, value in pairs if attribute == index]
                for pairs, is_known in zip(rows, known.tolist(), strict=True)
            ]
    features[FILE_NAME_COLUMN] = Value("string")
    columns[FILE_NAME_COLUMN] = annotations.file_names
    # through Arrow, since `Dataset.from_dict` checks each value, which takes a minute for 200,000 images
    schema = features.arrow_schema
    arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
    return Dataset(pa.Table.from_arrays(arrays, schema=schema))
