"""`cca search`: what is like a picture, an item or a value under an attribute, as a table, JSON or a page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .options import load_encoder, stdout_kept_clean

if TYPE_CHECKING:
    from cca_hf.search import AttributeIndex, Hit

_SHOWN_COLUMNS = 6
_WIDEST = 28


class _Query(NamedTuple):
    """What is asked of the index, by the names of its arguments."""

    name: str
    arguments: dict[str, Any]
    picture: str | None = None


class _Space(NamedTuple):
    """An attribute, or a mixture of several."""

    name: str
    arguments: dict[str, Any]

    @property
    def attributes(self) -> list[str]:
        return list(self.arguments.get("weights", [self.name]))


def search(
    store: Annotated[str, typer.Option("--store", metavar="PLACE", help="The index, as 'cca index' was given it.")],
    image: Annotated[
        list[str] | None, typer.Option("--image", metavar="PICTURE ...", help="Files or addresses to search with; or")
    ] = None,
    item: Annotated[
        list[str] | None, typer.Option("--item", metavar="ID ...", help="items of the index, which find others; or")
    ] = None,
    value: Annotated[
        list[str] | None,
        typer.Option(
            "--value",
            metavar="NAME=VALUE ...",
            help="values alone; beside a picture or item they take the place of its own ('this one, but red').",
        ),
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option("--attribute", metavar="NAME ...", help="Under which, one result each. Default: all."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="NAME=WEIGHT ...", help="One result for all of these, weighted."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", metavar="FILTER", help="Only such items: \"price < 50 and colour != 'red'\"."),
    ] = None,
    top: Annotated[int, typer.Option("--top", metavar="NUMBER", min=1, help="How many.")] = 10,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the pictures found.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="ID_OR_FOLDER", help="For --image. Default: where the index's own was."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="For --image: cpu, cuda, mps, ...")
    ] = None,
) -> None:
    """Find what is like a picture, an item of the index or a value, under one attribute or a mixture of several.

    \b
    Examples:
      cca search --store shoes.index --image query.jpg --attribute heel_height --top 10
      cca search --store shoes.index --item 4711 --weights colour=1 heel_height=0.5 --where "price < 50"
      cca search --store shoes.index --value colour=red closure=laces --html found.html
      cca search --store shoes.index --item 4711 --value colour=red --json | jq '.[0].found[0]'
    """
    if image and item:
        raise typer.BadParameter("give either --image or --item")
    if not (image or item or value):
        raise typer.BadParameter("give an --image, an --item or a --value to search for")
    if attribute and weights:
        raise typer.BadParameter("give either --attribute, one result each, or --weights, one result for all")
    values = _pairs("--value", value)
    shares = {name: _number(name, share) for name, share in _pairs("--weights", weights).items()}
    with stdout_kept_clean():
        from cca_hf.search import AttributeIndex

        encoder = None
        if image:
            if model is None:
                with AttributeIndex.open(store) as index:
                    model = index.schema.checkpoint.name
                if not model:
                    raise ValueError(f"the index at {store} does not say where its model is: name it with --model")
            encoder = load_encoder(model, device)
        with AttributeIndex.open(store, encoder) as index:
            embeddings = None if encoder is None else encoder.encode(image or [], list(index.schema.attributes))
            queries = _queries(image, embeddings, item, values)
            spaces = _spaces(index, attribute, shares, values, has_picture=bool(image or item))
            asked: dict[str, Any] = {"top": top, "where": where, "values": _typed(index, values) or None}
            found = [
                [index.search(**query.arguments, **space.arguments, **asked) for space in spaces] for query in queries
            ]
        if html is not None:
            page = _write_page(html, store, where, queries, spaces, found)
    if as_json:
        told = [
            {"query": query.name, "attribute": space.name, "found": [hit._asdict() for hit in hits]}
            for query, row in zip(queries, found, strict=True)
            for space, hits in zip(spaces, row, strict=True)
        ]
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        for query, row in zip(queries, found, strict=True):
            for space, hits in zip(spaces, row, strict=True):
                print(f"{query.name}, by {space.name}\n{_table(hits, [*space.attributes, *values])}\n")
        if html is not None:
            print(f"page: {page}")


def _pairs(option: str, words: Sequence[str] | None) -> dict[str, str]:
    pairs = {}
    for word in words or ():
        name, sign, given = word.partition("=")
        if not (name and sign and given):
            raise typer.BadParameter(f"{option} takes NAME=... ; got {word!r}")
        pairs[name] = given
    return pairs


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"the weight of {name} must be a number; got {text!r}") from error


def _queries(
    images: list[str] | None, embeddings: Any, items: list[str] | None, values: dict[str, str]
) -> list[_Query]:
    wish = ", ".join(f"{name} {value}" for name, value in values.items())
    but = f", but {wish}" if wish else ""
    if images:
        return [
            _Query(f"{Path(image).name}{but}", {"embedding": own}, image)
            for image, own in zip(images, embeddings, strict=True)
        ]
    if items:
        return [_Query(f"item {item}{but}", {"item": item}) for item in items]
    return [_Query(wish, {})]


def _spaces(
    index: "AttributeIndex",
    attributes: list[str] | None,
    shares: dict[str, float],
    values: dict[str, str],
    *,
    has_picture: bool,
) -> list[_Space]:
    if values and not shares and not attributes:  # one mixture, as the index makes it
        names = list(index.schema.attributes if has_picture else values)
        shares = dict.fromkeys(names, 1.0)
    if shares:
        mixture = ", ".join(name if share == 1 else f"{name} x {share:g}" for name, share in shares.items())
        return [_Space(mixture, {"weights": shares})]
    return [_Space(name, {"attribute": name}) for name in attributes or index.schema.attributes]


def _typed(index: "AttributeIndex", values: dict[str, str]) -> dict[str, str | int | bool]:
    """Of a column of numbers or booleans, the value that the text stands for."""
    typed: dict[str, str | int | bool] = {}
    for name, text in values.items():
        kind = index.schema.columns.get(name)
        if kind == "integer" and text.lstrip("-").isdigit():
            typed[name] = int(text)
        elif kind == "boolean" and text.lower() in ("true", "false"):
            typed[name] = text.lower() == "true"
        else:
            typed[name] = text
    return typed


def _table(hits: "Sequence[Hit]", asked: Sequence[str]) -> str:
    """With the columns of the attributes `asked` first: there are more than fit a line."""
    from cca_hf.evaluation.text_table import format_table
    from cca_hf.search.images import IMAGE_REFERENCE

    if not hits:
        return "nothing found"
    columns = sorted((name for name in hits[0].columns if name != IMAGE_REFERENCE), key=lambda name: name not in asked)
    names = columns[:_SHOWN_COLUMNS]
    rows = [[hit.item_id, f"{hit.similarity:.3f}", *(_cell(hit.columns[name]) for name in names)] for hit in hits]
    return format_table(["item", "similarity", *names], [rows])


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."


def _write_page(
    path: Path,
    store: str,
    where: str | None,
    queries: Sequence[_Query],
    spaces: Sequence[_Space],
    found: "Sequence[Sequence[Sequence[Hit]]]",
) -> Path:
    from cca_hf.search import AttributeIndex
    from cca_hf.search.images import IMAGE_REFERENCE, find_images
    from cca_hf.visualization.search_page import FoundPicture, SearchedQuery, SearchRow, write_search_page

    hits = {hit.item_id: hit for row in found for each in row for hit in each}
    texts = {item: hit.columns.get(IMAGE_REFERENCE) for item, hit in hits.items()}
    with AttributeIndex.open(store) as index:
        for query in queries:
            if "item" in query.arguments:
                (own,) = index.get([query.arguments["item"]])
                texts[own.item_id] = own.columns.get(IMAGE_REFERENCE)
    lost = [item for item, text in texts.items() if text is None]
    if lost:
        raise ValueError(
            f"the index does not say where the picture of item {lost[0]} is: --html needs a column "
            f"{IMAGE_REFERENCE!r} of paths or addresses, which 'cca index --images' and '--dataset' write"
        )
    places = find_images([str(text) for text in texts.values()])
    pictures = dict(zip(texts, places, strict=True))
    shown = []
    for query, row in zip(queries, found, strict=True):
        rows = [
            SearchRow(
                space.name,
                [FoundPicture(pictures[hit.item_id], f"{hit.similarity:.2f}", _title(hit)) for hit in each],
            )
            for space, each in zip(spaces, row, strict=True)
        ]
        own_picture = query.picture or pictures.get(query.arguments.get("item", ""))
        shown.append(SearchedQuery(query.name, own_picture, rows))
    facts = {"index": store} | ({"where": where} if where else {})
    return write_search_page(shown, path, title="Found by attribute", facts=facts)


def _title(hit: "Hit") -> str:
    from cca_hf.search.images import IMAGE_REFERENCE

    shown = {name: value for name, value in hit.columns.items() if name != IMAGE_REFERENCE and value is not None}
    known = [f"{name}: {_cell(value)}" for name, value in shown.items()]
    return ", ".join([f"item {hit.item_id}", f"similarity {hit.similarity:.3f}", *known])
