"""The results of a search as one HTML page: for each query, a row of images for each attribute."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from cca_hf.models.images import ImageInput
from cca_hf.models.whole_files import write_text

from .page import render


class FoundImage(NamedTuple):
    """An image of the index, its caption and its tooltip."""

    image: ImageInput
    caption: str
    title: str


class SearchRow(NamedTuple):
    """The nearest images of one query under one attribute, or under a mixture of several."""

    attribute: str
    found: Sequence[FoundImage]


class SearchedQuery(NamedTuple):
    """A query and its results."""

    name: str
    image: ImageInput | None  # None for a query by value
    rows: Sequence[SearchRow]


def write_search_page(
    queries: Sequence[SearchedQuery], path: str | PathLike[str], *, title: str, facts: Mapping[str, str]
) -> Path:
    """Write the page and return its path.

    Args:
        facts: name -> value of the search's settings (index, filter, ...), in the displayed order.

    Raises:
        UnreadableImageError: if an image cannot be read; the message names it.
    """
    return write_text(render("search_page.html", queries=queries, title=title, facts=facts), Path(path))
