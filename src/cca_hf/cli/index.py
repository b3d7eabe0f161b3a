"""`cca index`: images or embeddings into a search index, and an index to another place."""

import json
from pathlib import Path

import typer

from . import options
from .options import Command, Group, UsageError, load_encoder, option, resolved, stdout_kept_clean, switch

app = typer.Typer(name="index", cls=Group, invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def index(
    context: typer.Context,
    store: str | None = option(
        None, "store", "PLACE", "Index: a folder, s3://..., or http://host:6333/collection (Qdrant server)."
    ),
    model: str | None = options.OPTIONAL_ENCODER,
    images: Path | None = options.IMAGES,
    dataset: str | None = options.OPTIONAL_DATASET,
    embeddings: Path | None = option(
        None, "embeddings", "FOLDER", "Output folder of 'cca embed'. The images are not read again."
    ),
    split: str | None = options.SPLIT,
    id_column: str | None = options.ID_COLUMN,
    columns: list[str] | None = option(
        None, "columns", "NAME ...", "Columns to store, for filters and results. Default: all."
    ),
    only_new: bool = switch(
        "only_new", "Skip items that the index already contains, to resume after an interruption."
    ),
    batch_size: int = options.batch_size(32),
    device: str | None = options.DEVICE,
    as_json: bool = options.JSON,
) -> None:
    """Add images or embeddings to an index. Existing items with the same id are replaced.

    Give one of --images, --dataset and --embeddings. A column with the name of an attribute enables
    'cca search --value colour=red', which needs no image.

    
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
        from cca_hf.search.sources import EmbeddedSource, ImageSource, ItemSource, fill_index

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
    source: str = typer.Argument(..., metavar="FROM", help="The existing index."),
    target: str = typer.Argument(..., metavar="TO", help="The new place, a folder, a bucket or a server."),
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
