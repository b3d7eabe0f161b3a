"""`cca embed` and `cca export`: embeddings of many images, and a model for another runtime."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Literal

from cca_hf.extras import require

from . import options
from .options import UsageError, check_engine, load_encoder, option, resolved, stdout_kept_clean, switch


def embed(
    model: str = options.ENCODER,
    output_dir: Path = option(..., "FOLDER", "Where the parquet files go. An interrupted run is resumed."),
    images: Path | None = options.IMAGES,
    dataset: str | None = options.OPTIONAL_DATASET,
    split: str | None = options.SPLIT,
    image_column: str | None = options.IMAGE_COLUMN,
    id_column: str | None = options.ID_COLUMN,
    columns: list[str] | None = option(None, "NAME ...", "Columns of the data set to store next to the embeddings."),
    attributes: list[str] | None = options.ATTRIBUTES,
    dtype: Literal["float32", "float16", "int8"] = option(
        "float32", None, "Number type of the embeddings in the files."
    ),
    precision: options.Precision = options.PRECISION,
    batch_size: int | None = option(
        None, "NUMBER", "Images in one pass of the model. Default: 32; with ray on a GPU, 256.", min=1
    ),
    shard_size: int = option(4096, "NUMBER", "Images in a file, a multiple of --batch_size.", min=1),
    num_workers: int | None = options.NUM_WORKERS,
    on_unreadable: options.OnUnreadable = options.ON_UNREADABLE,
    device: str | None = options.DEVICE,
    engine: Literal["loop", "ray"] = option(
        "loop", None, "loop encodes in this process, ray in workers on this machine or on a Ray cluster."
    ),
    ray_workers: int | None = option(
        None, "NUMBER", "Number of workers. Default: one for each GPU, or for each machine.", min=1
    ),
    store: str | None = option(
        None, "PLACE", "Also add the embeddings to this index, as 'cca index --embeddings' does."
    ),
) -> None:
    """Encode a catalogue of images into parquet files: each row has an id and one embedding per attribute.

    A model without attributes, such as a classifier or facebook/dinov2-small, gives one embedding, in the column
    'embedding'.

    An interrupted run is resumed by the same command. With 'accelerate launch' or 'torchrun', the processes share the
    work. When the (first) process has finished, it prints as JSON what the folder contains.

    \b
    Examples:
      cca embed --model me/cca-shoes --images catalogue/ --output_dir embeddings
      cca embed --model out --dataset me/shoes --split test --id_column sku --columns price brand --output_dir e
      cca embed --model facebook/dinov2-small --images catalogue/ --output_dir embeddings
      accelerate launch --multi_gpu -m cca_hf.cli.main embed --model out --images catalogue/ --output_dir embeddings
      RAY_ADDRESS=auto cca embed --engine ray --model out --images catalogue/ --output_dir embeddings
      cca embed --engine ray --model out --images catalogue/ --output_dir embeddings --store catalogue.index
    """
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if (images is None) == (dataset is None):
        raise UsageError("give either --images or --dataset")
    if images is not None and (split or image_column or id_column or columns):
        raise UsageError(
            "--split, --image_column, --id_column and --columns are for a --dataset; image files have none"
        )
    if engine == "loop" and ray_workers is not None:
        raise UsageError("--ray_workers is for --engine ray")
    if engine == "ray" and several:
        raise UsageError("--engine ray starts its own workers; run it without a launcher")
    if store is not None and several:
        raise UsageError("an index allows one writer: run 'cca index --embeddings' when all processes have finished")
    if engine == "ray":
        require("ray", 'the engine "ray" needs')
    if store is not None:
        check_engine(store)
    with stdout_kept_clean():
        from cca_hf.embedding.catalogue import Catalogue
        from cca_hf.embedding.job import EmbeddingSettings, embed_catalogue

        if images is not None:
            # the workers of Ray start in another working directory
            catalogue = Catalogue.from_folder(images.resolve() if engine == "ray" else images)
        else:
            catalogue = Catalogue.from_dataset(
                dataset or "",
                split=split,
                image_column=image_column,
                id_column=id_column,
                columns=columns or (),
                on_unreadable=on_unreadable,
            )
        rank, num_ranks, device = _place_among_processes(device)
        settings = EmbeddingSettings(attributes, dtype, shard_size, batch_size, num_workers, on_unreadable)
        if engine == "ray":
            from cca_hf.embedding.ray_engine import embed_catalogue_on_ray

            loading = partial(load_encoder, resolved(model), device, precision)
            done = embed_catalogue_on_ray(loading, catalogue, output_dir.resolve(), settings, ray_workers=ray_workers)
        else:
            encoder = load_encoder(model, device, precision)
            done = embed_catalogue(
                encoder, catalogue, output_dir, settings, rank=rank, num_ranks=num_ranks, show_progress=rank == 0
            )
        if store is not None:
            from cca_hf.search.sources import EmbeddedSource, fill_index

            fill_index(store, EmbeddedSource(output_dir, resolved(model)))
    if rank == 0:
        counts = {"folder": str(output_dir), "pictures": done.num_items, "done": done.items}
        counts |= {} if store is None else {"store": store}
        print(json.dumps({**counts, "unreadable": done.unreadable}, indent=2, ensure_ascii=False))


def _place_among_processes(device: str | None) -> tuple[int, int, str | None]:
    """Rank, number of ranks and device, from the variables of the launcher. The processes do not communicate."""
    rank, num_ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if num_ranks > 1 and device is None:
        import torch

        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = None if accelerator is None else f"{accelerator.type}:{os.environ.get('LOCAL_RANK', 0)}"
    return rank, num_ranks, device


def export(
    model: str = options.MODEL,
    output_dir: Path = options.OUTPUT_DIR,
    runtime: Literal["onnx", "openvino"] = option("onnx", None, "Runtime for the model: ONNX Runtime or OpenVINO."),
    attributes: list[str] | None = options.ATTRIBUTES,
    attribute_input: bool = switch(
        "attribute_input", "Add an input to the graph that selects attributes in each call."
    ),
    int8: bool = switch(
        "int8", "Store 8-bit weights, for ONNX Runtime: it is faster on a CPU, and the file has a quarter of the size."
    ),
) -> None:
    """Write a model with its attributes as one graph for ONNX Runtime or OpenVINO.

    'cca embed' and ExportedModel.from_pretrained accept the folder instead of a checkpoint.

    \b
    Examples:
      cca export --model me/cca-shoes --output_dir shoes-int8 --int8
      cca export --model out --output_dir shoes-openvino --runtime openvino --attributes colour closure
    """
    require(runtime, f"a graph for {runtime} needs", without=() if int8 else ["onnxruntime"])
    with stdout_kept_clean():
        from cca_hf.models.loading import load_model
        from cca_hf.runtimes.export import export_model

        cca = load_model(model, "cpu", "float32")
        export_model(cca, output_dir, runtime, attributes=attributes, attribute_input=attribute_input, int8=int8)
    print(output_dir)
