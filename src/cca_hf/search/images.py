"""The images of indexed items, to show search results.

The index stores a reference for each image: its path or URL, or its data set, split and row.
"""

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from cca_hf.models.images import ImageInput

IMAGE_REFERENCE = "picture"  # the column; the name is part of the format of an index
_IN_DATASET = re.compile(r"^(?P<source>.+)::(?P<split>[\w.-]+)::(?P<row>\d+)(::(?P<column>.+))?$")


def reference(source: str, split: str, row: int, column: str | None = None) -> str:
    """The reference to an image in a data set; `column` if the image column must be named."""
    return f"{source}::{split}::{row}" + ("" if column is None else f"::{column}")


class ImageFinder:
    """Finds images by their references; loads a data set once."""

    def __init__(self) -> None:
        self._datasets: dict[str, DatasetDict] = {}
        self._images = cache(self._open)

    def find(self, text: str) -> "ImageInput":
        """The input of `load_image` for a reference."""
        place = _IN_DATASET.match(text)
        if place is None:
            return {"bytes": None, "path": text}  # not as text, since it comes from data
        source, split, row = place["source"], place["split"], int(place["row"])
        images = self._images(source, split, place["column"])
        if images is None or row >= len(images):
            raise ValueError(
                f"the data set {source} has no row {row} in split {split!r}: it is not the indexed data set"
            )
        (column,) = images.column_names
        return images[row][column]

    def _open(self, source: str, split: str, column: str | None) -> "Dataset | None":
        """The image column of a split, undecoded."""
        from cca_hf.data.image_column import find_image_column, with_undecoded_images
        from cca_hf.data.sources import load_source

        if source not in self._datasets:
            self._datasets[source] = load_source(source, None, None)
        dataset = self._datasets[source].get(split)
        if dataset is None:
            return None
        try:
            column = find_image_column({split: dataset}, column)
        except ValueError as error:
            raise ValueError(f"{source} is not the indexed data set: {error}") from error
        return with_undecoded_images(dataset.select_columns([column]), column)


def is_elsewhere(text: str) -> bool:
    """Whether any machine can find the image: by a URL, or in a data set on the Hub."""
    place = _IN_DATASET.match(text)
    return not Path(place["source"]).exists() if place else text.startswith(("http://", "https://"))
