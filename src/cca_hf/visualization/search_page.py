"""What a search found, as a page that holds everything it shows: a row of pictures for each query and attribute."""

from collections.abc import Mapping, Sequence
from html import escape
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from cca_hf.models.images import ImageInput, load_image

from .page import data_uri, page

_THUMBNAIL = 168  # pixels: twice what a desktop shows
_QUERY = 380


class FoundPicture(NamedTuple):
    """A picture found, with the words under it and those that appear over it."""

    image: ImageInput
    caption: str
    title: str


class SearchRow(NamedTuple):
    """The nearest pictures of one query under one attribute, or a mixture of several."""

    attribute: str
    found: Sequence[FoundPicture]


class SearchedQuery(NamedTuple):
    """What was looked for."""

    name: str
    image: ImageInput | None  # None where a value alone was asked for
    rows: Sequence[SearchRow]


def write_search_page(
    queries: Sequence[SearchedQuery], path: str | PathLike[str], *, title: str, facts: Mapping[str, str]
) -> Path:
    """Writes the page and returns its path.

    Args:
        facts: what the reader should know of the search (index, filter, ...), in the order shown.

    Raises:
        UnreadableImageError: for a picture that cannot be read; names it.
    """
    told = ", ".join(f"{escape(name)} <code>{escape(value)}</code>" for name, value in facts.items())
    body = [
        f'<h1>{escape(title)}</h1><p class="lead">{told}</p>',
        *map(_card, queries),
        "<footer>Written by cca_hf.</footer>",
    ]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(title, body), encoding="utf-8")
    return target


def _card(query: SearchedQuery) -> str:
    picture = ""
    if query.image is not None:
        picture = f'<img src="{data_uri(load_image(query.image), _QUERY)}" alt="the query {escape(query.name)}">'
    return (
        f'<article class="query card"><aside>{picture}<div class="chips"><span>{escape(query.name)}</span></div>'
        f"</aside><div>{''.join(map(_row, query.rows))}</div></article>"
    )


def _row(row: SearchRow) -> str:
    figures = "".join(
        f'<figure class="unknown"><img src="{data_uri(load_image(found.image), _THUMBNAIL)}" '
        f'alt="{escape(found.title)}" title="{escape(found.title)}"><figcaption>{escape(found.caption)}</figcaption>'
        "</figure>"
        for found in row.found
    )
    strip = f'<div class="strip">{figures}</div>' if figures else '<p class="note">nothing found</p>'
    return f'<section class="row"><header><h3>{escape(row.attribute)}</h3></header>{strip}</section>'
