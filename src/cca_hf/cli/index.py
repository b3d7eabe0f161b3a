"""`cca index` and `cca search`: images or embeddings into a search index, and items that are similar to a query."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from . import options
from .options import Command, Group, UsageError, named_values, option, printable, stdout_kept_clean, switch

if TYPE_CHECKING:
    from cca_hf.search import Hit

_SHOWN_COLUMNS = 6

app = typer.Typer(name="index", cls=Group, invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def index(
    context: typer.Context,
    store: str | None = option(
        None, "PLACE", "Index: a folder, s3://..., or http://host:6333/collection (Qdrant server)."
    ),
    model: str | None = options.OPTIONAL_ENCODER,
    images: Path | None = options.IMAGES,
    dataset: str | None = options.OPTIONAL_DATASET,
    embeddings: Path | None = option(None, "FOLDER", "Output folder of 'cca embed'. The images are not read again."),
    split: str | None = options.SPLIT,
    image_column: str | None = options.IMAGE_COLUMN,
    id_column: str | None = options.ID_COLUMN,
    id_prefix: str = option("", "TEXT", "Text before each id, such as test-, to index several splits or folders."),
    columns: list[str] | None = option(
        None, "NAME ...", "Columns to store, for filters and results. Default: all that an index can store."
    ),
    on_unreadable: options.OnUnreadable = options.ON_UNREADABLE,
    only_new: bool = switch(
        "only_new", "Skip items that the index already contains, to resume after an interruption."
    ),
    replace: bool = switch(
        "replace", "Replace items of another folder or split that have the same ids, instead of an error."
    ),
    batch_size: int = options.batch_size(32),
    precision: options.Precision = options.PRECISION,
    device: str | None = options.DEVICE,
    as_json: bool = options.JSON,
) -> None:
    """Add images or embeddings to an index. The same command again replaces its items.

    The model can be one with attributes, or any vision model, such as a classifier or facebook/dinov2-small: the index
    then has one embedding for each image, and its searches name no attribute.

    Give one of --images, --dataset and --embeddings. A column with the name of an attribute enables
    'cca search --value colour=red', which needs no image. The ids of images are their paths in the folder, or the
    numbers of their rows unless --id_column is given.

    \b
    Examples:
      cca index --model me/cca-shoes --images catalogue/ --store shoes.index
      cca index --model out --dataset me/shoes --split test --id_column sku --store shoes.index
      cca index --model out --dataset me/shoes --split train --id_prefix train- --store shoes.index
      cca index --embeddings embeddings --model out --store http://localhost:6333/shoes
      cca index --model facebook/dinov2-small --images catalogue/ --store catalogue.index
    """
    if context.invoked_subcommand is not None:
        return
    if store is None:
        raise UsageError("--store is missing: the place of the index, which is created if it does not exist")
    if sum(source is not None for source in (images, dataset, embeddings)) != 1:
        raise UsageError("give one of --images, --dataset and --embeddings")
    if model is None and embeddings is None:
        raise UsageError("--images and --dataset need the --model that encodes them")
    if dataset is None and (split or image_column or id_column):
        raise UsageError("--split, --image_column and --id_column are for a --dataset")
    if embeddings is not None and (on_unreadable != "error" or precision != "auto"):
        raise UsageError("--on_unreadable and --precision are for images; the --embeddings are computed already")
    options.check_engine(store)
    with stdout_kept_clean():
        from cca_hf.search.outfits import OUTFIT_ATTRIBUTE, as_encoder
        from cca_hf.search.sources import EmbeddedSource, ImageSource, ItemSource, fill_index

        source: ItemSource
        unreadable: dict[str, str] = {}
        name = "" if model is None else options.resolved(model)
        if embeddings is not None:
            source = EmbeddedSource(embeddings, name, columns=columns)
        else:
            encoder = as_encoder(options.load_encoder_of_index(name, device, precision))
            reading: dict[str, Any] = {
                "columns": columns,
                "batch_size": batch_size,
                "on_unreadable": on_unreadable,
                "precision": precision,
            }
            if images is not None:
                source = ImageSource.from_folder(images, encoder, name, **reading)
            else:
                reading |= {"split": split, "image_column": image_column, "id_column": id_column}
                source = ImageSource.from_dataset(dataset or "", encoder, name, **reading)
            unreadable = source.unreadable
        items, schema = fill_index(store, source, only_new=only_new, replace=replace, id_prefix=id_prefix)
        example = _any_item(store)
    if as_json:
        attributes = list(filter(None, schema.attributes))
        contents = {"store": store, "items": items, "attributes": attributes, "columns": schema.columns}
        contents |= {"made_by": str(schema.checkpoint), "unreadable": unreadable}
        print(json.dumps(contents, indent=2, ensure_ascii=False))
        return
    names = f" for {', '.join(schema.attributes)}" if schema.has_attributes else ""
    print(f"{store}: {items:,} items, each with one embedding{names}")
    if unreadable:
        item, reason = next(iter(unreadable.items()))
        print(f"{len(unreadable):,} images cannot be read and were skipped, such as {item}: {reason}")
    print(f"columns to filter by: {', '.join(schema.columns) or 'none'}")
    if example is not None:
        query = [f"--item={example}"] if example.startswith("--") else ["--item", example]
        attribute = ["--attribute", schema.attributes[0]] if schema.has_attributes else []
        words = ["cca", "search", "--store", store, *query, *attribute]
        if schema.attributes == (OUTFIT_ATTRIBUTE,):
            words = ["cca", "complete", "--store", store, "--items", example]
        print(f"next: {shlex.join(words)}")


def _any_item(store: str) -> str | None:
    """The id of one item; None for an empty index."""
    from cca_hf.search import AttributeIndex
    from cca_hf.search.schema import ITEM_ID

    with AttributeIndex.open(store) as index:
        ids = (table.column(ITEM_ID)[0].as_py() for table in index.tables() if len(table))
        return next(ids, None)


@app.command(cls=Command)
def move(
    source: str = typer.Argument(..., metavar="FROM", help="The existing index."),
    target: str = typer.Argument(..., metavar="TO", help="The new place, a folder, a bucket or a server."),
) -> None:
    """Copy an index to another place. An interrupted copy is resumed by the same command. FROM is not deleted.

    \b
    Examples:
      cca index move shoes.index http://localhost:6333/shoes
      cca index move http://localhost:6333/shoes s3://bucket/shoes.index
    """
    options.check_engine(source)
    options.check_engine(target)
    with stdout_kept_clean():
        from cca_hf.search import copy_index

        copied = copy_index(source, target)
    print(f"{target}: {copied:,} items")
    print(f"{source} is unchanged. Delete it when you have checked the copy.")


def search(
    store: str = option(..., "PLACE", "Index, as in 'cca index'."),
    image: list[str] | None = option(None, "FILE ...", "Image files or URLs to search with."),
    item: list[str] | None = option(None, "ID ...", "Items of the index to search with."),
    value: list[str] | None = option(
        None,
        "NAME=VALUE ...",
        "Values to search for, instead of the query's ('this one, but red'). NAME= leaves the attribute out.",
    ),
    keep: float = option(
        1.0, "WEIGHT", "How much the rest of the query counts beside each --value: 0.5 is half as much.", min=0
    ),
    attribute: list[str] | None = option(
        None,
        "NAME ...",
        "Attributes, with one result for each of them. Default: all. A model without attributes needs none.",
        names=("--attribute", "--attributes"),
    ),
    weights: list[str] | None = option(
        None, "NAME=WEIGHT ...", "Weights of attributes, for one result under their mixture."
    ),
    where: str | None = option(None, "FILTER", "Filter for items, such as \"price < 50 and colour != 'red'\"."),
    top: int = option(10, "NUMBER", "Number of items in a result.", names=("--top", "--top_k"), min=1),
    html: Path | None = option(None, "FILE", "Write a page with the images of the items."),
    as_json: bool = options.JSON,
    model: str | None = options.MODEL_OF_INDEX,
    precision: options.Precision = options.PRECISION,
    device: str | None = options.DEVICE,
) -> None:
    """Find the items that are most similar to an image, an item or a value, under one attribute or several.

    An index of a model without attributes has one embedding for each item: give an image or an item, and no attribute.

    \b
    Examples:
      cca search --store shoes.index --image query.jpg --attribute heel_height --top 10
      cca search --store shoes.index --item 4711 --weights colour=1 heel_height=0.5 --where "price < 50"
      cca search --store shoes.index --value colour=red closure=laces --html found.html
      cca search --store shoes.index --item 4711 --value colour=red --json | jq '.[0].found[0]'
      cca search --store shoes.index --item 4711 --value colour=red sleeve=long pattern= --keep 0.5
    """
    if image and item:
        raise UsageError("give either --image or --item")
    if not (image or item or value):
        raise UsageError("give an --image, an --item or a --value to search for")
    if attribute and weights:
        raise UsageError("give either --attribute, one result each, or --weights, one result for all")
    named = named_values("--value", value, "NAME=VALUE, or NAME= to leave the attribute out", may_be_empty=True)
    values = {name: text or None for name, text in named.items()}
    mixture = {}
    for name, weight in named_values("--weights", weights).items():
        try:
            mixture[name] = float(weight)
        except ValueError as error:
            raise UsageError(f"the weight of {name} must be a number; got {weight!r}") from error
    options.check_engine(store)
    with stdout_kept_clean():
        from cca_hf.recipes.index_search import search_index, write_answers

        encoder = None
        if image:
            from cca_hf.search.outfits import as_encoder

            name = model or options.model_of_index(store)
            encoder = as_encoder(options.load_encoder_of_index(name, device, precision))
        answers = search_index(
            store,
            encoder=encoder,
            precision=precision,
            images=image or (),
            items=item or (),
            values=values,
            attributes=attribute or (),
            weights=mixture,
            keep=keep,
            where=where,
            top=top,
        )
        page = None if html is None else write_answers(answers, html, store=store, where=where)
    if as_json:
        found = [
            {
                "query": answer.query,
                "attribute": answer.attribute or None,
                "found": [hit._asdict() for hit in answer.hits],
            }
            for answer in answers
        ]
        print(printable(json.dumps(found, indent=2, ensure_ascii=False)))
        return
    for answer in answers:
        table = _table(answer.hits, [*answer.attributes, *values])
        title = f"{answer.query}, by {answer.attribute}" if answer.attribute else answer.query
        print(printable("\n".join([title, *answer.notes, table, ""])))
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
