"""Where something is written that must not mix with what was there: a prepared data set, a dry run of a push."""

from pathlib import Path


def check_new(folder: Path) -> None:
    """
    Raises:
        FileExistsError: if it is a file, or holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; name a new folder")
