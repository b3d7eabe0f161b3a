"""`AttributeDataset`: labelled images in one schema, and the summary of such a data set."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Literal

import numpy as np
from datasets import Dataset, DatasetDict, Features, Value

from cca_hf.models.images import UnreadableImageError, load_image

from .columns import ColumnPlace, ValueSetKind, group_codes, integers, missing_message, read_value_sets
from .coverage import Coverage
from .decoded_images import with_decoded_images, with_encoded_images
from .html_table import Cell, Thumbnail, html_table, thumbnail
from .image_column import IMAGE_COLUMN
from .split_names import same_split

logger = logging.getLogger(__name__)

_SHOWN_IMAGES = 5
_SHOWN_VALUES = 5
_SHOWN_ATTRIBUTES = 10  # in a notebook; each shows images, which takes time


@dataclass(frozen=True)
class AttributeSummary:
    """One attribute in one split."""

    values: int  # with at least one image
    labelled: int
    unlabelled: int
    single_image_values: tuple[str, ...]  # values without a second image to retrieve


@dataclass(frozen=True)
class SplitSummary:
    """One split: number of images, of groups of near copies (None without a group column), and all attributes."""

    images: int
    groups: int | None
    attributes: dict[str, AttributeSummary]


@dataclass(frozen=True, repr=False)
class DatasetSummary:
    """The result of `AttributeDataset.summary`. It is shown as a table of the values with images in each split."""

    splits: dict[str, SplitSummary]
    value_counts: Mapping[str, int]  # attribute -> number of named values, with or without images

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def __repr__(self) -> str:
        rows = [self._header(), *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        return html_table(self._header(), [self._rows()], align="left")

    def _header(self) -> list[str]:
        header = ["attribute", "values"]
        for name, split in self.splits.items():
            groups = "" if split.groups is None else f", {split.groups:,} groups"
            header.append(f"{name}: {split.images:,} images{groups}")
        return header

    def _rows(self) -> list[list[str]]:
        return [
            [attribute, f"{named:,}", *(_cell(split.attributes[attribute]) for split in self.splits.values())]
            for attribute, named in self.value_counts.items()
        ]


def _cell(attribute: AttributeSummary) -> str:
    text = f"{attribute.values:,}"
    if attribute.single_image_values:
        text += f", {len(attribute.single_image_values):,} with one image"
    if attribute.unlabelled:
        text += f", {attribute.unlabelled:,} unlabelled"
    return text


@dataclass(frozen=True, repr=False)
class AttributeDataset(Mapping[str, Dataset]):
    """Images with one label per attribute, in named splits: a mapping from the name of a split to its rows.

    `data["train"]` is a `datasets.Dataset` whose images are PIL images on access, upright and RGB. `valid`, `val` and
    `dev` are other names of `validation`.

    Args:
        splits: data sets with the column `image`, an undecoded `datasets.Image`, and one `ClassLabel` column per
            attribute (-1: not labelled). Other columns of the source are kept, see also `value_sets`.
        attributes: attribute -> names of its values, in the order of their ids.
        group_column: column whose values near copies share, such as an item number; None without such a column.
        coverage: split -> number of images present and listed, for splits with missing images.
        cut_splits: the splits that `load_attribute_dataset` cut from the training images, and what it left of them.

    Example:

    ```python
    >>> len(data), list(data)
    (3, ['train', 'validation', 'test'])
    >>> data["train"][0]["image"]
    <PIL.Image.Image image mode=RGB size=64x64>
    ```
    """

    splits: DatasetDict
    attributes: dict[str, list[str]]
    group_column: str | None = None
    coverage: dict[str, Coverage] = field(default_factory=dict)
    cut_splits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        encoded = {split: with_encoded_images(dataset) for split, dataset in self.splits.items()}
        if any(encoded[split] is not dataset for split, dataset in self.splits.items()):
            object.__setattr__(self, "splits", DatasetDict(encoded))

    def __getitem__(self, split: str) -> Dataset:
        """
        Raises:
            KeyError: for an unknown split; the message has the closest name.
        """
        found = same_split(split, self.splits)
        if found not in self.splits:
            raise KeyError(missing_message("split", [split], self.splits))
        return with_decoded_images(self.splits[found])

    def __iter__(self) -> Iterator[str]:
        return iter(self.splits)

    def __len__(self) -> int:
        """The number of splits."""
        return len(self.splits)

    def __contains__(self, split: object) -> bool:
        return isinstance(split, str) and same_split(split, self.splits) in self.splits

    def __repr__(self) -> str:
        width = max(map(len, [*self.splits, *self.attributes]), default=0)
        lines = ["AttributeDataset", "  splits:"]
        lines += [f"    {split:{width}}  {rows.num_rows:,} images" for split, rows in self.splits.items()]
        lines.append("  attributes:")
        for attribute, values in self.attributes.items():
            more = ", ..." if len(values) > _SHOWN_VALUES else ""
            lines.append(f"    {attribute:{width}}  {len(values):,} values: {', '.join(values[:_SHOWN_VALUES])}{more}")
        if self.group_column is not None:
            lines.append(f"  groups of near copies: {self.group_column}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        labels = {split: self.labels(split) for split in self.splits}
        rows: list[list[Cell]] = []
        for index, (attribute, values) in enumerate(islice(self.attributes.items(), _SHOWN_ATTRIBUTES)):
            of_attribute = {split: of_split[:, index] for split, of_split in labels.items()}
            rows.append([attribute, f"{len(values):,}", self._first_values(values, of_attribute)])
        notes = [", ".join(f"{split}: {rows.num_rows:,} images" for split, rows in self.splits.items())]
        if len(self.attributes) > _SHOWN_ATTRIBUTES:
            others = list(self.attributes)[_SHOWN_ATTRIBUTES:]
            notes.append(f"{len(others):,} more attributes: {', '.join(others)}")
        if self.group_column is not None:
            notes.append(f"Groups of near copies: {self.group_column}")
        header = ["attribute", "values", "the first values, with the number of their images"]
        return html_table(header, [rows], notes, title="AttributeDataset", align="left")

    def _first_values(self, values: list[str], labels: Mapping[str, np.ndarray]) -> list[Thumbnail]:
        """One image for each of the first values that have images; `labels` are those of the attribute, by split."""
        together = np.concatenate(list(labels.values()))
        counts = np.bincount(together[together >= 0], minlength=len(values))
        return [
            thumbnail(self._first_image(labels, value), f"{values[value]} ({counts[value]:,})")
            for value in np.flatnonzero(counts)[:_SHOWN_VALUES].tolist()
        ]

    def _first_image(self, labels: Mapping[str, np.ndarray], value: int) -> dict | None:
        """The first image with this value, encoded; None if its row has no image."""
        split = next(split for split, of_split in labels.items() if value in of_split)
        row = int(np.flatnonzero(labels[split] == value)[0])
        return self.splits[split].select_columns([IMAGE_COLUMN])[row][IMAGE_COLUMN]

    def labels(self, split: str) -> np.ndarray:
        """(images, attributes) int64 value ids, -1: not labelled. Reads only the label columns."""
        dataset = self[split]
        labels = np.full((dataset.num_rows, len(self.attributes)), -1, dtype=np.int64)
        for index, attribute in enumerate(self.attributes):
            labels[:, index] = integers(ColumnPlace(attribute).read(dataset))
        return labels

    def values_in(self, split: str) -> dict[str, list[str]]:
        """Attribute -> the names of the values that at least one image of the split is labelled with, in id order."""
        labels = self.labels(split)
        return {
            attribute: [names[value] for value in np.unique(column[column >= 0])]
            for (attribute, names), column in zip(self.attributes.items(), labels.T, strict=True)
        }

    def value_sets(self, split: str, kind: ValueSetKind) -> dict[str, np.ndarray]:
        """Attribute -> (images, values) booleans, for the attributes with a column `<attribute>_<kind>` of lists.

        `<attribute>_all` lists every value that an image shows (46 % of DeepFashion's candidates show several), and
        `<attribute>_maybe` the values that it may show, because the annotators were not sure (the `m` of FashionAI).
        Only the evaluation reads them.

        Raises:
            ValueError: if a list contains anything but values of the attribute.
        """
        sets = {
            attribute: read_value_sets(self[split], split, attribute, values, kind)
            for attribute, values in self.attributes.items()
        }
        return {attribute: found for attribute, found in sets.items() if found is not None}

    def groups(self, split: str) -> np.ndarray | None:
        """(images,) int64: equal codes for near copies, also across splits; -1 for an image without a group."""
        self[split]  # raises for an unknown split
        if self.group_column is None:
            return None
        return group_codes(self.splits, self.group_column)[same_split(split, self.splits)]

    def coverage_of(self, *splits: str) -> Coverage | None:
        """The coverage of these splits together; None if no image is missing."""
        splits = tuple(same_split(split, self.splits) for split in splits)
        if not any(split in self.coverage for split in splits):
            return None
        parts = [self.coverage.get(split, Coverage(self[split].num_rows, self[split].num_rows)) for split in splits]
        return Coverage(sum(part.found for part in parts), sum(part.listed for part in parts))

    def summary(self) -> DatasetSummary:
        """Per split and attribute: the values, the missing labels, and the values with one image."""
        splits = {}
        for split in self.splits:
            labels, groups = self.labels(split), self.groups(split)
            number = None if groups is None else len(np.unique(groups[groups >= 0])) + int((groups < 0).sum())
            splits[split] = SplitSummary(len(labels), number, {})
            for (attribute, names), column in zip(self.attributes.items(), labels.T, strict=True):
                counts = np.bincount(column[column >= 0], minlength=len(names))
                splits[split].attributes[attribute] = AttributeSummary(
                    values=int((counts > 0).sum()),
                    labelled=int(counts.sum()),
                    unlabelled=int((column < 0).sum()),
                    single_image_values=tuple(names[value] for value in np.flatnonzero(counts == 1).tolist()),
                )
        return DatasetSummary(splits, {attribute: len(names) for attribute, names in self.attributes.items()})

    def check_images(
        self, on_unreadable: Literal["error", "skip"] = "error", num_proc: int | None = None
    ) -> "AttributeDataset":
        """Decodes all images once, with a progress bar, so that a broken file cannot stop a training later.

        `datasets` caches the result: a second call on the same data reads it, unless files have changed since.

        Args:
            on_unreadable: "error" raises; "skip" returns the data set without the unreadable images and warns.

        Raises:
            UnreadableImageError: with the number of unreadable images, and names and reasons of the first few.
        """
        if on_unreadable not in ("error", "skip"):
            raise ValueError(f"on_unreadable must be 'error' or 'skip', got {on_unreadable!r}")
        reasons = {split: _find_unreadable(dataset, split, num_proc) for split, dataset in self.splits.items()}
        named = [f"{split}[{row}]: {reason}" for split, rows in reasons.items() for row, reason in rows.items()]
        if not named:
            return self
        counts = ", ".join(f"{len(rows)} in {split}" for split, rows in reasons.items() if rows)
        text = f"{len(named)} unreadable image(s) ({counts}):\n  " + "\n  ".join(named[:_SHOWN_IMAGES])
        if len(named) > _SHOWN_IMAGES:
            text += f"\n  ... and {len(named) - _SHOWN_IMAGES} more"
        if on_unreadable == "error":
            raise UnreadableImageError(f"{text}\nRepair them, or leave them out with on_unreadable='skip'.")
        logger.warning("left out %s", text)
        readable, coverage = DatasetDict(self.splits), dict(self.coverage)
        for split, rows in reasons.items():
            count = self.splits[split].num_rows
            if len(rows) == count:
                raise UnreadableImageError(f"no image of the split {split!r} can be read")
            if rows:
                readable[split] = self.splits[split].select(np.setdiff1d(np.arange(count), list(rows)))
                listed = coverage[split].listed if split in coverage else count
                coverage[split] = Coverage(count - len(rows), listed)
        return replace(self, splits=readable, coverage=coverage)


def _find_unreadable(dataset: Dataset, split: str, num_proc: int | None = None) -> dict[int, str]:
    """Row -> why its image cannot be read.

    `datasets` caches the result. A file that has changed since is decoded again, and so is every URL.
    """
    images = dataset.select_columns([IMAGE_COLUMN])
    files = _state_of_files(images)
    reasons = images.map(
        _reasons,
        batched=True,
        batch_size=64,
        remove_columns=[IMAGE_COLUMN],
        features=Features({"reason": Value("string")}),
        fn_kwargs={"files": files},
        load_from_cache_file=files is not None,
        num_proc=num_proc,
        desc=f"Checking the images of {split}",
    )
    return {row: reason for row, reason in enumerate(reasons["reason"]) if reason is not None}


def _state_of_files(images: Dataset) -> str | None:
    """A hash of the paths, sizes and times of the image files; `None` if some images are URLs."""
    digest = hashlib.sha256()
    for batch in images.flatten().select_columns([f"{IMAGE_COLUMN}.path"]).iter(batch_size=1000):
        for path in batch[f"{IMAGE_COLUMN}.path"]:
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
    for image in batch[IMAGE_COLUMN]:
        try:
            if image is not None:
                load_image(image)
            reasons.append(None if image is not None else "there is no image in this row")
        except UnreadableImageError as error:
            reasons.append(str(error))
    return {"reason": reasons}
