"""Makes missing splits: seeded, with all images of a group in one split."""

import logging

import numpy as np
from datasets import Dataset, DatasetDict

from .columns import group_codes

logger = logging.getLogger(__name__)

# a source has such a split under this name, or as `<name>_query` and `<name>_gallery`
HELD_OUT = ("validation", "test")
_SHARE = 0.1
_OTHER_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}


def with_usual_names(splits: DatasetDict) -> DatasetDict:
    """Renames `val`, `valid` and `dev` to `validation`, and checks that queries and galleries come in pairs."""
    named = DatasetDict()
    for split, dataset in splits.items():
        usual = _OTHER_NAMES.get(split, split)
        named[split if usual in splits else usual] = dataset
    for held_out in HELD_OUT:
        pair = (f"{held_out}_query", f"{held_out}_gallery")
        present = [split for split in pair if split in named]
        if len(present) == 1:
            (absent,) = set(pair) - set(present)
            raise ValueError(f"the split {present[0]!r} needs a split {absent!r}; the splits are {', '.join(named)}")
    for split, dataset in named.items():
        if dataset.num_rows == 0:
            raise ValueError(f"the split {split!r} is empty; remove it from the source, or fill it")
    return named


def complete_splits(splits: DatasetDict, group_column: str | None, seed: int) -> DatasetDict:
    """Cuts a missing validation or test split, each a tenth of the images, from the training images.

    A single split counts as training images, unless its name is validation or test. A source without training images
    is for evaluation, and is not changed. An image without a group is a group by itself.
    """
    missing = [held_out for held_out in HELD_OUT if held_out not in splits and f"{held_out}_query" not in splits]
    source = "train" if "train" in splits else next(iter(splits))
    if not missing or (source != "train" and (len(splits) > 1 or source in HELD_OUT)):
        return splits
    parts = _cut(splits[source], len(missing), group_column, seed)
    made = {"train": parts[0], **dict(zip(missing, parts[1:], strict=True))}
    shown = ", ".join(f"{name} ({part.num_rows:,} images)" for name, part in made.items())
    text = "the source has no %s split: made %s from %r (seed %d, groups kept together)"
    logger.warning(text, " or ".join(missing), shown, source, seed)
    others = {split: dataset for split, dataset in splits.items() if split != source}
    order = ("train", *HELD_OUT, *others)
    return DatasetDict(sorted({**made, **others}.items(), key=lambda item: order.index(item[0])))


def warn_of_shared_groups(splits: DatasetDict, group_column: str) -> None:
    """Warns of near copies of training images in other splits: they make results look better than they are."""
    if "train" not in splits:
        return
    groups = group_codes(splits, group_column)
    for split, split_groups in groups.items():
        shared = int((np.isin(split_groups, groups["train"]) & (split_groups >= 0)).sum())
        if split != "train" and shared:
            text = "%d of %d images of the split %r share their %r with training images"
            logger.warning(text, shared, len(split_groups), split, group_column)


def _cut(dataset: Dataset, held_out: int, group_column: str | None, seed: int) -> list[Dataset]:
    """The remaining training images, then `held_out` parts, all in the order of the source."""
    rows = dataset.num_rows
    groups = np.arange(rows)
    if group_column is not None:
        codes = group_codes({"source": dataset}, group_column)["source"]
        groups = np.where(codes >= 0, codes, -1 - groups)
    _, groups = np.unique(groups, return_inverse=True)
    sizes = np.bincount(groups)
    if len(sizes) <= held_out:
        raise ValueError(
            f"{rows} image(s) in {len(sizes)} group(s) cannot be cut into {held_out + 1} splits; add images, or add "
            "splits to the source"
        )
    part_of_group = np.zeros(len(sizes), dtype=np.int64)
    left = np.random.default_rng(seed).permutation(len(sizes))
    wanted = round(_SHARE * rows)
    for part in range(1, held_out + 1):
        small_enough = left[sizes[left] <= wanted]
        chosen = small_enough[np.cumsum(sizes[small_enough]) <= wanted]
        chosen = chosen[: len(left) - 1 - (held_out - part)]  # the following parts need groups too
        if not len(chosen):  # few images, or only large groups
            chosen = left[[np.argmin(sizes[left])]]
        part_of_group[chosen] = part
        left = left[part_of_group[left] == 0]
    return [dataset.select(np.flatnonzero(part_of_group[groups] == part)) for part in range(held_out + 1)]
