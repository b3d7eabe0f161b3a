"""The searches of the Space: the nearest images under each attribute, and the attention of each attribute."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cca_hf.data.values import same_value, value_name
from cca_hf.models.image_embedder import ImageEmbedder
from cca_hf.models.images import UnreadableImageError, load_image
from cca_hf.models.modeling_conditional import ConditionalPreTrainedModel
from cca_hf.recipes.index_search import changed_values, describe_change, same_already, values_of
from cca_hf.search import AttributeIndex, Hit
from cca_hf.search.images import IMAGE_REFERENCE, ImageFinder
from cca_hf.search.schema import ITEM_ID
from cca_hf.visualization.attention import attention_overlays
from cca_hf.visualization.neighbours import choose_queries, detail_columns, detail_texts
from cca_hf.visualization.page import data_uri

_THUMBNAIL = 224  # pixels: about twice the size on the page
_ATTENTION = 440
_CHOSEN_AMONG = 4096  # items from which the examples are drawn
_CACHED = 4096  # thumbnails, of about 8 kB


class Query(NamedTuple):
    """A query image. It is small, because the page stores one for each session."""

    name: str
    embeddings: NDArray[np.float32]  # (attributes, dim)
    attention: dict[str, str]  # attribute -> the image with its attention, as a data: URI
    item_id: str | None  # None if the image is not in the catalogue
    values: dict[str, str]  # attribute -> value, if it is known


class Found(NamedTuple):
    """An image of the catalogue."""

    item_id: str
    image: str | None  # as a data: URI; None if it is not available
    words: str  # a description from all its columns
    similarity: float
    value: str  # of the attribute; "" if it is not known
    alike: bool  # whether the query has the same value
    details: tuple[str, ...]  # its id, and its name and price if the index has such columns
    values: tuple[tuple[str, bool], ...] = ()  # in a mixture: its values, and whether they are the wanted ones


class Row(NamedTuple):
    """The results of one attribute, of a mixture of several, or of a model without attributes."""

    title: str  # "" without attributes
    value: str  # of the query; "" if it is not known
    attention: str | None  # the query with the attention of the attribute, as a data: URI; None for a mixture
    found: list[Found]
    note: str = ""


class Lookup:
    """Searches an index with the checkpoint that made it.

    Args:
        index: opened with `model`.

    Raises:
        ValueError: if the index is empty, or has no column with the places of its images.
    """

    def __init__(self, model: ConditionalPreTrainedModel | ImageEmbedder, index: AttributeIndex) -> None:
        if IMAGE_REFERENCE not in index.schema.columns:
            raise ValueError(
                f"the index has no column {IMAGE_REFERENCE!r} with the paths or URLs of its images, which a Space "
                "shows. 'cca index --images' and 'cca index --dataset' write this column"
            )
        if not index.count():
            raise ValueError("the index is empty: there is nothing to search")
        self.model = model
        self.index = index
        self.attributes = list(index.schema.attributes)
        self._finder = ImageFinder()
        self._thumbnail: Callable[[str], str | None] = lru_cache(_CACHED)(self._make_thumbnail)

    @property
    def has_attributes(self) -> bool:
        """Whether the images are compared by attributes, so that there is something to choose."""
        return self.index.schema.has_attributes

    @property
    def values(self) -> dict[str, list[str]]:
        """Attribute -> values to search for: those of the model if the index has a column of the items' values, and
        otherwise those with a prototype. Attributes without any are left out."""
        known, prototypes = self.model.config.attribute_values or {}, self.index.schema.prototypes
        values = {
            name: list(known.get(name, ()) if name in self.index.schema.columns else prototypes.get(name, ()))
            for name in self.attributes
        }
        return {name: offered for name, offered in values.items() if offered}

    @property
    def filters(self) -> dict[str, str]:
        """Column -> type, for the columns that a filter can use."""
        return {name: kind for name, kind in self.index.schema.columns.items() if name != IMAGE_REFERENCE}

    def image_of(self, item_id: str) -> Image.Image:
        """The image of an item; ValueError if the item does not exist, or its image is missing or unreadable."""
        (hit,) = self.index.get([item_id])
        reference = hit.columns[IMAGE_REFERENCE]
        if reference is None:
            raise UnreadableImageError(f"the index has no path or URL for the image of item {item_id}")
        return load_image(self._finder.find(str(reference)))

    def make_query(self, image: Image.Image, *, name: str = "", item_id: str | None = None) -> Query:
        """A query from an uploaded image with a name, or from the image of an item."""
        values: dict[str, str] = {}
        if item_id is not None:
            (hit,) = self.index.get([item_id])
            known = {name: hit.columns.get(name) for name in self.attributes}
            values = {name: value_name(value) for name, value in known.items() if value is not None}
        embeddings = np.asarray(self.model.encode([image], self.attributes, show_progress=False))[0]
        overlays = {}
        if isinstance(self.model, ConditionalPreTrainedModel) and self.model.has_attention:
            overlays = attention_overlays(self.model, image, self.attributes, size=_ATTENTION)
        attention = {attribute: data_uri(overlay, _ATTENTION) for attribute, overlay in overlays.items()}
        return Query(name or f"item {item_id}", embeddings, attention, item_id, values)

    def find(
        self,
        query: Query,
        attributes: Sequence[str],
        *,
        instead: Mapping[str, str | None] | None = None,
        keep: float = 1.0,
        where: str | None = None,
        top: int = 10,
    ) -> list[Row]:
        """The nearest images under each attribute; `where` and errors are as in `AttributeIndex.search`.

        Args:
            instead: attribute -> value to search for instead of the query's; None leaves the attribute out. This adds
                a first row, for these values and `attributes` together.
            keep: the weight of the attributes that stay in the first row.
        """
        item = query.item_id
        searched: dict[str, Any] = {"embedding": query.embeddings} if item is None else {"item": item}
        search = partial(self.index.search, **searched, where=where, top=top)
        rows = []
        if instead:
            changed = [name for name, value in instead.items() if value is not None]
            kept = [name for name in attributes if name not in instead]
            weights = dict.fromkeys([*attributes, *instead], 1.0)
            hits = search(values=instead, weights=weights, keep=keep if changed else 1.0)
            title = describe_change(instead) + (f", the same {' and '.join(kept)}" if kept else "")
            notes = ", ".join(same_already(query.values, instead))
            note = f"{query.name} {notes}." if notes else ""
            wanted = changed_values(query.values, instead)
            wanted = {name: wanted.get(name, "") for name in [*changed, *kept]}
            rows.append(Row(title, "", None, [self._mixed(hit, wanted) for hit in hits], note))
        for name in attributes:
            value = query.values.get(name, "")
            hits = search(attribute=name)
            rows.append(Row(name, value, query.attention.get(name), [self._found(hit, name, value) for hit in hits]))
        return rows

    def examples(self, count: int, seed: int) -> list[Found]:
        """Random images of the catalogue to choose from, preferably with different values."""
        hits = list(islice((row for table in self.index.tables() for row in table.to_pylist()), _CHOSEN_AMONG))
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
        known = {name: value for name, value in hit.columns.items() if name != IMAGE_REFERENCE and value is not None}
        words = ", ".join([f"item {hit.item_id}", *(f"{name} {value}" for name, value in known.items())])
        value = value_name(known.get(attribute, ""))
        reference = hit.columns.get(IMAGE_REFERENCE)
        image = None if reference is None else self._thumbnail(str(reference))
        alike = bool(value) and same_value(value) == same_value(wanted)
        details = detail_texts({"item": hit.item_id} | {name: known[name] for name in detail_columns(known)})
        return Found(hit.item_id, image, words, hit.similarity, value, alike, details)

    def _mixed(self, hit: Hit, wanted: Mapping[str, str]) -> Found:
        """As `_found`, with the values of several attributes."""
        known = values_of(self.index, hit)
        values = [
            (known[name], same_value(known[name]) == same_value(wanted[name])) for name in wanted if name in known
        ]
        return self._found(hit, "", "")._replace(values=tuple(values))

    def _make_thumbnail(self, reference: str) -> str | None:
        try:
            return data_uri(self._finder.find(reference), _THUMBNAIL)
        except (ValueError, OSError):  # the image or its data set is gone; the other images are still shown
            return None
