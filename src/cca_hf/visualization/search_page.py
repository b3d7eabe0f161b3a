"""The results of a search as one HTML page: for each query, a row of images for each attribute."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from cca_hf.models.images import ImageInput
from cca_hf.models.whole_files import write_text

from .page import render


class FoundPicture(NamedTuple):
    """An image of the index, with its caption and the text shown on hover."""

    image: ImageInput
    caption: str
    title: str


class SearchRow(NamedTuple):
    """The nearest images of one query under one attribute, or under a mixture of several."""

    attribute: str
    found: Sequence[FoundPicture]


class SearchedQuery(NamedTuple):
    """A query and its results."""

    name: str
    image: ImageInput | None  # None for a query by value
    rows: Sequence[SearchRow]


def write_search_page(
    queries: Sequence[SearchedQuery], path: str | PathLike[str], *, title: str, facts: Mapping[str, str]
) -> Path:
    """Writes the page and returns its path.

    Args:
        facts: name -> value of what describes the search (index, filter, ...), shown in this order.

    Raises:
        UnreadableImageError: if an image cannot be read; names it.
    """
    return write_text(render("search_page.html", queries=queries, title=title, facts=facts), Path(path))
