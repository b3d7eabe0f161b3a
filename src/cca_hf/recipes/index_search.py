"""Searches an index with several queries under several attributes, and writes the results as a page."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cca_hf.data.values import same_value, value_name
from cca_hf.search import AttributeIndex, Hit
from cca_hf.search.images import IMAGE_REFERENCE, ImageFinder

if TYPE_CHECKING:  # a search by item needs no torch
    from cca_hf.models.encoding import ImageEncoder

_WIDEST = 28  # characters of a column's value


class Answer(NamedTuple):
    """The items that are most similar to one query under one attribute, or under a mixture of several."""

    query: str  # the name to show
    attribute: str  # the name to show; "" for an index without attributes
    attributes: Sequence[str]  # of the mixture, or the one attribute
    hits: Sequence[Hit]  # the most similar first
    image: str | None = None  # the query, if it is an image
    item: str | None = None  # the query, if it is an item
    change: str = ""  # the values that replace those of the query, to show
    wanted: Mapping[str, str] = {}  # attribute -> value that a hit should have, as far as it is known
    notes: Sequence[str] = ()  # what to know about the query, to show


def search_index(
    store: str,
    *,
    encoder: "ImageEncoder | None" = None,
    precision: str = "auto",
    images: Sequence[str] = (),
    items: Sequence[str] = (),
    values: Mapping[str, str | None] | None = None,
    attributes: Sequence[str] = (),
    weights: Mapping[str, float] | None = None,
    keep: float = 1.0,
    where: str | None = None,
    top: int = 10,
) -> list[Answer]:
    """Returns one answer for each query and attribute.

    With `weights`, or with `values` and no `attributes`, returns one answer for each query.

    Args:
        encoder: encodes the `images`.
        precision: number type in which a model computes, such as "bfloat16"; "auto" does not change it. The model is
            converted when the index has accepted it.
        images, items: the queries; without them the `values` are the only query.
        values: attribute -> value to search for, instead of the value of the query; None leaves the attribute out.
        attributes: default: all of the index.
        keep: how much the other attributes count, see [`AttributeIndex.search`].

    Raises:
        KeyError, ValueError: see [`AttributeIndex.search`].
    """
    values = values or {}
    change = describe_change(values)
    but = f", but {change}" if change and (images or items) else ""
    answers = []
    with AttributeIndex.open(store, encoder) as index:
        known: dict[str, dict[str, str]] = {}  # item -> attribute -> value
        queries: list[tuple[str, str | None, str | None, dict[str, Any]]]  # name, image, item, arguments of the search
        if images and encoder is not None:
            embeddings = encoder.in_precision(precision).encode(list(images), list(index.schema.attributes))
            queries = [
                (f"{Path(image).name}{but}", image, None, {"embedding": embedding})
                for image, embedding in zip(images, embeddings, strict=True)
            ]
        elif items:
            queries = [(f"item {item}{but}", None, item, {"item": item}) for item in items]
            known = {hit.item_id: values_of(index, hit) for hit in index.get(items)}
        else:
            queries = [(change, None, None, {})]
        if values and not weights and not attributes:  # one mixture, as the index makes it by default
            weights = dict.fromkeys(index.schema.attributes if images or items else values, 1.0)
        spaces: list[tuple[str, Sequence[str], dict[str, Any]]]
        if weights:
            kept = {name: weight if values.get(name) else keep * weight for name, weight in weights.items()}
            parts = {name: weight for name, weight in kept.items() if values.get(name, "") is not None}
            mixture = ", ".join(name if weight == 1 else f"{name} x {weight:g}" for name, weight in parts.items())
            spaces = [(mixture, list(parts), {"weights": weights})]
        else:
            spaces = [(name, [name], {"attribute": name}) for name in attributes or index.schema.attributes]
        for query, image, item, arguments in queries:
            its_values = {} if item is None else known[str(item)]
            wanted = changed_values(its_values, values)
            notes = [f"item {item} {note}" for note in same_already(its_values, values)]
            for name, mixed, space in spaces:
                hits = index.search(**arguments, **space, top=top, where=where, values=values or None, keep=keep)
                answers.append(Answer(query, name, mixed, hits, image, item, but and change, wanted, notes))
    return answers


def describe_change(values: Mapping[str, str | None]) -> str:
    """The values of a search in words: "colour red, any shape"."""
    return ", ".join(f"any {name}" if value is None else f"{name} {value}" for name, value in values.items())


def values_of(index: AttributeIndex, hit: Hit) -> dict[str, str]:
    """Attribute -> value of an item, for the attributes whose value the index knows."""
    stored = {name: hit.columns.get(name) for name in index.schema.attributes}
    return {name: value_name(value) for name, value in stored.items() if value is not None}


def changed_values(known: Mapping[str, str], values: Mapping[str, str | None]) -> dict[str, str]:
    """Attribute -> value after a change; without the attributes that the change leaves out."""
    return {name: value for name, value in {**known, **values}.items() if value is not None}


def same_already(known: Mapping[str, str], values: Mapping[str, str | None]) -> list[str]:
    """The values of a change that the query has: "has colour red already"."""
    return [
        f"has {name} {known[name]} already"
        for name, value in values.items()
        if name in known and value is not None and same_value(known[name]) == same_value(value)
    ]


def write_answers(answers: Sequence[Answer], path: Path, *, store: str, where: str | None = None) -> Path:
    """Writes a page with the images of the queries and of the hits, and returns its path.

    Raises:
        ValueError: if the index does not say where the image of an item is.
        UnreadableImageError: if an image cannot be read; the message names it.
    """
    from cca_hf.models.whole_files import write_text
    from cca_hf.visualization.neighbours import detail_columns, detail_texts
    from cca_hf.visualization.page import render

    places = {hit.item_id: hit.columns.get(IMAGE_REFERENCE) for answer in answers for hit in answer.hits}
    items = {answer.item for answer in answers if answer.item is not None}
    with AttributeIndex.open(store) as index:
        places |= {hit.item_id: hit.columns.get(IMAGE_REFERENCE) for hit in index.get(sorted(items - places.keys()))}
    lost = [item for item, place in places.items() if place is None]
    if lost:
        raise ValueError(
            f"the index has no path or URL for the image of item {lost[0]}: --html needs a column {IMAGE_REFERENCE!r} "
            "of paths or URLs, which 'cca index --images' and '--dataset' write"
        )
    finder = ImageFinder()
    images = {item: finder.find(str(place)) for item, place in places.items()}
    shown = []
    for query, rows in groupby(answers, key=lambda answer: (answer.query, answer.image, answer.item, answer.notes)):
        name, image, item, notes = query
        found = []
        for answer in rows:
            hits = []
            for hit in answer.hits:
                values = {name: hit.columns[name] for name in answer.attributes if name in hit.columns}
                others = {"item": hit.item_id} | {name: hit.columns[name] for name in detail_columns(hit.columns)}
                right = {name: value for name, value in values.items() if _is_wanted(answer, name, value)}
                details = detail_texts(values) + detail_texts(others)
                hits.append((images[hit.item_id], f"{hit.similarity:.2f}", _title(hit), details, detail_texts(right)))
            found.append((answer.attribute, hits))
        shown.append((name, image or (None if item is None else images[item]), found, notes))
    facts = {"index": store} | ({"where": where} if where else {})
    return write_text(render("search_page.html", queries=shown, title=_headline(answers), facts=facts), path)


def _is_wanted(answer: Answer, attribute: str, value: object) -> bool:
    return attribute in answer.wanted and same_value(answer.wanted[attribute]) == same_value(value)


def _headline(answers: Sequence[Answer]) -> str:
    """The title of the page: "Item 3, but colour red" for one changed query."""
    changes, queries = {answer.change for answer in answers}, {answer.query for answer in answers}
    if changes in (set(), {""}):
        return "Found by attribute" if any(answer.attribute for answer in answers) else "Found"
    (change,) = changes
    (query,) = queries if len(queries) == 1 else [f"{len(queries)} queries, but {change}"]
    return query[0].upper() + query[1:]


def _title(hit: Hit) -> str:
    columns = {name: value for name, value in hit.columns.items() if name != IMAGE_REFERENCE and value is not None}
    known = [f"{name}: {cell(value)}" for name, value in columns.items()]
    return ", ".join([f"item {hit.item_id}", f"similarity {hit.similarity:.3f}", *known])


def cell(value: object) -> str:
    """The value of a column as short text."""
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."
