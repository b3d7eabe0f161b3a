"""Decoding every picture of a data set once, to know the broken ones by name before any work is lost."""

import logging

from datasets import Dataset, Features, Value

from cca_hf.models.images import ImageInput, UnreadableImageError, load_image

logger = logging.getLogger(__name__)

_SHOWN = 5


def find_unreadable(dataset: Dataset, split: str, num_proc: int | None = None) -> dict[int, str]:
    """Row -> why its image cannot be read."""
    reasons = dataset.select_columns(["image"]).map(
        _reasons,
        batched=True,
        batch_size=64,
        remove_columns=["image"],
        features=Features({"reason": Value("string")}),
        num_proc=num_proc,
        desc=f"Checking the images of {split}",
    )
    return {row: reason for row, reason in enumerate(reasons["reason"]) if reason is not None}


def report_unreadable(reasons: dict[str, dict[int, str]], *, skipped: bool) -> None:
    """Raises, or warns when the images are skipped."""
    named = [f"{split}[{row}]: {reason}" for split, rows in reasons.items() for row, reason in rows.items()]
    counts = ", ".join(f"{len(rows)} in {split}" for split, rows in reasons.items() if rows)
    text = f"{len(named)} unreadable image(s) ({counts}):\n  " + "\n  ".join(named[:_SHOWN])
    if len(named) > _SHOWN:
        text += f"\n  ... and {len(named) - _SHOWN} more"
    if not skipped:
        raise UnreadableImageError(f"{text}\nRepair them, or leave them out with on_unreadable='skip'.")
    logger.warning("left out %s", text)


def _reasons(batch: dict[str, list]) -> dict[str, list]:
    return {"reason": [_reason(image) for image in batch["image"]]}


def _reason(image: ImageInput | None) -> str | None:
    if image is None:
        return "there is no image in this row"
    try:
        load_image(image)
    except UnreadableImageError as error:
        return str(error)
    return None
