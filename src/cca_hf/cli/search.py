"""`cca search`: items that are similar to an image, an item or a value, as a table, JSON or a page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .options import (
    Device,
    Json,
    OptionalModel,
    UsageError,
    load_encoder,
    model_of_index,
    named_values,
    option,
    stdout_kept_clean,
)

if TYPE_CHECKING:
    from cca_hf.search import Hit

_SHOWN_COLUMNS = 6


def search(
    store: Annotated[str, option("store", "PLACE", "Index, as in 'cca index'.")],
    image: Annotated[list[str] | None, option("image", "FILE ...", "Image files or URLs to search with.")] = None,
    item: Annotated[list[str] | None, option("item", "ID ...", "Items of the index to search with.")] = None,
    value: Annotated[
        list[str] | None,
        option(
            "value",
            "NAME=VALUE ...",
            "Values to search for. With --image or --item, they replace the query's values ('this one, but red').",
        ),
    ] = None,
    attribute: Annotated[
        list[str] | None,
        option("attribute", "NAME ...", "Attributes, with one result for each of them. Default: all."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        option("weights", "NAME=WEIGHT ...", "Weights of attributes, for one result under their mixture."),
    ] = None,
    where: Annotated[
        str | None, option("where", "FILTER", "Filter for items, such as \"price < 50 and colour != 'red'\".")
    ] = None,
    top: Annotated[int, option("top", "NUMBER", "Number of items in a result.", min=1)] = 10,
    html: Annotated[Path | None, option("html", "FILE", "Write a page with the images of the items.")] = None,
    as_json: Json = False,
    model: OptionalModel = None,
    device: Device = None,
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
    mixture = {name: _number(name, weight) for name, weight in named_values("--weights", weights).items()}
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


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"the weight of {name} must be a number; got {text!r}") from error


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
