"""DeepFashion, category and attribute prediction: five attributes with a thousand values, often several per image.

    Anno/list_attr_cloth.txt         the number of values, a header, "<name with spaces> <type 1-5>"
    Anno/list_attr_img.txt           the number of images, a header, "<path> <1000 times -1, 0 or 1>"
    Eval/list_eval_partition.txt     the number of images, a header, "<path> <train, val or test>"
    img/, or Img/img/                the images

The five types are the attributes; the id of a value is its rank within its type, in the order of the file. ASEN's
splits keep one value per image, which is the label; `<attribute>_all` contains all values. In ASEN's folder these are
in `label_{valid,test}.txt`: "fid (type id)*", where `id` is the 0-based line of `list_attr_cloth.txt`.

Paper: Liu et al., DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich Annotations, CVPR 2016.
"""

from collections.abc import Iterator, Set
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets.utils import tqdm

from .annotations import Annotations, Benchmark, Pairs, find_file, read_lines, to_splits
from .asen import EVALUATION_SPLITS, AsenSplits

SOURCE = (
    "DeepFashion's Category and Attribute Prediction Benchmark, http://mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html"
)
ATTRIBUTES = ("texture", "fabric", "shape", "part", "style")  # types 1 to 5
_SPLIT_OF_PART = {"train": "train", "val": "validation", "test": "test"}


class ValueTable(NamedTuple):
    """The values of all types in the order of the file; `pairs` contains (attribute, value) for each line."""

    attributes: dict[str, list[str]]
    pairs: Pairs


def load_deepfashion(root: str | PathLike[str], asen_splits: str | PathLike[str] | None = None) -> Benchmark:
    """Reads the labels of the original download, with the splits of ASEN if their folder is given.

    Without `asen_splits` the splits are DeepFashion's own, for leave-one-out evaluation, and the label of an image is
    the first of its values in the order of `list_attr_cloth.txt`.

    Args:
        root: the folder that contains `Anno/`, `Eval/` and `img/` (or `Img/img/`).
        asen_splits: the folder with ASEN's `meta.json`.
    """
    root = Path(root)
    table = read_values(_annotation_file(root, "list_attr_cloth.txt"))
    image_root = root if (root / "img").is_dir() or not (root / "Img").is_dir() else root / "Img"
    remarks: list[str] = []
    if asen_splits is None:
        partition = _annotation_file(root, "list_eval_partition.txt")
        rows = _official_splits(partition, _annotation_file(root, "list_attr_img.txt"), table)
    else:
        rows, remarks = _asen_splits(AsenSplits(asen_splits, "DeepFashion"), root, table)
    return Benchmark("DeepFashion", SOURCE, to_splits(rows, table.attributes, image_root), remarks)


def read_values(path: Path) -> ValueTable:
    """Reads `list_attr_cloth.txt`."""
    attributes: dict[str, list[str]] = {attribute: [] for attribute in ATTRIBUTES}
    pairs = []
    for number, line in _table_lines(path):
        name, _, kind = line.rpartition(" ")
        if kind not in ("1", "2", "3", "4", "5") or not name.strip():
            raise ValueError(f"{path}, line {number}: expected '<name> <type 1-5>', got {line!r}")
        values = attributes[ATTRIBUTES[int(kind) - 1]]
        pairs.append((int(kind) - 1, len(values)))
        values.append(name.strip())
    return ValueTable(attributes, pairs)


def _annotation_file(root: Path, name: str) -> Path:
    """Finds the file in any folder of the download but `Anno_fine`, another benchmark with 26 values."""
    found = [path for path in find_file(root, name) if path.parent.name != "Anno_fine"]
    if not found:
        raise FileNotFoundError(f"there is no {name} in {root} or its subfolders; it comes with {SOURCE}")
    return found[0]


def _table_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, line) below the count and the header; streamed, since one of these files has 800 MB."""
    with path.open(encoding="utf-8") as file:
        count = file.readline().strip()
        file.readline()
        lines = 0
        for number, line in enumerate(file, start=3):
            if line := line.strip():
                lines += 1
                yield number, line
    if not count.isdecimal() or lines != int(count):
        raise ValueError(f"{path}: the first line says {count!r} lines, but the file has {lines}: it is not complete")


def _values_of_images(path: Path, table: ValueTable) -> Iterator[tuple[str, Pairs]]:
    """Reads `list_attr_img.txt`."""
    for number, line in tqdm(_table_lines(path), desc=f"Reading {path.name}", unit=" images"):
        name, _, flags = line.partition(" ")
        shown = np.array(flags.split()) == "1"
        if len(shown) != len(table.pairs):
            raise ValueError(f"{path}, line {number}: expected {len(table.pairs)} numbers, got {len(shown)}")
        yield name, [table.pairs[value] for value in np.flatnonzero(shown)]


def _official_splits(partition: Path, values: Path, table: ValueTable) -> dict[str, Annotations]:
    split_of = {}
    for number, line in _table_lines(partition):
        name, _, part = line.partition(" ")
        if part.strip() not in _SPLIT_OF_PART:
            raise ValueError(f"{partition}, line {number}: expected '<path> <train, val or test>', got {line!r}")
        split_of[name] = _SPLIT_OF_PART[part.strip()]
    rows: dict[str, list[tuple[str, Pairs]]] = {split: [] for split in _SPLIT_OF_PART.values()}
    for name, pairs in _values_of_images(values, table):
        if pairs and name in split_of:
            rows[split_of[name]].append((name, pairs))
    return {split: _annotations(split_rows) for split, split_rows in rows.items()}


def _annotations(rows: list[tuple[str, Pairs]]) -> Annotations:
    return Annotations([name for name, _ in rows], [pairs for _, pairs in rows], [pairs for _, pairs in rows])


def _asen_splits(asen: AsenSplits, root: Path, table: ValueTable) -> tuple[dict[str, Annotations], list[str]]:
    theirs, ours = list(asen.num_values.values()), [len(values) for values in table.attributes.values()]
    if theirs != ours:
        raise ValueError(f"ASEN's meta.json has {theirs} values, list_attr_cloth.txt has {ours}")
    evaluation = {}
    for split, (file, part) in EVALUATION_SPLITS.items():
        rows, names, shown = asen.rows(file, part), asen.file_names(part), _all_values(asen, part, table)
        for fid, pairs in rows.items():
            if not set(pairs) <= set(shown.get(fid, pairs)):
                raise ValueError(f"{file} and label_{part}.txt contradict each other on image {fid}")
        evaluation[split] = Annotations(
            [names[fid] for fid in rows], list(rows.values()), [shown.get(fid) for fid in rows]
        )
    held_out = {name for rows in evaluation.values() for name in rows.file_names}
    training, remarks = _training(asen, root, table, held_out)
    return ({} if training is None else {"train": training}) | evaluation, remarks


def _all_values(asen: AsenSplits, part: str, table: ValueTable) -> dict[int, Pairs]:
    """fid -> all values; empty if `label_<part>.txt` is missing in ASEN's folder."""
    path = asen.folder / f"label_{part}.txt"
    if not path.is_file():
        return {}
    shown = {}
    for number, line in enumerate(read_lines(path), start=1):
        if line:
            try:
                fid, *numbers = map(int, line.split())
                shown[fid] = [table.pairs[value] for value in numbers[1::2]]
                if [attribute + 1 for attribute, _ in shown[fid]] != numbers[::2]:
                    raise ValueError("the types are not those of list_attr_cloth.txt")
            except (ValueError, IndexError) as error:
                raise ValueError(f"{path}, line {number}: expected 'fid (type id)*', got {line!r}: {error}") from error
    return shown


def _training(
    asen: AsenSplits, root: Path, table: ValueTable, held_out: Set[str]
) -> tuple[Annotations | None, list[str]]:
    """ASEN's list, or all labelled images outside the evaluation, with the first of their values as label."""
    if (listed := asen.training()) is not None:
        return Annotations(listed.file_names, listed.pairs, list(listed.pairs)), []
    try:
        path = _annotation_file(root, "list_attr_img.txt")
    except FileNotFoundError:
        return None, [
            f"There are no training images: ASEN's filenames_train.txt is missing, and list_attr_img.txt of {SOURCE}."
        ]
    values = _values_of_images(path, table)
    training = _annotations([(name, pairs) for name, pairs in values if pairs and name not in held_out])
    return training, [
        f"Training images: {len(training.file_names):,} images with a value, outside ASEN's validation and test part; "
        "their label is the first of their values."
    ]
