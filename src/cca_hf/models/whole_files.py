"""Files and folders that are written completely or not at all."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError


def check_new(folder: Path) -> None:
    """Raises FileExistsError for a file, or a folder that is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already; choose a new folder")


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
