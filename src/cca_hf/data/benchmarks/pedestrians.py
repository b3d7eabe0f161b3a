"""Data sets of pedestrians with attributes: PETA, PA-100K, RAP v1 and v2, Market-1501-Attribute and UPAR.

    peta                    PETA.mat                   images/00001.png
    pa100k                  annotation.mat             release_data/release_data/000001.jpg, or data/
    rapv1, rapv2            RAP_annotation.mat         RAP_dataset/
    market1501_attribute    market_attribute.mat       bounding_box_train/, query/, bounding_box_test/
    upar                    train.csv                  the folders that the file names, such as PA100k/

The annotations may be at any depth of the folder. Every attribute is a column of no and yes, except for some of
Market-1501. The splits are those of the protocol; of several partitions, the first. A column `person` has the identity
where the files name it: in Market-1501, whose splits share no person, and in RAP v2, whose partitions do share persons
(`by_person` makes other splits). The files of PETA, PA-100K and RAP v1 name no persons. UPAR publishes labels of its
training images only; a column `source` has the data set of an image.

Papers: Deng et al., Pedestrian Attribute Recognition at Far Distance, ACM MM 2014; Liu et al., HydraPlus-Net, ICCV
2017; Li et al., arXiv 1603.07054 and IEEE TIP 2019 (RAP); Lin et al., Pattern Recognition 2019 (the attributes of
Market-1501); Specker et al., UPAR, WACV 2023.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from cca_hf.data.coverage import FILE_NAME_COLUMN

from .annotations import Annotations, Benchmark, find_file, to_splits

PERSON_COLUMN, SOURCE_COLUMN = "person", "source"
_NO_YES = ["no", "yes"]
_SPLITS = ("train", "validation", "test")
_PETA_EVALUATED, _RAP1_EVALUATED = 35, 51
_HELD_OUT = {"validation": 0.1, "test": 0.2}  # shares of the persons
_MARKET_FOLDERS = {"train": ("bounding_box_train",), "test": ("query", "bounding_box_test")}
_MARKET_VALUES = {  # of the values 1, 2, ...; the other fields are no and yes
    "age": ["young", "teenager", "adult", "old"],
    "gender": ["male", "female"],
    "hair": ["short", "long"],
    "up": ["long sleeve", "short sleeve"],
    "down": ["long", "short"],
    "clothes": ["dress", "pants"],
}
_PERSONS = "image_index"


def load_peta(root: str | PathLike[str]) -> Benchmark:
    """Reads PETA: the 35 evaluated attributes, and the first of the five random partitions."""
    source = "PETA, http://mmlab.ie.cuhk.edu.hk/projects/PETA.html"
    content = _read_mat(root, "PETA.mat", source)["peta"][0, 0]
    names = _texts(content[1][:, :1])[:_PETA_EVALUATED]
    labels = content[0][:, 4 : 4 + len(names)]
    files = [f"{row + 1:05d}.png" for row in range(len(labels))]
    parts = _partition(content[3])
    remark = "Persons are in several splits of this partition, and the files do not name the persons."
    return _benchmark("PETA", source, _folder(root, files, "images"), files, labels, names, parts, remark)


def load_pa100k(root: str | PathLike[str]) -> Benchmark:
    """Reads PA-100K with its own splits, which share no person."""
    source = "PA-100K, https://github.com/xh-liu/HydraPlus-Net"
    content = _read_mat(root, "annotation.mat", source)
    names = _texts(content["attributes"])
    theirs = {"train": "train", "validation": "val", "test": "test"}
    files = {split: _texts(content[f"{name}_images_name"]) for split, name in theirs.items()}
    labels = np.concatenate([content[f"{name}_label"] for name in theirs.values()])
    every = [name for split in files.values() for name in split]
    ends = np.cumsum([len(split) for split in files.values()])
    parts = dict(zip(files, np.split(np.arange(len(every)), ends[:-1]), strict=True))
    folder = _folder(root, every, "release_data/release_data", "release_data", "data")
    return _benchmark("PA-100K", source, folder, every, labels, names, parts)


def load_rapv1(root: str | PathLike[str]) -> Benchmark:
    """Reads RAP v1: the 51 evaluated attributes, and the first of the five random partitions."""
    source = "RAP v1, https://www.rapdataset.com"
    content = _read_mat(root, "RAP_annotation.mat", source)["RAP_annotation"][0, 0]
    names, files = _texts(content[3])[:_RAP1_EVALUATED], _texts(content[5])
    labels = content[1][:, : len(names)]
    remark = "Persons are in several splits of this partition, and the files do not name the persons."
    folder = _folder(root, files, "RAP_dataset")
    return _benchmark("RAP v1", source, folder, files, labels, names, _partition(content[0]), remark)


def load_rapv2(root: str | PathLike[str], *, by_person: bool = False) -> Benchmark:
    """Reads RAP v2: the 54 evaluated attributes, and the first of the five random partitions.

    Args:
        by_person: splits that share no person instead, drawn once for all: 70, 10 and 20 % of the persons. Images of
            unknown persons are training images.
    """
    source = "RAP v2, https://www.rapdataset.com"
    content = _read_mat(root, "RAP_annotation.mat", source)["RAP_annotation"][0, 0]
    files, selected = _texts(content[0]), content[3].ravel().astype(np.int64) - 1
    names = [_texts(content[2])[place] for place in selected]
    persons = content[5].ravel()
    parts, remark = _partition(content[4]), "Persons are in several splits of this partition."
    if by_person:
        parts, remark = _parts_by_person(persons), "The splits share no person; they are not those of the protocol."
    benchmark = _benchmark(
        "RAP v2", source, _folder(root, files, "RAP_dataset"), files, content[1][:, selected], names, parts, remark
    )
    known = [str(int(person)) if person > 0 else None for person in persons.tolist()]
    return _with_column(benchmark, PERSON_COLUMN, dict(zip(files, known, strict=True)))


def load_market1501_attribute(root: str | PathLike[str]) -> Benchmark:
    """Reads the 27 attributes of the persons of Market-1501. Their fields are in another order in train and test."""
    source = "Market-1501-Attribute, https://github.com/vana77/Market-1501_Attribute, and Market-1501"
    content = _read_mat(root, "market_attribute.mat", source)["market_attribute"][0, 0]
    names = sorted({*content["train"][0, 0].dtype.names} - {_PERSONS})
    values = {name: _MARKET_VALUES.get(name, _NO_YES) for name in names}
    image_root = next(iter(_folders_with(root, "bounding_box_train")), Path(root))
    annotations: dict[str, Any] = {}
    persons: dict[str, Any] = {}
    for split, folders in _MARKET_FOLDERS.items():
        fields = content[split][0, 0]
        of_person = {
            person.zfill(4): [
                (place, value - 1)
                for place, name in enumerate(names)
                if 1 <= (value := int(fields[name].ravel()[row])) <= len(values[name])
            ]
            for row, person in enumerate(_texts(fields[_PERSONS]))
        }
        files = [
            f"{folder}/{path.name}"
            for folder in folders
            for path in sorted((image_root / folder).glob("*.jpg"))
            if path.name.split("_")[0] in of_person
        ]
        if not files:
            raise FileNotFoundError(f"{image_root / folders[0]} has no images of persons; they come with {source}")
        persons |= {name: Path(name).name.split("_")[0] for name in files}
        annotations[split] = Annotations(files, [of_person[persons[name]] for name in files])
    benchmark = Benchmark("Market-1501-Attribute", source, to_splits(annotations, values, image_root))
    return _with_column(benchmark, PERSON_COLUMN, persons)


def load_upar(root: str | PathLike[str]) -> Benchmark:
    """Reads the training images of UPAR, with 40 attributes."""
    source = "the UPAR challenge, https://github.com/speckean/upar_challenge"
    path = _annotation_file(root, "train.csv", source)
    with path.open(encoding="utf-8-sig", newline="") as file:
        header, *rows = [row for row in csv.reader(file) if row]
    names = [name.lstrip("# ").strip() for name in header]
    if rows and len(rows[0]) == len(names):  # the column of paths has a name
        names = names[1:]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names) + 1:
            raise ValueError(f"{path}, line {number}: expected a path and {len(names)} numbers, got {len(row)} cells")
    files = [row[0].strip() for row in rows]
    labels = np.array([[float(cell) for cell in row[1:]] for row in rows])
    parts = {"train": np.arange(len(files))}
    remark = "UPAR publishes labels of its training images only: cca train cuts the other splits from them."
    benchmark = _benchmark("UPAR", source, _folder(root, files, "data"), files, labels, names, parts, remark)
    return _with_column(benchmark, SOURCE_COLUMN, {name: name.split("/")[0] for name in files})


def _benchmark(
    name: str,
    source: str,
    image_root: Path,
    files: Sequence[str],
    labels: np.ndarray,
    attributes: Sequence[str],
    parts: Mapping[str, np.ndarray],
    *remarks: str,
) -> Benchmark:
    """A benchmark of binary attributes; a label other than 0 and 1 is a missing one."""
    annotations = {}
    for split, rows in parts.items():
        pairs = [
            [(place, int(value)) for place, value in enumerate(labels[row].tolist()) if value in (0, 1)]
            for row in rows.tolist()
        ]
        annotations[split] = Annotations([files[row] for row in rows.tolist()], pairs)
    return Benchmark(name, source, to_splits(annotations, dict.fromkeys(attributes, _NO_YES), image_root), [*remarks])


def _with_column(benchmark: Benchmark, column: str, of_file: Mapping[str, str | None]) -> Benchmark:
    for split, rows in benchmark.splits.items():
        cells = [of_file[name] for name in rows[FILE_NAME_COLUMN][:]]
        benchmark.splits[split] = rows.add_column(column, cells)
    return benchmark


def _parts_by_person(persons: np.ndarray) -> dict[str, np.ndarray]:
    known = np.random.default_rng(0).permutation(np.unique(persons[persons > 0]))
    parts, start = {}, 0
    for split, share in _HELD_OUT.items():
        stop = start + round(share * len(known))
        parts[split] = np.flatnonzero(np.isin(persons, known[start:stop]))
        start = stop
    train = np.setdiff1d(np.arange(len(persons)), np.concatenate([*parts.values()]))
    return {"train": train, **parts}


def _read_mat(root: str | PathLike[str], name: str, source: str) -> dict[str, Any]:
    from scipy.io import loadmat

    return loadmat(_annotation_file(root, name, source))


def _annotation_file(root: str | PathLike[str], name: str, source: str) -> Path:
    found = find_file(Path(root), name)
    if not found:
        raise FileNotFoundError(f"there is no {name} in {root} or its subfolders; it comes with {source}")
    return found[0]


def _folder(root: str | PathLike[str], files: Sequence[str], *folders: str) -> Path:
    """The first of these folders below the root, or the root itself, that has the first image that exists."""
    places = [*(Path(root) / folder for folder in folders), Path(root)]
    return next((place for place in places if any((place / name).is_file() for name in files[:100])), places[0])


def _folders_with(root: str | PathLike[str], name: str) -> Iterator[Path]:
    yield from (path.parent for path in sorted(Path(root).rglob(name)) if path.is_dir())


def _leaves(value: Any) -> Iterator[np.ndarray]:
    """The arrays of numbers or characters in nested cells and structs, in their order."""
    if isinstance(value, np.void):
        for name in value.dtype.names or ():
            yield from _leaves(value[name])
    elif value.dtype.names is not None or value.dtype == object:
        for each in value.ravel():
            yield from _leaves(each)
    else:
        yield value


def _texts(cells: np.ndarray) -> list[str]:
    return [str(each.ravel()[0]).strip() for each in _leaves(cells)]


def _partition(partitions: np.ndarray) -> dict[str, np.ndarray]:
    """The rows of the splits of the first partition, which has two or three of them."""
    rows = [each.ravel().astype(np.int64) - 1 for each in _leaves(partitions.ravel()[0])]
    splits = _SPLITS if len(rows) == len(_SPLITS) else ("train", "test")
    return dict(zip(splits, rows, strict=True))
