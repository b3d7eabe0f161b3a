"""The summary of a data set: images, values and missing labels per attribute and split."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class AttributeSummary:
    """One attribute in one split."""

    values: int  # with at least one image
    labelled: int
    unlabelled: int
    single_image_values: tuple[str, ...]  # values without a second image to retrieve

    @classmethod
    def from_labels(cls, labels: np.ndarray, names: Sequence[str]) -> "AttributeSummary":
        """`labels`: (images,) ids, -1 where not labelled."""
        counts = np.bincount(labels[labels >= 0], minlength=len(names))
        return cls(
            values=int((counts > 0).sum()),
            labelled=int(counts.sum()),
            unlabelled=int((labels < 0).sum()),
            single_image_values=tuple(names[value] for value in np.flatnonzero(counts == 1).tolist()),
        )


@dataclass(frozen=True)
class SplitSummary:
    """One split: number of images, of groups of near copies (None without a group column), and all attributes."""

    images: int
    groups: int | None
    attributes: dict[str, AttributeSummary]


@dataclass(frozen=True)
class DatasetSummary:
    """The result of `AttributeDataset.summary`. As text it is a table of the values with images in each split."""

    splits: dict[str, SplitSummary]
    value_counts: Mapping[str, int]  # attribute -> number of named values, with or without images

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        rows = [["attribute", "values", *map(_title, self.splits, self.splits.values())]]
        for attribute, named in self.value_counts.items():
            cells = [_cell(split.attributes[attribute]) for split in self.splits.values()]
            rows.append([attribute, f"{named:,}", *cells])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _title(name: str, split: SplitSummary) -> str:
    return f"{name}: {split.images:,} images" + ("" if split.groups is None else f", {split.groups:,} groups")


def _cell(attribute: AttributeSummary) -> str:
    text = f"{attribute.values:,}"
    if attribute.single_image_values:
        text += f", {len(attribute.single_image_values):,} with one image"
    if attribute.unlabelled:
        text += f", {attribute.unlabelled:,} unlabelled"
    return text
