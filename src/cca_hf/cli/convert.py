"""`cca convert`: weights of other packages as checkpoints, and back."""

from pathlib import Path
from typing import Literal

import typer

from .options import Command, UsageError, option, stdout_kept_clean

app = typer.Typer(
    name="convert",
    help="Convert weights of other packages to checkpoints, and back.",
    rich_markup_mode=None,
)


@app.callback()
def _group() -> None:
    """Without it, typer would make the only command the group."""


@app.command(cls=Command)
def crossvit(
    source: str = typer.Argument(
        ...,
        metavar="SOURCE",
        help="A file, a folder or an id on the Hub; with --to, a checkpoint.",
    ),
    output: Path = typer.Argument(..., metavar="OUT", help="A new folder; with --to, a new file."),
    labels: str | None = option(
        None,
        "FILE_OR_ID",
        "Names of the classes: a text file with a name in each line, or a classifier with the same classes, such as "
        "google/vit-base-patch16-224. Default: numbers.",
    ),
    to: Literal["timm", "ibm"] | None = option(None, None, "Convert a checkpoint back to the names of timm or IBM."),
) -> None:
    """Convert CrossViT weights of timm or of its authors (IBM) to a checkpoint with an image processor, or back.

    The variant is recognised by the shapes of the weights. The conversion changes no number. A .pth file is read with
    weights_only=True, so that it runs no code. With --to, OUT ends in .safetensors or .pth.

    \b
    Examples:
      cca convert crossvit timm/crossvit_15_240.in1k crossvit-15 --labels google/vit-base-patch16-224
      cca convert crossvit crossvit_small_224.pth crossvit-small
      cca convert crossvit crossvit-15 crossvit_15_240.safetensors --to timm
    """
    if to is not None and labels is not None:
        raise UsageError("--labels is not for --to")
    with stdout_kept_clean():
        from cca_hf.recipes.crossvit_conversion import convert_from_checkpoint, convert_to_checkpoint, read_class_names

        if to is None:
            names = None if labels is None else read_class_names(labels)
            config = convert_to_checkpoint(source, output, id2label=names)
        else:
            convert_from_checkpoint(source, output, to)
    print(f"written: {output}")
    if to is None and config.id2label.get(0) == "0":
        print("The classes are named by numbers; --labels gives them names.")
