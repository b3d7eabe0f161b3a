"""`cca try`: a first result on a user's own images, or on drawn shapes."""

import os
import shlex
import sys
import webbrowser
from pathlib import Path

import typer

from cca_hf.training.process import let_waiting_threads_sleep

from . import options
from .options import UsageError, option, printable, stdout_kept_clean, switch


def trial(
    source: str | None = typer.Argument(
        None, metavar="[FOLDER_OR_TABLE]", help="Your images with their attributes, or a data set of the Hub."
    ),
    attributes: list[str] | None = option(
        None, "NAME ...", "Columns with the attributes. Default: the columns whose values repeat."
    ),
    group_column: str | None = options.GROUP_COLUMN,
    backbone: str | None = option(
        None, "ID_OR_FOLDER", "Pretrained vision model. Default: google/mobilenet_v2_1.0_224, from the Hub."
    ),
    output_dir: Path = option(Path("cca-try"), "FOLDER", "Folder for the page and the checkpoint."),
    no_open: bool = switch("no_open", "Do not open the page in a browser."),
) -> None:
    """Train a small model in a minute or two, and open a page with the nearest images under each attribute.

    Your images may be a folder with a metadata.csv, a table with a column of paths or addresses, or folders that are
    named like the values. Without them, the command draws shapes and needs no network. The backbone stays frozen. At
    most 1,000 training images are used. 'cca train' trains on all images.

    \b
    Examples:
      cca try
      cca try photos/
      cca try products.csv --attributes colour closure
    """
    if source is None:
        for name, value in {"attributes": attributes, "group_column": group_column, "backbone": backbone}.items():
            if value is not None:
                raise UsageError(f"--{name} needs FOLDER_OR_TABLE: your images")
    let_waiting_threads_sleep()
    with stdout_kept_clean():
        from cca_hf.recipes.command_line import DataArguments
        from cca_hf.recipes.trial import (
            BACKBONE,
            SHAPE_ATTRIBUTES,
            SHAPES,
            describe,
            explain,
            load_images,
            try_images,
            try_shapes,
        )
        from cca_hf.training.process import prepare_process

        prepare_process()
    if source is None:
        following = [["cca", "try", "FOLDER_OR_TABLE"], _evaluate(output_dir, str(output_dir / "shapes"))]
        print(f"Draws {SHAPES:,} images of shapes, and learns from scratch: {', '.join(SHAPE_ATTRIBUTES)}", flush=True)
        with stdout_kept_clean():
            done = try_shapes(output_dir)
    else:
        data_args = DataArguments(source, attributes, group_column=group_column)
        with stdout_kept_clean():
            data = load_images(data_args)
        several = set(data.splits) != set(data.cut_splits)
        following = [
            _index(output_dir, source, "train" if several else None),
            _evaluate(output_dir, source),
            _train(source, attributes, group_column),
        ]
        print(printable(f"{source}: {describe(data)}"), flush=True)
        with stdout_kept_clean():
            done = try_images(data, data_args, backbone or BACKBONE, output_dir)
    print(printable(f"\n{done.result.table()}\n{explain(done)}\n\nPage: {done.page}\n\nNext:"))
    for words in following:
        print(f"  {printable(shlex.join(words))}")
    if not no_open and _has_screen():
        webbrowser.open(done.page.resolve().as_uri())


def _index(model: Path, dataset: str, split: str | None) -> list[str]:
    part = ["--split", split] if split else []
    return ["cca", "index", "--model", str(model), "--dataset", dataset, *part, "--store", f"{model}.index"]


def _evaluate(model: Path, dataset: str) -> list[str]:
    return ["cca", "evaluate", "--model", str(model), "--dataset", dataset]


def _train(dataset: str, attributes: list[str] | None, group_column: str | None) -> list[str]:
    words = ["cca", "train", "--dataset", dataset, "--backbone", "google/vit-base-patch16-224-in21k"]
    words += ["--attributes", *attributes] if attributes else []
    words += ["--group_column", group_column] if group_column else []
    return [*words, "--output_dir", "out"]


def _has_screen() -> bool:
    """Whether a browser can show a page: without a screen, Python would start one of text in the terminal."""
    return sys.platform in ("darwin", "win32") or not os.environ.keys().isdisjoint({"DISPLAY", "WAYLAND_DISPLAY"})
