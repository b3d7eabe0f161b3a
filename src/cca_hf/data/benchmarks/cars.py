"""Stanford Cars: 16,185 images of 196 models of cars.

    devkit/cars_meta.mat              class_names
    devkit/cars_train_annos.mat       annotations: class (from 1), fname, and a box
    devkit/cars_test_annos_withlabels.mat    the same with the classes of the test images
    cars_train/00001.jpg, cars_test/00001.jpg

or the form with one file:

    cars_annos.mat                    class_names; annotations: relative_im_path, class (from 1), test (0 or 1)
    car_ims/000001.jpg

Paper: Krause, Stark, Deng, Fei-Fei, 3D Object Representations for Fine-Grained Categorization, 3DRR 2013.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from .annotations import Benchmark, find_file
from .fine_grained import LABEL, Image, make_benchmark

SOURCE = (
    "Stanford Cars: cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat, or car_ims.tgz "
    "and cars_annos.mat, formerly of https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
)
_FILE_OF_SPLIT = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}


def load_cars(root: str | PathLike[str]) -> Benchmark:
    """Reads the images and models in the official splits; a tenth of the training images becomes `validation`.

    Args:
        root: the folder with `cars_train/` and `cars_test/`, or with `car_ims/`; the .mat files are in it or in a
            folder below.

    Raises:
        ImportError: if SciPy, which reads the files, is missing.
        FileNotFoundError: if a file is missing; names its origin.
        ValueError: for a damaged file, or a row without the fields above; names the file and the row.
    """
    root = Path(root)
    together = find_file(root, "cars_annos.mat")
    if together:
        classes, splits = _one_file(together[0])
    else:
        classes = _class_names(_mat_file(root, "cars_meta.mat"))
        splits = {
            split: _annotations(_mat_file(root, file), f"cars_{split}", len(classes))
            for split, file in _FILE_OF_SPLIT.items()
        }
    return make_benchmark("Stanford Cars", SOURCE, root, splits, {LABEL: classes})


def _mat_file(root: Path, name: str) -> Path:
    found = find_file(root, name)
    if not found:
        raise FileNotFoundError(f"there is no {name} in {root} or its subfolders; it comes with {SOURCE}")
    return found[0]


def _one_file(path: Path) -> tuple[list[str], dict[str, list[Image]]]:
    classes = _class_names(path)
    splits: dict[str, list[Image]] = {"train": [], "test": []}
    for place, row in _rows(path, ("relative_im_path", "class", "test")):
        if row["test"] not in (0, 1):
            raise ValueError(f"{place}: test must be 0 or 1, got {row['test']!r}")
        image = Image(str(row["relative_im_path"]), (_class_id(row, len(classes), place),))
        splits["test" if row["test"] else "train"].append(image)
    return classes, splits


def _annotations(path: Path, folder: str, num_classes: int) -> list[Image]:
    rows = _rows(path, ("fname", "class"))
    return [Image(f"{folder}/{row['fname']}", (_class_id(row, num_classes, place),)) for place, row in rows]


def _class_id(row: dict[str, Any], num_classes: int, place: str) -> int:
    if not 1 <= row["class"] <= num_classes:
        raise ValueError(f"{place}: class must be from 1 to {num_classes}, got {row['class']!r}")
    return int(row["class"]) - 1


def _class_names(path: Path) -> list[str]:
    return [str(name) for name in np.atleast_1d(_field(path, "class_names"))]


def _rows(path: Path, fields: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """The annotations, each with its place for an error."""
    annotations = _field(path, "annotations")
    rows = [annotations] if isinstance(annotations, dict) else list(annotations)  # a single row is no list
    placed = []
    for number, row in enumerate(rows, start=1):
        place = f"{path}, annotation {number}"
        missing = [field for field in fields if field not in row]
        if missing:
            raise ValueError(f"{place} has no {', '.join(missing)}; its fields are {', '.join(row)}")
        placed.append((place, row))
    return placed


def _field(path: Path, name: str) -> Any:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError('the files of Stanford Cars need SciPy: pip install "cca_hf[analysis]"') from error
    try:
        content = loadmat(path, simplify_cells=True)
    except Exception as error:  # SciPy raises many types for a damaged file
        raise ValueError(f"{path} cannot be read as a .mat file: {error}") from error
    if name not in content:
        raise ValueError(f"{path} has no {name}; it has {', '.join(key for key in content if key[:2] != '__')}")
    return content[name]
