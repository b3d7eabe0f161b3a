"""CUB-200-2011: 11,788 images of 200 species of birds.

    CUB_200_2011/images.txt               "<image> <path below images/>"
    CUB_200_2011/classes.txt              "<class> 001.Black_footed_Albatross"
    CUB_200_2011/image_class_labels.txt   "<image> <class>"
    CUB_200_2011/train_test_split.txt     "<image> <1: training, 0: test>"
    CUB_200_2011/images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg

Paper: Wah, Branson, Welinder, Perona, Belongie, The Caltech-UCSD Birds-200-2011 Dataset, Caltech CNS-TR-2011-001.
"""

import re
from os import PathLike
from pathlib import Path

from .annotations import Benchmark, existing
from .fine_grained import LABEL, Image, folder_of, make_benchmark, read_pairs

SOURCE = "CUB-200-2011, CUB_200_2011.tgz of https://data.caltech.edu/records/65de6-vp158"
_SPLITS = {"1": "train", "0": "test"}


def load_cub200(root: str | PathLike[str]) -> Benchmark:
    """Reads the images and species in the official splits; a tenth of the training images becomes `validation`.

    Args:
        root: the folder `CUB_200_2011`, or the folder that contains it.

    Raises:
        FileNotFoundError: if a file is missing; names its origin.
        ValueError: for a line of another form, or an image without a class or split; names the file and the line.
    """
    folder = folder_of(Path(root), "train_test_split.txt", SOURCE)
    classes = _table(folder / "classes.txt", "<class> <name>")
    ids = {number: place for place, number in enumerate(classes)}
    label_of = _table(folder / "image_class_labels.txt", "<image> <class>")
    split_of = _table(folder / "train_test_split.txt", "<image> <0 or 1>")
    splits: dict[str, list[Image]] = {split: [] for split in _SPLITS.values()}
    for image, path, place in read_pairs(existing(folder / "images.txt", SOURCE), "<image> <path>"):
        if label_of.get(image) not in ids:
            given = "none" if image not in label_of else f"{label_of[image]!r}, which is not in classes.txt"
            raise ValueError(f"{place}: image {image} needs a class in image_class_labels.txt; it has {given}")
        if split_of.get(image) not in _SPLITS:
            raise ValueError(
                f"{place}: image {image} needs 0 or 1 in train_test_split.txt; it has {split_of.get(image)!r}"
            )
        splits[_SPLITS[split_of[image]]].append(Image(f"images/{path}", (ids[label_of[image]],)))
    names = [re.sub(r"^\d+\.", "", name).replace("_", " ") for name in classes.values()]
    return make_benchmark("CUB-200-2011", SOURCE, folder, splits, {LABEL: names})


def _table(path: Path, expected: str) -> dict[str, str]:
    """The first word of each line -> the rest of the line."""
    return {key: value for key, value, _ in read_pairs(existing(path, SOURCE), expected)}
