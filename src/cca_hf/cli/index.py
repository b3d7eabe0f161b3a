"""`cca index`: images or embeddings into a search index, and an index to another place."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    BatchSize,
    Command,
    Device,
    Group,
    IdColumn,
    Images,
    Json,
    OptionalDataset,
    OptionalEncoder,
    Split,
    UsageError,
    load_encoder,
    option,
    resolved,
    stdout_kept_clean,
    switch,
)

app = typer.Typer(name="index", cls=Group, invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def index(
    context: typer.Context,
    store: Annotated[
        str | None,
        option("store", "PLACE", "Index: a folder, s3://..., or http://host:6333/collection (Qdrant server)."),
    ] = None,
    model: OptionalEncoder = None,
    images: Images = None,
    dataset: OptionalDataset = None,
    embeddings: Annotated[
        Path | None, option("embeddings", "FOLDER", "Output folder of 'cca embed'. The images are not read again.")
    ] = None,
    split: Split = None,
    id_column: IdColumn = None,
    columns: Annotated[
        list[str] | None, option("columns", "NAME ...", "Columns to store, for filters and results. Default: all.")
    ] = None,
    only_new: Annotated[
        bool, switch("only_new", "Skip items that the index already contains, to resume after an interruption.")
    ] = False,
    batch_size: BatchSize = 32,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Add images or embeddings to an index. Existing items with the same id are replaced.

    Give one of --images, --dataset and --embeddings. A column with the name of an attribute enables
    'cca search --value colour=red', which needs no image.

    \b
    Examples:
      cca index --model me/cca-shoes --images catalogue/ --store shoes.index
      cca index --model out --dataset me/shoes --split test --id_column sku --store shoes.index
      cca index --embeddings embeddings --model out --store http://localhost:6333/shoes
    """
    if context.invoked_subcommand is not None:
        return
    if store is None:
        raise UsageError("--store is missing: the place of the index, which is created if it does not exist")
    if sum(source is not None for source in (images, dataset, embeddings)) != 1:
        raise UsageError("give one of --images, --dataset and --embeddings")
    if model is None and embeddings is None:
        raise UsageError("--images and --dataset need the --model that encodes them")
    if dataset is None and (split or id_column):
        raise UsageError("--split and --id_column are for a --dataset")
    with stdout_kept_clean():
        from cca_hf.embedding.catalogue import Catalogue
        from cca_hf.search.filling import fill_index
        from cca_hf.search.sources import EmbeddedSource, ImageSource, ItemSource

        source: ItemSource
        name = "" if model is None else resolved(model)
        if embeddings is not None:
            source = EmbeddedSource(embeddings, name, columns=columns)
        elif images is not None:
            catalogue = Catalogue.from_folder(images.resolve())
            encoder = load_encoder(name, device)
            source = ImageSource(catalogue, encoder, name, columns=columns, batch_size=batch_size)
        else:
            source = ImageSource.from_dataset(
                dataset or "",
                load_encoder(name, device),
                name,
                split=split,
                id_column=id_column,
                columns=columns,
                batch_size=batch_size,
            )
        items, schema = fill_index(store, source, only_new=only_new)
    if as_json:
        contents = {"store": store, "items": items, "attributes": list(schema.attributes), "columns": schema.columns}
        print(json.dumps({**contents, "made_by": str(schema.checkpoint)}, indent=2, ensure_ascii=False))
        return
    print(f"{store}: {items:,} items, each with one embedding for {', '.join(schema.attributes)}")
    print(f"columns to filter by: {', '.join(schema.columns) or 'none'}")
    print(f"next: cca search --store {store} --image FILE --attribute {schema.attributes[0]}")


@app.command(cls=Command)
def move(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The existing index.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The new place, a folder, a bucket or a server.")],
) -> None:
    """Copy an index to another place. An interrupted copy is resumed by the same command. FROM is not deleted.

    \b
    Examples:
      cca index move shoes.index http://localhost:6333/shoes
      cca index move http://localhost:6333/shoes s3://bucket/shoes.index
    """
    with stdout_kept_clean():
        from cca_hf.search import copy_index

        copied = copy_index(source, target)
    print(f"{target}: {copied:,} items")
    print(f"{source} is unchanged. Delete it when you have checked the copy.")
