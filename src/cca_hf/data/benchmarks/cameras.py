"""What the readers of re-identification share: images with an identity and a camera, in official splits."""

import os
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from .annotations import Annotations, Benchmark, to_splits

IDENTITY, CAMERA = "identity", "camera"  # the columns
JUNK = "-1"  # an identity in file names: a bad box
_SUFFIXES = (".jpg", ".jpeg", ".png")
_NAME = re.compile(r"(-1|\d+)_c(\d+)")


class Sighting(NamedTuple):
    """One image."""

    file_name: str  # relative to the root
    identity: str
    camera: int


def load_folders(root: str | PathLike[str], name: str, source: str, folders: Mapping[str, str]) -> Benchmark:
    """Reads a benchmark whose splits are folders, and whose files are called <identity>_c<camera>...

    Args:
        root: the folder with these folders, or one that contains it.
        folders: split -> the name of its folder.

    Raises:
        FileNotFoundError: if a folder is missing or has no images; names its origin.
        ValueError: for an image with a name of another form.
    """
    splits: dict[str, list[Sighting]] = {}
    junk = 0
    for split, folder in folders.items():
        sightings = [_parse(file) for file in _image_names(Path(root), folder, source)]
        splits[split] = [each for each in sightings if each.identity != JUNK]
        junk += len(sightings) - len(splits[split])
    remarks = [f"{junk:,} images of the identity -1 (bad boxes) are left out, as in the protocol."] if junk else []
    return make_benchmark(name, source, Path(root), splits, remarks)


def make_benchmark(
    name: str, source: str, root: Path, splits: Mapping[str, Sequence[Sighting]], remarks: Sequence[str] = ()
) -> Benchmark:
    """The benchmark with the columns `identity` and `camera`."""
    sightings = [each for split in splits.values() for each in split]
    identities = sorted({each.identity for each in sightings})
    cameras = sorted({each.camera for each in sightings})
    identity_ids = {identity: place for place, identity in enumerate(identities)}
    camera_ids = {camera: place for place, camera in enumerate(cameras)}
    annotations = {
        split: Annotations(
            [each.file_name for each in images],
            [[(0, identity_ids[each.identity]), (1, camera_ids[each.camera])] for each in images],
        )
        for split, images in splits.items()
    }
    values = {IDENTITY: identities, CAMERA: [str(camera) for camera in cameras]}
    return Benchmark(name, source, to_splits(annotations, values, root), list(remarks))


def find_folder(root: Path, name: str, source: str) -> Path:
    """The first folder with this name, `root` or at any depth below it and through links.

    Raises:
        FileNotFoundError: if there is none; names its origin.
    """
    found = [Path(folder) / name for folder, folders, _ in os.walk(root, followlinks=True) if name in folders]
    if not found:
        raise FileNotFoundError(f"there is no folder {name} in {root} or its subfolders; it comes with {source}")
    return min(found)


def _image_names(root: Path, folder: str, source: str) -> list[str]:
    found = find_folder(root, folder, source)
    names = sorted(path.relative_to(root).as_posix() for path in found.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not names:
        raise FileNotFoundError(f"{found} contains no images; they come with {source}")
    return names


def _parse(file: str) -> Sighting:
    found = _NAME.match(file.rpartition("/")[2])
    if found is None:
        raise ValueError(f"{file}: expected a name such as 0002_c1s1_000451_03.jpg, <identity>_c<camera>...")
    return Sighting(file, found[1], int(found[2]))
