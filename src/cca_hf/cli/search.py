"""`cca search`: items that are similar to an image, an item or a value, as a table, JSON or a page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import options
from .options import UsageError, load_encoder, model_of_index, named_values, option, stdout_kept_clean

if TYPE_CHECKING:
    from cca_hf.search import Hit

_SHOWN_COLUMNS = 6


def search(
    store: str = option(..., "store", "PLACE", "Index, as in 'cca index'."),
    image: list[str] | None = option(None, "image", "FILE ...", "Image files or URLs to search with."),
    item: list[str] | None = option(None, "item", "ID ...", "Items of the index to search with."),
    value: list[str] | None = option(
        None, "value", "NAME=VALUE ...", "Values to search for, instead of the query's ('this one, but red')."
    ),
    attribute: list[str] | None = option(
        None, "attribute", "NAME ...", "Attributes, with one result for each of them. Default: all."
    ),
    weights: list[str] | None = option(
        None, "weights", "NAME=WEIGHT ...", "Weights of attributes, for one result under their mixture."
    ),
    where: str | None = option(
        None, "where", "FILTER", "Filter for items, such as \"price < 50 and colour != 'red'\"."
    ),
    top: int = option(10, "top", "NUMBER", "Number of items in a result.", min=1),
    html: Path | None = option(None, "html", "FILE", "Write a page with the images of the items."),
    as_json: bool = options.JSON,
    model: str | None = options.MODEL_OF_INDEX,
    device: str | None = options.DEVICE,
) -> None:
    """Find the items that are most similar to an image, an item or a value, under one attribute or several.

    \b
    Examples:
      cca search --store shoes.index --image query.jpg --attribute heel_height --top 10
      cca search --store shoes.index --item 4711 --weights colour=1 heel_height=0.5 --where "price < 50"
      cca search --store shoes.index --value colour=red closure=laces --html found.html
      cca search --store shoes.index --item 4711 --value colour=red --json | jq '.[0].found[0]'
    """
    if image and item:
        raise UsageError("give either --image or --item")
    if not (image or item or value):
        raise UsageError("give an --image, an --item or a --value to search for")
    if attribute and weights:
        raise UsageError("give either --attribute, one result each, or --weights, one result for all")
    values = named_values("--value", value)
    mixture = {}
    for name, weight in named_values("--weights", weights).items():
        try:
            mixture[name] = float(weight)
        except ValueError as error:
            raise UsageError(f"the weight of {name} must be a number; got {weight!r}") from error
    with stdout_kept_clean():
        from cca_hf.recipes.index_search import search_index, write_answers

        answers = search_index(
            store,
            encoder=load_encoder(model or model_of_index(store), device) if image else None,
            images=image or (),
            items=item or (),
            values=values,
            attributes=attribute or (),
            weights=mixture,
            where=where,
            top=top,
        )
        page = None if html is None else write_answers(answers, html, store=store, where=where)
    if as_json:
        found = [
            {"query": answer.query, "attribute": answer.attribute, "found": [hit._asdict() for hit in answer.hits]}
            for answer in answers
        ]
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for answer in answers:
        print(f"{answer.query}, by {answer.attribute}\n{_table(answer.hits, [*answer.attributes, *values])}\n")
    if page is not None:
        print(f"page: {page}")


def _table(hits: "Sequence[Hit]", first: Sequence[str]) -> str:
    """The hits with the columns that fit a line, those of the attributes `first`."""
    from cca_hf.evaluation.text_table import format_table
    from cca_hf.recipes.index_search import cell
    from cca_hf.search.images import IMAGE_REFERENCE

    if not hits:
        return "nothing found"
    columns = sorted((name for name in hits[0].columns if name != IMAGE_REFERENCE), key=lambda name: name not in first)
    names = columns[:_SHOWN_COLUMNS]
    rows = [[hit.item_id, f"{hit.similarity:.3f}", *(cell(hit.columns[name]) for name in names)] for hit in hits]
    return format_table(["item", "similarity", *names], [rows])
