"""UT Zappos50K: 50,025 shoes with eight attributes, and the triplets of Conditional Similarity Networks (CSN).

    ut-zap50k-images/<Category>/<SubCategory>/<Brand>/<CID with dots>.jpg      (or ut-zap50k-images-square/)
    ut-zap50k-data/meta-data.csv     CID,Category,SubCategory,HeelHeight,Insole,Closure,Gender,Material,ToeStyle
    filenames.json                   plain text, despite its name: one path below ut-zap50k-images per line
    tripletlists/{class,closure,gender,heel}_tripletlist_{train,val,test}.txt  "a b c": lines of filenames.json

In a row of CSN, a is the anchor, **b the far image, c the close image**. A cell of the metadata may contain several
values ("Leather;Suede"): `<attribute>_all` contains all of them, and the image has no label.

Papers: Yu and Grauman, Fine-Grained Visual Comparisons with Local Learning, CVPR 2014; Veit, Belongie, Karaletsos,
Conditional Similarity Networks, CVPR 2017.
"""

import csv
import os
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from cca_hf.data.triplets import CONDITION_COLUMN, TRIPLET_COLUMNS

from .annotations import Annotations, Benchmark, Pairs, existing, find_file, read_lines, to_splits

SOURCE = (
    "UT Zappos50K, ut-zap50k-images.zip and ut-zap50k-data.zip of "
    "https://vision.cs.utexas.edu/projects/finegrained/utzap50k/"
)
TRIPLET_SOURCE = (
    "the triplets of CSN, csn_zappos_triplets.zip, linked from get_data.py of "
    "https://github.com/andreasveit/conditional-similarity-networks"
)
ATTRIBUTES = ("category", "sub_category", "heel_height", "insole", "closure", "gender", "material", "toe_style")
# attribute -> column of the metadata: "heel_height" -> "HeelHeight"
COLUMNS = {attribute: attribute.title().replace("_", "") for attribute in ATTRIBUTES}
# condition, which is an attribute -> its name in CSN's files
CONDITIONS = {"category": "class", "closure": "closure", "gender": "gender", "heel_height": "heel"}
# The numbers of triplets in the papers on conditional similarity, for all four conditions together.
NUM_TRIPLETS = {"train": 200_000, "validation": 80_000, "test": 160_000}
_THEIR_SPLIT = {"train": "train", "validation": "val", "test": "test"}


class Shoes(NamedTuple):
    """All images and their metadata."""

    file_names: list[str]  # relative to the image folder
    cells: dict[str, list[list[str]]]  # attribute -> the values of each image, [] for an empty cell
    attributes: dict[str, list[str]]  # attribute -> its values, in the order of their ids


def load_zappos50k(
    root: str | PathLike[str], triplets: Literal["lists", "sample", "none"] = "lists", seed: int = 0
) -> Benchmark:
    """Reads attributes and triplets of the original downloads.

    The split of an image is the split of its triplets, so that a training with labels uses no test image.

    Args:
        root: the folder with the unpacked zip files.
        triplets: "lists" reads CSN's files; "sample" samples triplets from the metadata, as many and of the same kind
            as CSN; "none" makes no triplets and one split, `train`.
        seed: seed for sampling triplets, or for choosing `NUM_TRIPLETS` of CSN's triplets.
    """
    root = Path(root)
    folders = [root / name for name in ("ut-zap50k-images", "ut-zap50k-images-square") if (root / name).is_dir()]
    if not folders:
        raise FileNotFoundError(f"there is no folder ut-zap50k-images in {root}; it comes with {SOURCE}")
    image_root = folders[0]
    shoes = _read_shoes(root, image_root)
    remarks = []
    rows: dict[str, Dataset] = {}
    part_of = np.full(len(shoes.file_names), "train", dtype="<U10")
    if triplets == "sample":
        order = np.random.default_rng(seed).permutation(len(part_of))
        validation, test = (round(share * len(part_of)) for share in (0.1, 0.2))  # CSN's shares
        part_of[order[:validation]] = "validation"
        part_of[order[validation : validation + test]] = "test"
        rows = {part: _sampled(shoes, np.flatnonzero(part_of == part), part, seed) for part in _THEIR_SPLIT}
        remarks.append(f"The triplets were sampled from the metadata (seed {seed}); they are not those of CSN.")
    elif triplets == "lists":
        indices = {part: _read_lists(root, part, len(shoes.file_names), seed) for part in _THEIR_SPLIT}
        for part in ("validation", "test"):  # in this order: an image of both is a test image
            part_of[np.unique(indices[part][1])] = part
        rows = {part: _to_triplets(shoes.file_names, *lists) for part, lists in indices.items()}
    elif triplets != "none":
        raise ValueError(f"triplets must be 'lists', 'sample' or 'none', got {triplets!r}")
    parts = _THEIR_SPLIT if rows else ["train"]
    annotations = {part: _annotations(shoes, np.flatnonzero(part_of == part)) for part in parts}
    splits = to_splits(annotations, shoes.attributes, image_root)
    return Benchmark("UT Zappos50K", SOURCE, splits, remarks, DatasetDict(rows) if rows else None)


def heel_inches(value: str) -> float | None:
    """The height in inches for a value of HeelHeight, the middle of a range; None for a value without a number.

    Examples: "Flat" 0, "Under 1in" 0.5, "2in - 2 3/4in" 2.375, "5in & over" 5.
    """
    if value.strip().lower() == "flat":
        return 0.0
    numbers = [
        int(whole) + (int(above) / int(below) if above else 0.0)
        for whole, above, below in re.findall(r"(\d+)(?:\s+(\d+)/(\d+))?\s*in", value)
    ]
    if not numbers:
        return None
    if value.strip().lower().startswith("under"):
        return numbers[0] / 2
    return sum(numbers) / len(numbers)


# ---- The metadata ----


def _read_shoes(root: Path, image_root: Path) -> Shoes:
    names = _file_names(root, image_root)
    found = find_file(root, "meta-data.csv")
    path = found[0] if found else existing(root / "ut-zap50k-data" / "meta-data.csv", SOURCE)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in ("CID", *COLUMNS.values()) if column not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(reader.fieldnames or [])}")
        row_of = {row["CID"]: row for row in reader}
    without = {column: "" for column in COLUMNS.values()}
    # 100627-72 is 100627.72.jpg
    rows = [row_of.get(PurePosixPath(name).stem.replace(".", "-"), without) for name in names]
    cells = {
        attribute: [[value for part in (row[column] or "").split(";") if (value := part.strip())] for row in rows]
        for attribute, column in COLUMNS.items()
    }
    values = {attribute: sorted({value for cell in column for value in cell}) for attribute, column in cells.items()}
    empty = [attribute for attribute, names in values.items() if not names]
    if empty:
        raise ValueError(f"{path} has no {', '.join(empty)} for any of the {len(names)} images in {image_root}")
    values["heel_height"].sort(key=lambda value: (heel_inches(value) is None, heel_inches(value)))
    return Shoes(names, cells, values)


def _file_names(root: Path, image_root: Path) -> list[str]:
    """CSN's list, whose lines the triplets refer to, or the image files if the list is missing."""
    listed = root / "filenames.json"
    if listed.is_file():
        return read_lines(listed)
    names = [
        Path(folder, file).relative_to(image_root).as_posix()
        for folder, _, files in os.walk(image_root, followlinks=True)
        for file in files
        if file.endswith(".jpg")
    ]
    if not names:
        raise FileNotFoundError(f"there is no image in {image_root}; the images come with {SOURCE}")
    return sorted(names)


def _annotations(shoes: Shoes, rows: np.ndarray) -> Annotations:
    """A label if a cell contains one value, and always the list of all values."""
    ids = {a: {value: index for index, value in enumerate(names)} for a, names in shoes.attributes.items()}
    shown: list[Pairs | None] = []
    single: list[Pairs] = []
    for row in rows.tolist():
        cells = [[ids[a][value] for value in shoes.cells[a][row]] for a in shoes.attributes]
        shown.append([(a, value) for a, cell in enumerate(cells) for value in cell])
        single.append([(a, cell[0]) for a, cell in enumerate(cells) if len(cell) == 1])
    return Annotations([shoes.file_names[row] for row in rows.tolist()], single, shown)


# ---- The triplets ----


def _read_lists(root: Path, part: str, num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(triplets,) condition ids and (triplets, 3) anchor, far and close rows of `filenames.json`, in random order."""
    existing(root / "filenames.json", TRIPLET_SOURCE)
    triplets = []
    for name in CONDITIONS.values():
        path = existing(root / "tripletlists" / f"{name}_tripletlist_{_THEIR_SPLIT[part]}.txt", TRIPLET_SOURCE)
        try:
            rows = np.loadtxt(path, dtype=np.int64, ndmin=2) if path.stat().st_size else np.empty((0, 3))
        except ValueError as error:
            raise ValueError(f"{path}: expected three numbers a line: {error}") from error
        if rows.shape[1:] != (3,) or not len(rows) or rows.min() < 0 or rows.max() >= num_images:
            raise ValueError(f"{path}: expected three numbers a line, each below {num_images}")
        triplets.append(rows)
    conditions = np.repeat(np.arange(len(triplets)), [len(rows) for rows in triplets])
    together = np.concatenate(triplets)
    chosen = np.random.default_rng([seed, len(together)]).permutation(len(together))[: NUM_TRIPLETS[part]]
    return conditions[chosen], together[chosen]


def _sampled(shoes: Shoes, rows: np.ndarray, part: str, seed: int) -> Dataset:
    number = NUM_TRIPLETS[part] // len(CONDITIONS)
    triplets = []
    for index, attribute in enumerate(CONDITIONS):
        generator = np.random.default_rng([seed, list(_THEIR_SPLIT).index(part), index])
        cells = [shoes.cells[attribute][row] for row in rows.tolist()]
        if attribute == "heel_height":
            heights = [heel_inches(cell[0]) if len(cell) == 1 else None for cell in cells]
            # None becomes NaN
            triplets.append(rows[sample_by_distance(np.array(heights, dtype=np.float64), number, generator)])
        else:
            ids = {value: value_id for value_id, value in enumerate(shoes.attributes[attribute])}
            labels = np.array([ids[cell[0]] if len(cell) == 1 else -1 for cell in cells])
            triplets.append(rows[sample_by_value(labels, number, generator)])
    conditions = np.repeat(np.arange(len(triplets)), number)
    order = np.random.default_rng([seed, len(conditions)]).permutation(len(conditions))
    return _to_triplets(shoes.file_names, conditions[order], np.concatenate(triplets)[order])


def _to_triplets(file_names: Sequence[str], conditions: np.ndarray, rows: np.ndarray) -> Dataset:
    """`rows`: (triplets, 3) anchor, far and close, as in CSN's files."""
    anchor, far, close = ([file_names[row] for row in column] for column in rows.T.tolist())
    columns = dict(zip((CONDITION_COLUMN, *TRIPLET_COLUMNS), (conditions, anchor, close, far), strict=True))
    names = ClassLabel(names=list(CONDITIONS))
    features = Features({CONDITION_COLUMN: names, **dict.fromkeys(TRIPLET_COLUMNS, Value("string"))})
    return Dataset.from_dict(columns, features=features)


def sample_by_value(labels: np.ndarray, number: int, generator: np.random.Generator) -> np.ndarray:
    """The close image has the value of the anchor, the far image another one. `labels`: ids, -1 = not labelled."""
    order = np.argsort(labels, kind="stable")
    order = order[np.searchsorted(labels[order], 0) :]  # labelled images only; images of one value form a run
    values, first, count = np.unique(labels[order], return_index=True, return_counts=True)
    able = np.flatnonzero(np.repeat(count, count) >= 2)
    if len(values) < 2 or not len(able):
        raise ValueError(f"triplets need two values, one of them with two images; there are {len(values)} value(s)")
    anchor = generator.choice(able, size=number)
    run = np.searchsorted(first, anchor, side="right") - 1
    start, size = first[run], count[run]
    # another image of the run: places from the anchor on are shifted by one
    close = start + generator.integers(0, size - 1)
    close += close >= anchor
    # an image outside the run: places from its start on are shifted by its size
    far = generator.integers(0, len(order) - size)
    far += np.where(far >= start, size, 0)
    return order[np.stack([anchor, far, close], axis=1)]


def sample_by_distance(measures: np.ndarray, number: int, generator: np.random.Generator) -> np.ndarray:
    """The close image is nearer to the anchor in its measure than the far image. `measures`: NaN = not measured."""
    measured = np.flatnonzero(np.isfinite(measures))
    if len(measured) < 3 or len(np.unique(measures[measured])) < 2:
        raise ValueError(f"triplets need three images of two measures; {len(measured)} image(s) are measured")
    drawn = np.empty((0, 3), dtype=np.int64)
    while len(drawn) < number:
        images = measured[generator.integers(0, len(measured), size=(2 * number, 3))]
        anchor, one, other = images.T
        to_one, to_other = np.abs(measures[one] - measures[anchor]), np.abs(measures[other] - measures[anchor])
        far = np.where(to_one > to_other, one, other)
        close = np.where(to_one > to_other, other, one)
        # without ties
        usable = (to_one != to_other) & (anchor != one) & (anchor != other)
        drawn = np.concatenate([drawn, np.stack([anchor, far, close], axis=1)[usable]])
    return drawn[:number]
