"""`cca embed` and `cca export`: a trained model at work."""

import json
import os
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .options import Precision, load_encoder, load_model, stdout_kept_clean


class Numbers(StrEnum):
    """What embeddings are written as."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


class OnUnreadable(StrEnum):
    """What to do with a picture that cannot be read."""

    ERROR = "error"
    SKIP = "skip"


class Engine(StrEnum):
    """What runs the work of 'cca embed'."""

    LOOP = "loop"
    RAY = "ray"


class Runtime(StrEnum):
    """What runs an exported model."""

    ONNX = "onnx"
    OPENVINO = "openvino"


_Model = Annotated[
    str,
    typer.Option("--model", metavar="ID_OR_FOLDER", help="Checkpoint on the Hub or in a folder, exported or not."),
]
_Attributes = Annotated[
    list[str] | None,
    typer.Option("--attributes", metavar="NAME ...", help="One or more words. Default: all of the model's."),
]


def embed(
    model: _Model,
    output_dir: Annotated[
        Path, typer.Option("--output_dir", metavar="FOLDER", help="For the shards; an unfinished one is gone on with.")
    ],
    images: Annotated[
        Path | None, typer.Option("--images", metavar="FOLDER", help="Every picture in it, and in the folders in it.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", metavar="ID_OR_FOLDER", help="In place of --images: a data set with pictures."),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="Of the data set, if it has several.")
    ] = None,
    image_column: Annotated[str, typer.Option("--image_column", metavar="NAME", help="Of the data set.")] = "image",
    id_column: Annotated[
        str | None,
        typer.Option("--id_column", metavar="NAME", help="What names a picture. Default: the number of its row."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="NAME ...", help="Columns of the data set to keep beside the embeddings."),
    ] = None,
    attributes: _Attributes = None,
    dtype: Annotated[Numbers, typer.Option("--dtype", help="Of the embeddings in the files.")] = Numbers.FLOAT32,
    precision: Annotated[
        Precision,
        typer.Option("--precision", help="The model computes in it. auto: as it was saved."),
    ] = Precision.AUTO,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch_size", metavar="NUMBER", min=1, help="Pictures a pass. Default: 32; ray: what fits."),
    ] = None,
    shard_size: Annotated[
        int,
        typer.Option("--shard_size", metavar="NUMBER", min=1, help="Pictures a file, a multiple of --batch_size."),
    ] = 4096,
    num_workers: Annotated[
        int | None,
        typer.Option("--num_workers", metavar="NUMBER", min=0, help="Threads that read pictures, see encode."),
    ] = None,
    on_unreadable: Annotated[
        OnUnreadable,
        typer.Option("--on_unreadable", help="What to do with a picture that cannot be read: stop, or leave it out."),
    ] = OnUnreadable.ERROR,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="cpu, cuda, mps, ... Default: the accelerator there is."),
    ] = None,
    engine: Annotated[
        Engine, typer.Option("--engine", help="loop: this process. ray: workers on this machine or a Ray cluster.")
    ] = Engine.LOOP,
    ray_workers: Annotated[
        int | None,
        typer.Option("--ray_workers", metavar="NUMBER", min=1, help="Default: one for each GPU, or each machine."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="PLACE", help="Index them there as well, as 'cca index --embeddings' does."),
    ] = None,
) -> None:
    """Embed a catalogue into parquet files: an id and one embedding for each attribute a row.

    Killed and started again, it goes on where it was. Under 'accelerate launch' or 'torchrun' the processes share the
    work. Prints, as JSON, what is in the folder when it (the first of the processes) is done.

    \b
    Examples:
      cca embed --model me/cca-shoes --images catalogue/ --output_dir embeddings
      cca embed --model out --dataset me/shoes --split test --id_column sku --columns price brand --output_dir e
      accelerate launch --multi_gpu -m cca_hf.cli.main embed --model out --images catalogue/ --output_dir embeddings
      RAY_ADDRESS=auto cca embed --engine ray --model out --images catalogue/ --output_dir embeddings
      cca embed --engine ray --model out --images catalogue/ --output_dir embeddings --store catalogue.index
    """
    if (images is None) == (dataset is None):
        raise typer.BadParameter("give either --images or --dataset")
    if images is not None and (split or id_column or columns):
        raise typer.BadParameter("--split, --id_column and --columns are for a --dataset; plain files have none")
    if engine is Engine.LOOP and ray_workers is not None:
        raise typer.BadParameter("--ray_workers is for --engine ray")
    if engine is Engine.RAY and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise typer.BadParameter("--engine ray starts its own workers; run it without a launcher")
    if store is not None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise typer.BadParameter("an index takes one writer: run 'cca index --embeddings' when all processes are done")
    with stdout_kept_clean():
        from cca_hf.embedding.catalogue import Catalogue
        from cca_hf.embedding.job import EmbeddingSettings, embed_catalogue

        place = str(Path(model).resolve()) if Path(model).exists() else model
        if images is not None:
            # workers of Ray start in another folder
            catalogue = Catalogue.from_folder(images.resolve() if engine is Engine.RAY else images)
        else:
            catalogue = Catalogue.from_dataset(
                dataset or "", split=split, image_column=image_column, id_column=id_column, columns=columns or ()
            )
        rank, num_ranks, device = _place_among_processes(device)
        settings = EmbeddingSettings(attributes, dtype.value, shard_size, batch_size, num_workers, on_unreadable.value)
        if engine is Engine.RAY:
            from cca_hf.embedding.ray_engine import embed_catalogue_on_ray

            loading = partial(load_encoder, place, device, precision.value)
            done = embed_catalogue_on_ray(loading, catalogue, output_dir.resolve(), settings, ray_workers=ray_workers)
        else:
            encoder = load_encoder(model, device, precision.value)
            done = embed_catalogue(
                encoder, catalogue, output_dir, settings, rank=rank, num_ranks=num_ranks, show_progress=rank == 0
            )
        if store is not None:
            from cca_hf.search.filling import fill_index
            from cca_hf.search.sources import EmbeddedSource

            fill_index(store, EmbeddedSource(output_dir, place))
    if rank == 0:
        told = {"folder": str(output_dir), "pictures": done.num_items, "done": done.items}
        told |= {} if store is None else {"store": store}
        print(json.dumps({**told, "unreadable": done.unreadable}, indent=2, ensure_ascii=False))


def _place_among_processes(device: str | None) -> tuple[int, int, str | None]:
    """Rank, number of ranks, device. Their launchers tell it; as no two have to talk, that is all there is to it."""
    rank, num_ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if num_ranks > 1 and device is None:
        import torch

        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = None if accelerator is None else f"{accelerator.type}:{os.environ.get('LOCAL_RANK', 0)}"
    return rank, num_ranks, device


def export(
    model: _Model,
    output_dir: Annotated[Path, typer.Option("--output_dir", metavar="FOLDER", help="For the exported model.")],
    runtime: Annotated[
        Runtime, typer.Option("--runtime", help="What will run it: ONNX Runtime or OpenVINO.")
    ] = Runtime.ONNX,
    attributes: _Attributes = None,
    attribute_input: Annotated[
        bool, typer.Option("--attribute_input", help="The graph is told which attributes to answer.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="8-bit weights, for ONNX Runtime: faster on a CPU, a quarter of the size.")
    ] = False,
) -> None:
    """Write a model as one graph, all its attributes in it, for a runtime without PyTorch's overhead.

    The folder takes the place of a checkpoint in 'cca embed' and in ExportedModel.from_pretrained.

    \b
    Examples:
      cca export --model me/cca-shoes --output_dir shoes-int8 --int8
      cca export --model out --output_dir shoes-openvino --runtime openvino --attributes colour closure
    """
    with stdout_kept_clean():
        from cca_hf.runtimes.export import export_model

        folder = export_model(
            load_model(model, "cpu", "float32"),
            output_dir,
            runtime.value,
            attributes=attributes,
            attribute_input=attribute_input,
            int8=int8,
        )
    print(folder)
