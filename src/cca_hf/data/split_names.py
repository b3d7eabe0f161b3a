"""The names of splits: `val`, `valid` and `dev` are other names of `validation`."""

from collections.abc import Container

_VALIDATION = ("validation", "valid", "val", "dev")


def usual_split_name(split: str) -> str:
    """`validation` for its other names; any other name is returned unchanged."""
    return "validation" if split in _VALIDATION else split


def same_split(split: str, splits: Container[str]) -> str:
    """The name by which `splits` has this split: the name itself, or another name of the same split.

    A benchmark has the split `validation` as `validation_query` and `validation_gallery`.
    """
    if split in splits or split not in _VALIDATION:
        return split
    names = (name for name in _VALIDATION if name in splits or f"{name}_query" in splits)
    return next(names, usual_split_name(split))
