"""What the readers of fine-grained classes share: images with one class each, in official splits."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .annotations import Annotations, Benchmark, find_file, read_lines, to_splits

LABEL = "label"  # the column of the classes
VALIDATION_SEED = 0
_VALIDATION_SHARE = 0.1


class Image(NamedTuple):
    """One image; `classes` has the id of its class in each label column."""

    file_name: str  # relative to the root
    classes: tuple[int, ...]


def make_benchmark(
    name: str,
    source: str,
    root: Path,
    splits: Mapping[str, Sequence[Image]],
    classes: Mapping[str, Sequence[str]],
    remarks: Sequence[str] = (),
) -> Benchmark:
    """The benchmark with its official splits. A missing validation split is cut from the training images.

    Args:
        classes: label column -> the names of its classes, in the order of their ids.
    """
    remarks = list(remarks)
    if "validation" not in splits:
        kept, validation = cut_validation(splits["train"])
        splits = {"train": kept, "validation": validation, "test": splits["test"]}
        remarks.append(
            f"The validation split is a tenth of the training images of each class (seed {VALIDATION_SEED}); the "
            "benchmark has none."
        )
    annotations = {
        split: Annotations([image.file_name for image in images], [[*enumerate(image.classes)] for image in images])
        for split, images in splits.items()
    }
    return Benchmark(name, source, to_splits(annotations, classes, root), remarks)


def cut_validation(images: Sequence[Image]) -> tuple[list[Image], list[Image]]:
    """The training and the validation images: of each class a tenth, rounded, chosen by a fixed seed."""
    generator = np.random.default_rng(VALIDATION_SEED)
    labels = np.array([image.classes[0] for image in images])
    is_validation = np.zeros(len(images), dtype=bool)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        is_validation[rows[: round(_VALIDATION_SHARE * len(rows))]] = True
    parts = (np.flatnonzero(~is_validation).tolist(), np.flatnonzero(is_validation).tolist())
    return [images[row] for row in parts[0]], [images[row] for row in parts[1]]


def folder_of(root: Path, name: str, source: str) -> Path:
    """The folder with the file `name`: the root, or a folder in it.

    Raises:
        FileNotFoundError: if the file is missing; names its origin.
    """
    found = find_file(root, name)
    if not found:
        raise FileNotFoundError(f"there is no {name} in {root} or its subfolders; it comes with {source}")
    return found[0].parent


def read_pairs(path: Path, expected: str) -> Iterator[tuple[str, str, str]]:
    """(first word, rest of the line, place) of each line; `expected` describes a line for the error."""
    for number, line in enumerate(read_lines(path), start=1):
        first, _, rest = line.partition(" ")
        place = f"{path}, line {number}"
        if not first or not rest.strip():
            raise ValueError(f"{place}: expected {expected!r}, got {line!r:.80}")
        yield first, rest.strip(), place
