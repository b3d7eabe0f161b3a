"""A data set of labelled pictures in the one schema."""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from datasets import Dataset, DatasetDict

from cca_hf.models.images import UnreadableImageError

from .columns import ColumnPlace, group_codes, integers, missing_message
from .coverage import Coverage
from .image_check import find_unreadable, report_unreadable
from .summary import AttributeSummary, DatasetSummary, SplitSummary
from .value_sets import ValueSetKind, read_value_sets

IMAGE_COLUMN = "image"


@dataclass(frozen=True)
class AttributeDataset:
    """Pictures with one label for each attribute, in named splits.

    Args:
        splits: the column `image` is an undecoded `datasets.Image`; every attribute is a `ClassLabel` column, -1 where
            an image is not labelled; whatever else the source had is kept, such as the lists `<attribute>_all` and
            `<attribute>_maybe` of an attribute of which pictures show several values, or may show more.
        attributes: attribute -> the names of its values, in the order of their ids.
        group_column: near copies share a value of this column (an item's number); None if there is no such column.
        coverage: of the splits of which pictures are missing, how many are there.
        cut_splits: the splits that `load_attribute_dataset` cut from the training images, and what it left of these.
    """

    splits: DatasetDict
    attributes: dict[str, list[str]]
    group_column: str | None = None
    coverage: dict[str, Coverage] = field(default_factory=dict)
    cut_splits: tuple[str, ...] = ()

    def __getitem__(self, split: str) -> Dataset:
        if split not in self.splits:
            raise KeyError(missing_message("split", [split], self.splits))
        return self.splits[split]

    def __contains__(self, split: object) -> bool:
        return split in self.splits

    def labels(self, split: str) -> np.ndarray:
        """(images, attributes) int64, -1 where not labelled. Reads the label columns only."""
        dataset = self[split]
        labels = np.full((dataset.num_rows, len(self.attributes)), -1, dtype=np.int64)
        for index, attribute in enumerate(self.attributes):
            labels[:, index] = integers(ColumnPlace(attribute).read(dataset))
        return labels

    def value_sets(self, split: str, kind: ValueSetKind) -> dict[str, np.ndarray]:
        """Attribute -> (images, values) booleans: the values that a picture shows ("all") or may show ("maybe").

        Holds the attributes with a column `<attribute>_all` or `<attribute>_maybe` only; see `data/value_sets.py`.
        """
        sets = {
            attribute: read_value_sets(self[split], split, attribute, values, kind)
            for attribute, values in self.attributes.items()
        }
        return {attribute: found for attribute, found in sets.items() if found is not None}

    def groups(self, split: str) -> np.ndarray | None:
        """(images,) int64: equal codes for near copies, the same code in every split; -1 for an image of no group."""
        self[split]  # first of all, for its error
        if self.group_column is None:
            return None
        columns = [ColumnPlace(self.group_column).read(dataset) for dataset in self.splits.values()]
        return dict(zip(self.splits, group_codes(columns), strict=True))[split]

    def coverage_of(self, *splits: str) -> Coverage | None:
        """Of these splits together; None where no picture is missing."""
        if not any(split in self.coverage for split in splits):
            return None
        whole = {split: Coverage(self[split].num_rows, self[split].num_rows) for split in splits}
        return sum((self.coverage.get(split, whole[split]) for split in splits), Coverage(0, 0))

    def summary(self) -> DatasetSummary:
        """Values per attribute, missing labels, and values with one image, for every split."""
        splits = {}
        for split in self.splits:
            labels, groups = self.labels(split), self.groups(split)
            splits[split] = SplitSummary(
                images=len(labels),
                groups=None if groups is None else len(np.unique(groups[groups >= 0])) + int((groups < 0).sum()),
                attributes={
                    attribute: AttributeSummary.from_labels(labels[:, index], names)
                    for index, (attribute, names) in enumerate(self.attributes.items())
                },
            )
        return DatasetSummary(splits, {attribute: len(names) for attribute, names in self.attributes.items()})

    def check_images(
        self, on_unreadable: Literal["error", "skip"] = "error", num_proc: int | None = None
    ) -> "AttributeDataset":
        """Decodes every image once, with a progress bar, so that no training dies of a broken file after an hour.

        `datasets` caches the result: a second call on the same data reads it, unless files have changed since.

        Args:
            on_unreadable: "error" raises; "skip" returns the data set without the unreadable images and warns.

        Raises:
            UnreadableImageError: with the count and the first few names and reasons.
        """
        if on_unreadable not in ("error", "skip"):
            raise ValueError(f"on_unreadable must be 'error' or 'skip', got {on_unreadable!r}")
        reasons = {split: find_unreadable(dataset, split, num_proc) for split, dataset in self.splits.items()}
        if not any(reasons.values()):
            return self
        report_unreadable(reasons, skipped=on_unreadable == "skip")
        readable, coverage = DatasetDict(), dict(self.coverage)
        for split, dataset in self.splits.items():
            if len(reasons[split]) == dataset.num_rows:
                raise UnreadableImageError(f"no image of the split {split!r} can be read")
            keep = np.setdiff1d(np.arange(dataset.num_rows), np.fromiter(reasons[split], dtype=np.int64))
            readable[split] = dataset.select(keep) if reasons[split] else dataset
            if reasons[split]:
                listed = coverage[split].listed if split in coverage else dataset.num_rows
                coverage[split] = Coverage(len(keep), listed)
        return replace(self, splits=readable, coverage=coverage)
