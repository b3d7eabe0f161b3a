"""What the Space looks up: which pictures are like a picture, under each attribute, and where each attribute looks."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cca_hf.models.images import UnreadableImageError, load_image
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.search import AttributeIndex, Hit
from cca_hf.search.images import IMAGE_REFERENCE, ImageFinder
from cca_hf.search.schema import ITEM_ID
from cca_hf.visualization.attention import attention_overlays
from cca_hf.visualization.page import data_uri
from cca_hf.visualization.selection import choose_queries

_THUMBNAIL = 224  # pixels: about twice what is shown
_ATTENTION = 440
_CHOSEN_AMONG = 4096  # items that the examples are taken from
_REMEMBERED = 4096  # thumbnails, of about 8 kB


class Query(NamedTuple):
    """A picture that is asked with; small, since the page keeps one for each who looks."""

    name: str
    embeddings: NDArray[np.float32]  # (attributes, dim)
    attention: dict[str, str]  # attribute -> the picture as it sees it, as a data: URI
    item_id: str | None  # None if it is not of the catalogue
    values: dict[str, str]  # attribute -> its value, where that is known


class Found(NamedTuple):
    """A picture of the catalogue."""

    item_id: str
    picture: str | None  # as a data: URI; None where it is lost
    words: str  # all that is known of it
    similarity: float
    value: str  # of the attribute asked for; "" where it is not known
    alike: bool  # whether that is the query's value too


class Row(NamedTuple):
    """What was found under one attribute, or a mixture of several."""

    title: str
    value: str  # the query's; "" where it is not known
    attention: str | None  # the query as the attribute sees it, as a data: URI; None for a mixture
    found: list[Found]


class Lookup:
    """A checkpoint and an index that it made.

    Args:
        index: opened with `model`.

    Raises:
        ValueError: if the index is empty, or does not say where its pictures are.
    """

    def __init__(self, model: CCAModel, index: AttributeIndex) -> None:
        if IMAGE_REFERENCE not in index.schema.columns:
            raise ValueError(
                f"the index does not say where its pictures are: a Space needs a column "
                f"{IMAGE_REFERENCE!r} of paths or addresses, which 'cca index --images' and '--dataset' write"
            )
        if not index.count():
            raise ValueError("the index is empty: there is nothing to look up")
        self.model = model
        self.index = index
        self.attributes = list(index.schema.attributes)
        self._finder = ImageFinder()
        self._thumbnail: Callable[[str], str | None] = lru_cache(_REMEMBERED)(self._make_thumbnail)

    @property
    def values(self) -> dict[str, list[str]]:
        """Attribute -> the values that can be asked for: those that the model knows and the index has a column of."""
        known = self.model.config.attribute_values or {}
        labelled = [name for name in self.attributes if self.index.schema.columns.get(name) == "text"]
        return {name: list(known[name]) for name in labelled if known.get(name)}

    @property
    def filters(self) -> dict[str, str]:
        """Column -> type: what a filter can name."""
        return {name: kind for name, kind in self.index.schema.columns.items() if name != IMAGE_REFERENCE}

    def picture_of(self, item_id: str) -> Image.Image:
        """A picture of the catalogue.

        Raises:
            ValueError: if there is no such item; if its picture is lost or unreadable.
        """
        (hit,) = self.index.get([item_id])
        reference = hit.columns[IMAGE_REFERENCE]
        if reference is None:
            raise UnreadableImageError(f"the index does not say where the picture of item {item_id} is")
        return load_image(self._finder.find(str(reference)))

    def ask(self, picture: Image.Image, *, name: str = "", item_id: str | None = None) -> Query:
        """With a picture from outside, called `name`, or with that of an item."""
        values: dict[str, str] = {}
        if item_id is not None:
            (hit,) = self.index.get([item_id])
            values = {each: str(hit.columns[each]) for each in self.attributes if hit.columns.get(each) is not None}
        embeddings = np.asarray(self.model.encode([picture], self.attributes, show_progress=False))[0]
        overlays = attention_overlays(self.model, picture, self.attributes, size=_ATTENTION)
        attention = {each: data_uri(overlay, _ATTENTION) for each, overlay in overlays.items()}
        return Query(name or f"item {item_id}", embeddings, attention, item_id, values)

    def find(
        self,
        query: Query,
        attributes: Sequence[str],
        *,
        instead: Mapping[str, str] | None = None,
        where: str | None = None,
        top: int = 10,
    ) -> list[Row]:
        """The nearest pictures under each attribute.

        Args:
            instead: attribute -> value to look for in place of the picture's own; one row more, the first, for all of
                these and `attributes` together.
            where: a filter, as in `AttributeIndex.search`.

        Raises:
            ValueError: for an unknown attribute or value, or a filter that cannot be read.
        """
        asked: dict[str, Any] = {"embedding": query.embeddings} if query.item_id is None else {"item": query.item_id}
        asked |= {"where": where, "top": top}
        rows = []
        if instead:
            shares = dict.fromkeys([*attributes, *instead], 1.0)
            hits = self.index.search(**asked, values=instead, weights=shares)
            kept = [name for name in attributes if name not in instead]
            title = ", ".join([f"{name} {value}" for name, value in instead.items()])
            title += f", the same {' and '.join(kept)}" if kept else ""
            rows.append(Row(title, "", None, [self._found(hit, *next(iter(instead.items()))) for hit in hits]))
        for name in attributes:
            value = query.values.get(name, "")
            hits = self.index.search(**asked, attribute=name)
            rows.append(Row(name, value, query.attention[name], [self._found(hit, name, value) for hit in hits]))
        return rows

    def examples(self, count: int, seed: int) -> list[Found]:
        """Pictures of the catalogue to begin with, by chance, rather of different values than of the same."""
        hits: list[dict[str, Any]] = []
        for table in self.index.tables():
            hits += islice(table.to_pylist(), _CHOSEN_AMONG - len(hits))
            if len(hits) == _CHOSEN_AMONG:
                break
        hits.sort(key=lambda row: str(row[ITEM_ID]))
        labelled = [name for name in self.attributes if name in self.index.schema.columns]
        labels = np.full((len(hits), len(labelled)), -1)
        for column, name in enumerate(labelled):
            texts = [None if row[name] is None else str(row[name]) for row in hits]
            codes = {text: code for code, text in enumerate(sorted({text for text in texts if text is not None}))}
            labels[:, column] = [-1 if text is None else codes[text] for text in texts]
        chosen = [hits[row] for row in choose_queries(labels, min(count, len(hits)), seed)]
        return [self._found(Hit(row.pop(ITEM_ID), 1.0, row), "", "") for row in chosen]

    def _found(self, hit: Hit, attribute: str, wanted: str) -> Found:
        told = {name: value for name, value in hit.columns.items() if name != IMAGE_REFERENCE and value is not None}
        words = ", ".join([f"item {hit.item_id}", *(f"{name} {value}" for name, value in told.items())])
        value = str(told.get(attribute, ""))
        reference = hit.columns.get(IMAGE_REFERENCE)
        picture = None if reference is None else self._thumbnail(str(reference))
        return Found(hit.item_id, picture, words, hit.similarity, value, bool(value) and value == wanted)

    def _make_thumbnail(self, reference: str) -> str | None:
        try:
            return data_uri(load_image(self._finder.find(reference)), _THUMBNAIL)
        except (ValueError, OSError):  # the picture is gone, or its data set: the others can be shown nevertheless
            return None
