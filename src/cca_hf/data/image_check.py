"""Decodes every image of a data set once, to name the broken ones before any work is lost."""

import hashlib
import logging
import os

from datasets import Dataset, Features, Value

from cca_hf.models.images import UnreadableImageError, load_image

logger = logging.getLogger(__name__)

_SHOWN = 5


def find_unreadable(dataset: Dataset, split: str, num_proc: int | None = None) -> dict[int, str]:
    """Row -> why its image cannot be read.

    `datasets` caches the result. A file that has changed since is decoded again, and so is every URL.
    """
    images = dataset.select_columns(["image"])
    files = _state_of_files(images)
    reasons = images.map(
        _reasons,
        batched=True,
        batch_size=64,
        remove_columns=["image"],
        features=Features({"reason": Value("string")}),
        fn_kwargs={"files": files},
        load_from_cache_file=files is not None,
        num_proc=num_proc,
        desc=f"Checking the images of {split}",
    )
    return {row: reason for row, reason in enumerate(reasons["reason"]) if reason is not None}


def report_unreadable(reasons: dict[str, dict[int, str]], *, skipped: bool) -> None:
    """Raise an error, or log a warning if the images are skipped."""
    named = [f"{split}[{row}]: {reason}" for split, rows in reasons.items() for row, reason in rows.items()]
    counts = ", ".join(f"{len(rows)} in {split}" for split, rows in reasons.items() if rows)
    text = f"{len(named)} unreadable image(s) ({counts}):\n  " + "\n  ".join(named[:_SHOWN])
    if len(named) > _SHOWN:
        text += f"\n  ... and {len(named) - _SHOWN} more"
    if not skipped:
        raise UnreadableImageError(f"{text}\nRepair them, or leave them out with on_unreadable='skip'.")
    logger.warning("left out %s", text)


def _state_of_files(images: Dataset) -> str | None:
    """A hash of the paths, sizes and times of the image files; `None` if some images are URLs."""
    digest = hashlib.sha256()
    for batch in images.flatten().select_columns(["image.path"]).iter(batch_size=1000):
        for path in batch["image.path"]:
            if path is None:
                continue
            if path.startswith(("http://", "https://")):
                return None
            try:
                status = os.stat(path)
            except OSError:  # missing, or only the name of an image whose bytes are in the data set
                continue
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _reasons(batch: dict[str, list], files: str | None) -> dict[str, list]:
    """`files` is an argument only for the cache, in which it distinguishes the states of the files."""
    reasons: list[str | None] = []
    for image in batch["image"]:
        try:
            if image is not None:
                load_image(image)
            reasons.append(None if image is not None else "there is no image in this row")
        except UnreadableImageError as error:
            reasons.append(str(error))
    return {"reason": reasons}
