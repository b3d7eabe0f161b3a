"""`cca index`: a catalogue into a search index, and an index to another place."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .options import load_encoder, spread_lists, stdout_kept_clean


class _SpreadGroup(TyperGroup):
    """As `SpreadLists`, for a command that has commands of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread_lists(args))


app = typer.Typer(name="index", cls=_SpreadGroup, invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def index(
    context: typer.Context,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", metavar="PLACE", help="A folder, s3://..., or http://host:6333/collection on a Qdrant server."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="ID_OR_FOLDER", help="Checkpoint on the Hub or in a folder.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="FOLDER", help="Every picture in it, and in the folders in it; or"),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="ID_OR_FOLDER", help="a data set with pictures; or")
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option("--embeddings", metavar="FOLDER", help="what 'cca embed' wrote: no picture is read again."),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="Of the data set, if it has several.")
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option("--id_column", metavar="NAME", help="What names an item. Default: the number of its row."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="NAME ...", help="Columns to filter by and to show. Default: all."),
    ] = None,
    only_new: Annotated[
        bool, typer.Option("--only_new", help="Leave items that are in the index alone: go on after an interruption.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch_size", metavar="NUMBER", min=1, help="Pictures a pass.")] = 32,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="cpu, cuda, mps, ... Default: the accelerator there is."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what is in the index as JSON.")] = False,
) -> None:
    """Embed a catalogue, or take its embeddings, and index them. Items that are there already are written over.

    A column named like an attribute lets 'cca search --value colour=red' find without a picture.

    \b
    Examples:
      cca index --model me/cca-shoes --images catalogue/ --store shoes.index
      cca index --model out --dataset me/shoes --split test --id_column sku --store shoes.index
      cca index --embeddings embeddings --model out --store http://localhost:6333/shoes
    """
    if context.invoked_subcommand is not None:
        return
    if store is None:
        raise typer.BadParameter("--store is missing: where the index is, or is to be")
    if sum(source is not None for source in (images, dataset, embeddings)) != 1:
        raise typer.BadParameter("give one of --images, --dataset and --embeddings")
    if model is None and embeddings is None:
        raise typer.BadParameter("--images and --dataset need the --model that embeds them")
    if dataset is None and (split or id_column):
        raise typer.BadParameter("--split and --id_column are for a --dataset")
    with stdout_kept_clean():
        from cca_hf.embedding.catalogue import Catalogue
        from cca_hf.search.filling import fill_index
        from cca_hf.search.sources import EmbeddedSource, ImageSource, ItemSource

        source: ItemSource
        name = str(Path(model).resolve()) if model is not None and Path(model).exists() else model or ""
        if embeddings is not None:
            source = EmbeddedSource(embeddings, name, columns=columns)
        else:
            encoder = load_encoder(name, device)
            if images is not None:
                catalogue = Catalogue.from_folder(images.resolve())
                source = ImageSource(catalogue, encoder, name, columns=columns, batch_size=batch_size)
            else:
                source = ImageSource.from_dataset(
                    dataset or "",
                    encoder,
                    name,
                    split=split,
                    id_column=id_column,
                    columns=columns,
                    batch_size=batch_size,
                )
        items, schema = fill_index(store, source, only_new=only_new)
    if as_json:
        told = {"store": store, "items": items, "attributes": list(schema.attributes), "columns": schema.columns}
        print(json.dumps({**told, "made_by": str(schema.checkpoint)}, indent=2, ensure_ascii=False))
        return
    print(f"{store}: {items:,} items, an embedding of each under {', '.join(schema.attributes)}")
    print(f"columns to filter by: {', '.join(schema.columns) or 'none'}")
    print(f"next: cca search --store {store} --image PICTURE --attribute {schema.attributes[0]}")


@app.command()
def move(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The index that is.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="Where it is to be, on the same engine or the other.")],
) -> None:
    """Stream an index to another place. Interrupted, it goes on when started again. What is at FROM stays there.

    \b
    Examples:
      cca index move shoes.index http://localhost:6333/shoes
      cca index move http://localhost:6333/shoes s3://bucket/shoes.index
    """
    with stdout_kept_clean():
        from cca_hf.search import copy_index

        copied = copy_index(source, target)
    print(f"{target}: {copied:,} items")
    print(f"{source} is as it was; delete it when you are content with the copy")
