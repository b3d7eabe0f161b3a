"""Files and folders that are written completely or not at all, and those of them that may leave the machine."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError

CHECKSUMS = "checksums.json"
WITHOUT_CHECKSUM = {CHECKSUMS, "README.md", "latest_version_hint.json"}  # are written again: the card, a hint of Lance


def check_new(folder: Path) -> None:
    """Raises FileExistsError for a file, or a folder that is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already; choose a new folder")


def may_leave(file: Path, folder: Path) -> bool:
    """Whether a file of `folder` may be published: a regular file, not hidden, and not reached through a link."""
    names = file.relative_to(folder).parts
    on_the_way = [folder.joinpath(*names[: place + 1]) for place in range(len(names))]
    hidden = any(name.startswith(".") for name in names)
    return not hidden and not any(path.is_symlink() for path in on_the_way) and file.is_file()


def write_checksums(folder: Path) -> None:
    """Write `checksums.json`, which `cca check` compares with the files: the SHA-256 of each by its name.

    Files that are in it already are not read again, if they are still there.
    """
    path = folder / CHECKSUMS
    known = read_checksums(folder) if path.exists() else {}
    files = [file for file in sorted(folder.rglob("*")) if may_leave(file, folder)]
    names = [file.relative_to(folder).as_posix() for file in files if file.name not in WITHOUT_CHECKSUM]
    write_json({"sha256": {name: known.get(name) or sha256_of(folder / name) for name in names}}, path)


def read_checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of the files of a folder by their names.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        return dict(json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))["sha256"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{folder / CHECKSUMS} is damaged: {error}") from error


def sha256_of(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_json(content: Any, path: str | Path) -> Path:
    """Write `content` to `path`, completely or not at all. Missing folders are created."""
    return write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", path)


def write_text(content: str, path: str | Path) -> Path:
    """As [`write_json`]."""
    with staged(Path(path).parent) as folder:
        (folder / Path(path).name).write_text(content, encoding="utf-8")
    return Path(path)


@contextmanager
def staged(directory: str | PathLike[str]) -> Iterator[Path]:
    """A folder inside `directory`. Its files move to `directory` once all of them are written.

    Raises:
        OSError: if writing fails; `directory` is then unchanged, and the message says so.
    """
    target = Path(directory)
    if target.is_file():
        raise OSError(f"cannot save to {target}: it is a file, and must be a folder")
    target.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target, prefix=".saving-", ignore_cleanup_errors=True) as folder:
        try:
            yield Path(folder)
        except (OSError, SafetensorError) as error:
            raise OSError(f"saving to {target} failed, what was there before is untouched: {error}") from error
        for path in sorted(Path(folder).iterdir()):
            path.replace(target / path.name)
