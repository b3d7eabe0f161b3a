"""Where the pictures of an index's items are, so that what was found can be looked at.

The index holds a text for each, not the picture: its path or URL, or data set, split and row.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models.images import ImageInput

PICTURE = "picture"  # the column
_IN_DATASET = re.compile(r"^(?P<source>.+)::(?P<split>[\w.-]+)::(?P<row>\d+)$")


def reference(source: str, split: str, row: int) -> str:
    """The text for a picture inside a data set."""
    return f"{source}::{split}::{row}"


def find_pictures(references: Sequence[str]) -> "list[ImageInput]":
    """What `load_image` takes, for each text; data sets are opened once.

    Raises:
        ValueError: if a data set does not hold the picture any more.
    """
    from datasets import DatasetDict, Image

    from ..data.sources import load_source

    opened: dict[str, DatasetDict] = {}
    pictures: list[ImageInput] = []
    for text in references:
        place = _IN_DATASET.match(text)
        if place is None:
            pictures.append(text)
            continue
        source, split, row = place["source"], place["split"], int(place["row"])
        if source not in opened:
            opened[source] = load_source(source, None, None)
        if split not in opened[source] or row >= len(opened[source][split]):
            raise ValueError(f"the data set {source} has no row {row} in a split {split!r}: it is not the one indexed")
        dataset = opened[source][split]
        column = next((name for name, feature in dataset.features.items() if isinstance(feature, Image)), None)
        if column is None:
            raise ValueError(f"the data set {source} has no column of pictures: it is not the one indexed")
        pictures.append(dataset.select_columns([column]).cast_column(column, Image(decode=False))[row][column])
    return pictures
