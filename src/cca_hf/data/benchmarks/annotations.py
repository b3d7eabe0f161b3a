"""What a benchmark's own files say of its images, as data sets of the one schema. No picture is opened.

Columns: `image` (the path of the picture; null where the file is missing), one `ClassLabel` for each attribute (-1
where not labelled), `file_name` (the benchmark's own, relative to its root), and, where the benchmark knows more than
one value of an attribute, the lists `<attribute>_all` and `<attribute>_maybe` of `value_sets.py`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from cca_hf.data.coverage import FILE_NAME_COLUMN, image_path
from cca_hf.data.schema import IMAGE_COLUMN
from cca_hf.data.value_sets import ValueSetKind

Pairs: TypeAlias = list[tuple[int, int]]  # (attribute, value) ids of one image


@dataclass(frozen=True)
class Annotations:
    """The images of one split, in the order of the benchmark's files.

    Args:
        file_names: relative to the benchmark's root, with forward slashes.
        pairs: what each image shows; of several values of an attribute the first is its label.
        all_values: every value of every attribute; None for an image of which they are not known.
        maybe: the values that an image may show, for the attributes it is labelled with; None likewise.
    """

    file_names: list[str]
    pairs: list[Pairs]
    all_values: list[Pairs | None] | None = None
    maybe: list[Pairs | None] | None = None


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as it lies on this disk.

    Args:
        name: for people.
        source: where the pictures come from.
        splits: data sets with the columns above.
        remarks: what else there is to know of this copy, in sentences.
        triplets: ready triplets by split: `condition`, and the file names `anchor`, `positive` and `negative`.
    """

    name: str
    source: str
    splits: DatasetDict
    remarks: list[str] = field(default_factory=list)
    triplets: DatasetDict | None = None


def read_lines(path: Path) -> list[str]:
    """Stripped lines, whatever ends them; empty ones at the end are dropped, those within are kept."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def existing(path: Path, source: str) -> Path:
    """The path, or an error that says what is missing and where to get it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it comes with {source}")
    return path


def find_file(root: Path, name: str) -> list[Path]:
    """All files of this name, at any depth and behind links too, in sorted order."""
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    return sorted(Path(folder) / name for folder, _, files in os.walk(root, followlinks=True) if name in files)


def to_dataset(annotations: Annotations, attributes: Mapping[str, Sequence[str]], root: Path) -> Dataset:
    """One split; which pictures are there is looked up under `root`. An empty file counts as missing."""
    count, names = len(annotations.file_names), list(attributes)
    labels = np.full((len(names), count), -1, dtype=np.int64)
    for row, pairs in enumerate(annotations.pairs):
        for attribute, value in reversed(pairs):  # the first of several is written last
            labels[attribute, row] = value
    paths = [image_path(root, name) for name in annotations.file_names]
    columns: dict[str, Sequence] = {
        IMAGE_COLUMN: [None if path is None else {"bytes": None, "path": path} for path in paths],
        **{name: labels[index] for index, name in enumerate(names)},
    }
    features = Features({IMAGE_COLUMN: Image(), **{name: ClassLabel(names=list(attributes[name])) for name in names}})
    lists: dict[ValueSetKind, list[Pairs | None] | None] = {"all": annotations.all_values, "maybe": annotations.maybe}
    for kind, rows in lists.items():
        if rows is None:
            continue
        for index, name in enumerate(names):
            about = np.ones(count, dtype=bool) if kind == "all" else labels[index] >= 0
            features[f"{name}_{kind}"] = List(ClassLabel(names=list(attributes[name])))
            columns[f"{name}_{kind}"] = [
                None if pairs is None or not told else [value for attribute, value in pairs if attribute == index]
                for pairs, told in zip(rows, about.tolist(), strict=True)
            ]
    features[FILE_NAME_COLUMN] = Value("string")
    columns[FILE_NAME_COLUMN] = annotations.file_names
    # through Arrow: `Dataset.from_dict` looks at each value for itself, which takes a minute on 200,000 images
    schema = features.arrow_schema
    arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
    return Dataset(pa.Table.from_arrays(arrays, schema=schema))
