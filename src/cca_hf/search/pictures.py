"""Where the pictures of an index's items are, so that what was found can be looked at.

The index holds a text for each, not the picture: its path or URL, or data set, split and row.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from cca_hf.models.images import ImageInput

PICTURE = "picture"  # the column
_IN_DATASET = re.compile(r"^(?P<source>.+)::(?P<split>[\w.-]+)::(?P<row>\d+)$")


def reference(source: str, split: str, row: int) -> str:
    """The text for a picture inside a data set."""
    return f"{source}::{split}::{row}"


class PictureFinder:
    """Finds pictures by their texts; each data set is opened once."""

    def __init__(self) -> None:
        self._sources: dict[str, DatasetDict] = {}
        self._columns: dict[tuple[str, str], Dataset] = {}

    def find(self, text: str) -> "ImageInput":
        """What `load_image` takes.

        Raises:
            ValueError: if a data set does not hold the picture any more.
        """
        place = _IN_DATASET.match(text)
        if place is None:
            return text
        source, split, row = place["source"], place["split"], int(place["row"])
        if (source, split) not in self._columns:
            self._columns[source, split] = self._open(source, split, row)
        pictures = self._columns[source, split]
        if row >= len(pictures):
            raise _not_indexed(source, split, row)
        (column,) = pictures.column_names
        return pictures[row][column]

    def _open(self, source: str, split: str, row: int) -> "Dataset":
        """The column of pictures alone, not decoded."""
        from datasets import Image

        from cca_hf.data.sources import load_source

        if source not in self._sources:
            self._sources[source] = load_source(source, None, None)
        if split not in self._sources[source]:
            raise _not_indexed(source, split, row)
        dataset = self._sources[source][split]
        column = next((name for name, feature in dataset.features.items() if isinstance(feature, Image)), None)
        if column is None:
            raise ValueError(f"the data set {source} has no column of pictures: it is not the one indexed")
        return dataset.select_columns([column]).cast_column(column, Image(decode=False))


def is_elsewhere(text: str) -> bool:
    """Whether a picture is found from any machine: by an address, or in a data set on the Hub."""
    place = _IN_DATASET.match(text)
    if place is None:
        return text.startswith(("http://", "https://"))
    return not Path(place["source"]).exists()


def find_pictures(references: Sequence[str]) -> "list[ImageInput]":
    """What `load_image` takes, for each text.

    Raises:
        ValueError: if a data set does not hold the picture any more.
    """
    finder = PictureFinder()
    return [finder.find(text) for text in references]


def _not_indexed(source: str, split: str, row: int) -> ValueError:
    return ValueError(f"the data set {source} has no row {row} in a split {split!r}: it is not the one indexed")
