"""FashionAI: eight attributes of women's clothes, one attribute per image.

    fashionAI_attributes_train{1,2}/Annotations/label.csv    Images/<attribute>_labels/<md5>.jpg,<attribute>_labels,nny
    fashionAI_attributes_train{1,2}/Images/<attribute>_labels/<md5>.jpg

A row has one letter per value: `y` marks the label, and `m` ("may be") goes into `<attribute>_maybe`. In the protocol
a retrieved `m` counts as wrong; the evaluation gives a second figure without these candidates.

ASEN's splits define queries and galleries; the training images are all official rows whose md5 is in neither the
validation nor the test part. ASEN's `label_train.txt` then shows whether the copy is complete.

Paper: Zou et al., FashionAI: A Hierarchical Dataset for Fashion Understanding, CVPR Workshops 2019.
"""

import posixpath
from collections import Counter
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import NamedTuple, TypeAlias

from .annotations import Annotations, Benchmark, Pairs, find_file, read_lines, to_splits
from .asen import EVALUATION_SPLITS, AsenSplits

SOURCE = (
    "the FashionAI Global Challenge, fashionAI_attributes_train1.zip and fashionAI_attributes_train2.zip of "
    "https://tianchi.aliyun.com/competition/entrance/231671"
)

# The names used in the contest, in the order of the letters.
ATTRIBUTES = {
    "skirt_length": ["Invisible", "Short Length", "Knee Length", "Midi Length", "Ankle Length", "Floor Length"],
    "sleeve_length": [
        "Invisible", "Sleeveless", "Cup Sleeves", "Short Sleeves", "Elbow Sleeves", "3/4 Sleeves", "Wrist Length",
        "Long Sleeves", "Extra Long Sleeves",
    ],
    "coat_length": [
        "Invisible", "High Waist Length", "Regular Length", "Long Length", "Micro Length", "Knee Length",
        "Midi Length", "Ankle&Floor Length",
    ],
    "pant_length": ["Invisible", "Short Pant", "Mid Length", "3/4 Length", "Cropped Pant", "Full Length"],
    "collar_design": ["Invisible", "Shirt Collar", "Peter Pan", "Puritan Collar", "Rib Collar"],
    "lapel_design": ["Invisible", "Notched", "Collarless", "Shawl Collar", "Plus Size Shawl"],
    "neckline_design": [
        "Invisible", "Strapless Neck", "Deep V Neckline", "Straight Neck", "V Neck", "Square Neckline",
        "Off Shoulder", "Round Neckline", "Sweat Heart Neck", "OneShoulder Neckline",
    ],
    "neck_design": ["Invisible", "Turtle Neck", "Ruffle Semi-High Collar", "Low Turtle Neck", "Draped Collar"],
}  # fmt: skip
ImageKey: TypeAlias = tuple[str, int]  # the md5 and the attribute identify the row of an image, in any folder


class OfficialRow(NamedTuple):
    """One line of a `label.csv`."""

    file_name: str  # relative to the root
    attribute: int
    value: int
    maybe: list[int]


def load_fashionai(root: str | PathLike[str], asen_splits: str | PathLike[str] | None = None) -> Benchmark:
    """Reads the labels of the original download, with the splits of ASEN if their folder is given.

    Without `asen_splits` all labelled images are in one split, `train`.

    Args:
        root: the folder with the unpacked zip files.
        asen_splits: the folder with ASEN's `meta.json`.
    """
    root = Path(root)
    official = read_official_rows(root)
    if asen_splits is None:
        if not official:
            raise FileNotFoundError(f"there is no label.csv in {root} or its subfolders; it comes with {SOURCE}")
        return Benchmark("FashionAI", SOURCE, to_splits({"train": _annotations(official.values())}, ATTRIBUTES, root))
    asen = AsenSplits(asen_splits, "FashionAI")
    given = {attribute: len(values) for attribute, values in ATTRIBUTES.items()}
    if asen.num_values != given:
        raise ValueError(f"{asen.folder.parent / 'meta.json'}: expected {given}, got {asen.num_values}")
    evaluation = {split: asen.evaluation(split) for split in EVALUATION_SPLITS}
    training, remarks = _training(asen, evaluation.values(), official)
    merged = evaluation if training is None else {"train": training, **evaluation}
    splits = {split: _with_official(rows, official) for split, rows in merged.items()}
    _check_against_official(evaluation.values(), official)
    return Benchmark("FashionAI", SOURCE, to_splits(splits, ATTRIBUTES, root), remarks)


def read_official_rows(root: Path) -> dict[ImageKey, OfficialRow]:
    """The rows of all `label.csv` files at any depth; a row in several files counts once."""
    rows: dict[ImageKey, OfficialRow] = {}
    for file in find_file(root, "label.csv"):
        folder = file.parent.parent if file.parent.name == "Annotations" else file.parent
        prefix = folder.relative_to(root).as_posix()
        for number, line in enumerate(read_lines(file), start=1):
            if not line:
                continue
            row = _parse(line, prefix, f"{file}, line {number}")
            known = rows.setdefault((Path(row.file_name).stem, row.attribute), row)
            if (known.value, known.maybe) != (row.value, row.maybe):
                raise ValueError(f"{file}, line {number}: {line!r} contradicts an earlier row of the same image")
    return rows


def _parse(line: str, prefix: str, place: str) -> OfficialRow:
    name, theirs, letters = [*line.split(","), "", ""][:3]
    attribute = theirs.removesuffix("_labels")
    if attribute not in ATTRIBUTES:
        raise ValueError(f"{place}: expected 'path,<attribute>_labels,letters', got {line!r}")
    expected = len(ATTRIBUTES[attribute])
    if len(letters) != expected or letters.count("y") != 1 or set(letters) - set("ymn"):
        raise ValueError(
            f"{place}: {attribute} has {expected} values, so expected {expected} letters, one y and the others n or "
            f"m; got {letters!r}"
        )
    maybe = [value for value, letter in enumerate(letters) if letter == "m"]
    attribute_id = list(ATTRIBUTES).index(attribute)
    return OfficialRow(posixpath.normpath(f"{prefix}/{name}"), attribute_id, letters.index("y"), maybe)


def _annotations(rows: Iterable[OfficialRow]) -> Annotations:
    rows = list(rows)
    return Annotations(
        [row.file_name for row in rows],
        [[(row.attribute, row.value)] for row in rows],
        maybe=[[(row.attribute, value) for value in row.maybe] for row in rows],
    )


def _training(
    asen: AsenSplits, evaluation: Iterable[Annotations], official: dict[ImageKey, OfficialRow]
) -> tuple[Annotations | None, list[str]]:
    """The training images: ASEN's list, or all official rows outside the evaluation."""
    if (listed := asen.training()) is not None:
        return listed, []
    held_out = {Path(name).stem for rows in evaluation for name in rows.file_names}
    training = _annotations(row for key, row in official.items() if key[0] not in held_out)
    if not training.file_names:
        return None, [f"There are no training images: filenames_train.txt is missing, and label.csv of {SOURCE}."]
    published = asen.training_pairs()
    if published is None:
        return training, ["label_train.txt is missing, so that missing training images cannot be noticed."]
    ours, theirs = (Counter(pair for row in rows for pair in row) for rows in (training.pairs, published))
    counted = f"Training images: {ours.total():,} official rows outside the validation and test part; "
    if ours == theirs:
        return training, [counted + "the number of images of each value is that of ASEN's label_train.txt."]
    differ = len((ours - theirs) | (theirs - ours))
    return training, [
        f"{counted}ASEN's label_train.txt has {theirs.total():,}, and {differ} of {len(theirs)} values differ in "
        "number: this copy of label.csv is not complete."
    ]


def _with_official(rows: Annotations, official: dict[ImageKey, OfficialRow]) -> Annotations:
    """Adds to ASEN's rows what only the official rows contain: the path of the image and the values it may show."""
    if rows.maybe is not None or not official:
        return rows
    file_names: list[str] = []
    maybe: list[Pairs | None] = []
    for name, pairs in zip(rows.file_names, rows.pairs, strict=True):
        known = [official[key] for a, _ in pairs if (key := (Path(name).stem, a)) in official]
        file_names.append(known[0].file_name if known else name)
        maybe.append([(row.attribute, value) for row in known for value in row.maybe] if known else None)
    return Annotations(file_names, rows.pairs, maybe=maybe)


def _check_against_official(evaluation: Iterable[Annotations], official: dict[ImageKey, OfficialRow]) -> None:
    evaluated = [each for rows in evaluation for each in zip(rows.file_names, rows.pairs, strict=True)]
    differ = [
        f"{name}: {list(ATTRIBUTES)[attribute]} {value} and {official[key].value}"
        for name, pairs in evaluated
        for attribute, value in pairs
        if (key := (Path(name).stem, attribute)) in official and official[key].value != value
    ]
    if differ:
        raise ValueError(
            f"ASEN's files and label.csv differ on {len(differ)} of {len(evaluated)} evaluated images, such as "
            f"{'; '.join(differ[:3])}"
        )
