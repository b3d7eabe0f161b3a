"""Reads the split files of ADDE: Shopping100k and DeepFashion with queries for attribute manipulation.

    attr_num.txt                        the number of values of each attribute; J is their sum
    imgs_{train,test}.txt               one image path a line
    labels_{train,test}.txt             J times 0 or 1 a line; the block of an attribute without 1 is not labelled
    ref_test.txt                        the reference of each query: a 0-based line of imgs_test.txt
    indfull_test.txt                    J times -1, 0 or 1: -1 is the old value, 1 the new one
    gt_test.txt                         J times 0 or 1: the labels of the target
    triplet_train.txt                   "reference positive negative", 0-based lines of imgs_train.txt
    triplet_train_ind.txt               the change of each triplet, as in indfull_test.txt

The files name neither attributes nor values. The values are called 0, 1, ..., and the attributes attribute_1, ...
unless names are given.

Paper: Hou, Vig, Donoser, Bazzani, Learning Attribute-driven Disentangled Representations for Interactive Fashion
Retrieval, ICCV 2021.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, Value
from numpy.typing import NDArray

from cca_hf.data.change_queries import REFERENCE_COLUMN, TRIPLET_COLUMNS

from .annotations import Annotations, Benchmark, existing, read_lines, to_splits

SOURCE = "ADDE's split files, the folder splits/ of https://github.com/amzn/fashion-attribute-disentanglement"
TRIPLET_FILES = ("triplet_train.txt", "triplet_train_ind.txt")
IntArray = NDArray[np.int64]


def load_adde(
    root: str | PathLike[str], splits: str | PathLike[str], attributes: Sequence[str] | None = None
) -> Benchmark:
    """Reads the images, their labels, the queries of the test split, and the triplets if their files are there.

    Args:
        root: the folder of the images that `imgs_*.txt` name.
        splits: the folder of the split files.
        attributes: names in the order of `attr_num.txt`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not complete, or files contradict each other; the message names file and line.
    """
    folder = Path(splits)
    files = _SplitFiles(folder, attributes)
    annotations, labels = {}, {}
    for split in ("train", "test"):
        names = read_lines(existing(folder / f"imgs_{split}.txt", SOURCE))
        labels[split] = files.labels(f"labels_{split}.txt", len(names), f"imgs_{split}.txt")
        pairs = [[(place, value) for place, value in enumerate(row) if value >= 0] for row in labels[split].tolist()]
        annotations[split] = Annotations(names, pairs)
    changes = {"test": files.queries(annotations["test"].file_names, labels["test"])}
    if all((folder / name).is_file() for name in TRIPLET_FILES):
        changes["train"] = files.triplets(annotations["train"].file_names, labels["train"])
    loaded = to_splits(annotations, files.attributes, Path(root))
    return Benchmark(f"{folder.resolve().name} of ADDE", SOURCE, loaded, changes=DatasetDict(changes))


class _SplitFiles:
    """The files of a folder, and the attributes that `attr_num.txt` counts."""

    def __init__(self, folder: Path, names: Sequence[str] | None) -> None:
        self.folder = folder
        path = existing(folder / "attr_num.txt", SOURCE)
        words = path.read_text(encoding="utf-8").split()
        if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
            raise ValueError(f"{path}: expected the number of values of each attribute, got {' '.join(words)[:60]!r}")
        counts = [int(word) for word in words]
        if names is None:
            names = [f"attribute_{number}" for number in range(1, len(counts) + 1)]
        if len(set(names)) != len(counts):
            raise ValueError(f"{path} counts the values of {len(counts)} attributes; got the names {list(names)}")
        self.attributes = {
            name: [str(value) for value in range(count)] for name, count in zip(names, counts, strict=True)
        }
        self.starts = np.cumsum([0, *counts])

    def labels(self, name: str, count: int, other: str) -> IntArray:
        """(count, attributes) value ids, -1 = not labelled; `other` is the file that has as many lines."""
        rows = self._vectors(name, (0, 1), count, other)
        return np.stack([self._values(name, block == 1) for block in self._blocks(rows)], axis=1)

    def queries(self, images: Sequence[str], labels: IntArray) -> Dataset:
        """The queries of the test split, whose targets must be those of `gt_test.txt`."""
        references = self._rows("ref_test.txt", 1, len(images), "imgs_test.txt")[:, 0]
        changes = self._changes("indfull_test.txt", labels[references], "ref_test.txt")
        targets = self.labels("gt_test.txt", len(references), "ref_test.txt")
        wrong = (targets != np.where(changes >= 0, changes, labels[references])).any(axis=1)
        if wrong.any():
            line = int(wrong.argmax()) + 1
            raise ValueError(
                f"{self.folder / 'gt_test.txt'}, line {line}: the labels are not those of the reference with the "
                f"change of indfull_test.txt, line {line}"
            )
        columns = {REFERENCE_COLUMN: [images[row] for row in references]}
        return self._dataset(columns | dict.fromkeys(TRIPLET_COLUMNS, [None] * len(references)), changes)

    def triplets(self, images: Sequence[str], labels: IntArray) -> Dataset:
        """The triplets of the training split."""
        triplets, indicators = TRIPLET_FILES
        rows = self._rows(triplets, 3, len(images), "imgs_train.txt")
        changes = self._changes(indicators, labels[rows[:, 0]], triplets)
        columns = {
            name: [images[row] for row in column]
            for name, column in zip((REFERENCE_COLUMN, *TRIPLET_COLUMNS), rows.T.tolist(), strict=True)
        }
        return self._dataset(columns, changes)

    def _dataset(self, columns: Mapping[str, list[str | None]], changes: IntArray) -> Dataset:
        """File names, and a column for each attribute with its new value, None where it stays."""
        content: dict[str, list[str | None]] = {name: list(column) for name, column in columns.items()}
        for (name, values), column in zip(self.attributes.items(), changes.T.tolist(), strict=True):
            content[name] = [values[value] if value >= 0 else None for value in column]
        return Dataset.from_dict(content, features=Features({name: Value("string") for name in content}))

    def _changes(self, name: str, labels: IntArray, other: str) -> IntArray:
        """(rows, attributes) new values of references with `labels`, -1 = no change."""
        rows = self._vectors(name, (-1, 0, 1), len(labels), other)
        new = np.stack([self._values(name, block == 1) for block in self._blocks(rows)], axis=1)
        old = np.stack([self._values(name, block == -1) for block in self._blocks(rows)], axis=1)
        changed = new >= 0
        contradicts = ((old >= 0) & ((old != labels) | ~changed) | changed & (old < 0) & (labels >= 0)).any(axis=1)
        for wrong, problem in (
            (~changed.any(axis=1), "there is no new value (1)"),
            (contradicts, "an old value (-1) is not the value of the reference, or has no new value (1)"),
        ):
            if wrong.any():
                raise ValueError(f"{self.folder / name}, line {wrong.argmax() + 1}: {problem}")
        return new

    def _blocks(self, rows: NDArray) -> list[NDArray]:
        """The columns of each attribute."""
        return np.split(rows, self.starts[1:-1], axis=1)

    def _values(self, name: str, marked: NDArray) -> IntArray:
        """(rows,) the only marked column of a block, -1 without one."""
        several = marked.sum(axis=1) > 1
        if several.any():
            raise ValueError(
                f"{self.folder / name}, line {several.argmax() + 1}: an attribute has several values, expected one"
            )
        return np.where(marked.any(axis=1), marked.argmax(axis=1), -1)

    def _vectors(self, name: str, allowed: Sequence[int], count: int, other: str) -> NDArray[np.int8]:
        """(count, J) numbers of a file that must have as many lines as another."""
        path = existing(self.folder / name, SOURCE)
        lines = read_lines(path)
        if len(lines) != count:
            raise ValueError(f"{path} has {len(lines)} lines, and {other} has {count}: a file is not complete")
        width, words = int(self.starts[-1]), {str(number): number for number in allowed}
        rows = np.empty((count, width), dtype=np.int8)
        for number, line in enumerate(lines, start=1):
            cells = [words[word] for word in line.split() if word in words]
            if len(cells) != width or len(line.split()) != width:
                expected = f"expected {width} numbers ({', '.join(words)})"
                raise ValueError(f"{path}, line {number}: {expected}, got {len(line.split())}: {line[:60]!r}")
            rows[number - 1] = cells
        return rows

    def _rows(self, name: str, width: int, count: int, other: str) -> IntArray:
        """(lines, width) rows of another file, which has `count` of them."""
        path = existing(self.folder / name, SOURCE)
        rows = []
        for number, line in enumerate(read_lines(path), start=1):
            words = line.split()
            if len(words) != width or not all(word.isdecimal() and int(word) < count for word in words):
                expected = f"expected {width} numbers below {count}, the lines of {other}"
                raise ValueError(f"{path}, line {number}: {expected}; got {line[:60]!r}")
            rows.append([int(word) for word in words])
        if not rows:
            raise ValueError(f"{path} is empty")
        return np.array(rows, dtype=np.int64)
