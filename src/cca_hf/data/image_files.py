"""The image files below a folder as people have it: with links, hidden files, and files of other kinds."""

import logging
import os
import stat
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike

from PIL import Image

import cca_hf.models.images  # noqa: F401 - registers the decoder of HEIC, if it is installed

logger = logging.getLogger(__name__)

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx", ".xls", ".jsonl", ".parquet")
# Pillow recognises these formats, but leaves the decoding to a program that is usually missing.
_ONLY_RECOGNISED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_HEIF = (".heic", ".heif", ".hif")
# `datasets` leaves out folders that begin with two underscores too, such as __MACOSX of unpacked archives.
_OF_PROGRAMS = ("__", "@eaDir")
_SHOWN_NAMES = 3
_SHOWN_SUFFIXES = 6

HIDDEN = "hidden"
BY_PROGRAMS = "in folders of programs, such as __MACOSX"
NO_UTF8 = "with a name that is not UTF-8 text; rename it"
NO_FILE = "that are links to nothing, or no regular files"
TWICE = "in links to a folder that is included already"
CLOSED = "in folders that may not be read"
NO_HEIF = "in HEIC or HEIF; pip install 'cca_hf[heic]' to read them"


def image_suffixes() -> frozenset[str]:
    """The suffixes of the formats that Pillow decodes here, such as `.jpg`."""
    return frozenset(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _ONLY_RECOGNISED
    )


@dataclass
class FoundFiles:
    """The files below a folder. All paths are relative to it, with forward slashes, in alphabetical order."""

    images: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    tables: list[str] = field(
        default_factory=list
    )  # in the folder itself, and not called metadata; also in `suffixes`
    suffixes: Counter[str] = field(default_factory=Counter)  # of the files that are neither
    passed_over: dict[str, list[str]] = field(default_factory=dict)  # reason -> paths

    def pass_over(self, reason: str, *paths: str) -> None:
        if paths:
            self.passed_over.setdefault(reason, []).extend(paths)


def find_files(folder: str | PathLike[str]) -> FoundFiles:
    """Finds the images and the metadata files below a folder. Links are followed; hidden files are left out.

    A folder is visited once: first the folders themselves, then the links to folders elsewhere.
    """
    found, suffixes = FoundFiles(), image_suffixes()
    root = os.fspath(folder)
    visited: set[tuple[int, int]] = set()
    folders, links = deque([""]), deque[str]()
    while folders or links:
        is_link = not folders
        place = links.popleft() if is_link else folders.popleft()
        try:
            status = os.stat(os.path.join(root, place))
            if (status.st_dev, status.st_ino) in visited:
                found.pass_over(TWICE, place)
                continue
            visited.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(os.path.join(root, place)), key=lambda entry: entry.name)
        except PermissionError:
            found.pass_over(CLOSED, place)
            continue
        for entry in entries:
            path = f"{place}/{entry.name}" if place else entry.name
            if entry.is_dir():
                reason = _why_not_entered(entry.name)
                if reason is not None:
                    found.pass_over(reason, path)
                else:
                    (links if entry.is_symlink() else folders).append(path)
            else:
                _sort_in(found, path, entry, suffixes)
    found.images.sort()
    found.metadata.sort()
    return found


def _why_not_entered(name: str) -> str | None:
    if name.startswith("."):
        return HIDDEN
    if name.startswith(_OF_PROGRAMS):
        return BY_PROGRAMS
    return None if _is_text(name) else NO_UTF8


def _sort_in(found: FoundFiles, path: str, entry: os.DirEntry[str], suffixes: frozenset[str]) -> None:
    suffix = os.path.splitext(entry.name)[1].lower()
    is_image = suffix in suffixes
    if entry.name.startswith("."):
        if is_image:  # not a word about .DS_Store
            found.pass_over(HIDDEN, path)
    elif not is_image and suffix in _HEIF:
        found.pass_over(NO_HEIF, path)
    elif not is_image and entry.name not in METADATA_NAMES:
        found.suffixes[suffix if _is_text(suffix) else ""] += 1
        if suffix in TABLE_SUFFIXES and "/" not in path and _is_text(path):
            found.tables.append(path)
    elif not _is_text(entry.name):
        found.pass_over(NO_UTF8, path)
    elif not _is_regular(entry):
        found.pass_over(NO_FILE, path)
    elif is_image:
        found.images.append(path)
    else:
        found.metadata.append(path)


def _is_text(name: str) -> bool:
    """Whether Arrow can store a name: one that is not UTF-8 contains surrogates."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _is_regular(entry: os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return False


def warn_of_passed_over(folder: str | PathLike[str], found: FoundFiles) -> None:
    """One warning about the files that were not used."""
    text = passed_over_text(found)
    if text:
        logger.warning("files passed over in %s: %s", os.fspath(folder), text)


def passed_over_text(found: FoundFiles) -> str:
    """The numbers of the files that are not used, the reasons and the first names; "" if all are used."""
    reasons = [_counted(reason, paths) for reason, paths in found.passed_over.items()]
    others = [(suffix, number) for suffix, number in sorted(found.suffixes.items()) if suffix != ".md"]
    if others:
        others.sort(key=lambda other: -other[1])
        shown = ", ".join(f"{suffix or 'without suffix'}: {number:,}" for suffix, number in others[:_SHOWN_SUFFIXES])
        more = ", ..." if len(others) > _SHOWN_SUFFIXES else ""
        reasons.append(f"{sum(number for _, number in others):,} of no image format that can be read ({shown}{more})")
    return "; ".join(reasons)


def _counted(reason: str, paths: Sequence[str]) -> str:
    shown = ", ".join(path.encode(errors="backslashreplace").decode() for path in paths[:_SHOWN_NAMES])
    return f"{len(paths):,} {reason} ({shown}{', ...' if len(paths) > _SHOWN_NAMES else ''})"
