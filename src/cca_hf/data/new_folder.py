"""Checks the folder of an output that must not be mixed with other files."""

from pathlib import Path


def check_new(folder: Path) -> None:
    """Raises FileExistsError for a file, or a folder that is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already; choose a new folder")
