"""Shared by the commands of `cca`: the parsing of options, the options of several commands, and loading a model."""

import contextlib
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from cca_hf.models.encoding import ImageEncoder

# Recent versions of typer contain a copy of click; this is the right class with or without it.
UsageError: Any = typer.BadParameter.__base__


class Command(TyperCommand):
    """A command whose options are typed as in `cca train`: `--attributes a b c`, `--item -3`, `--output-dir out`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _one_value_each(self, ctx, args))


class Group(TyperGroup):
    """As [`Command`], for a command that has subcommands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _one_value_each(self, ctx, args))


def _one_value_each(command: Any, context: Any, words: list[str]) -> list[str]:
    """Rewrites options as `--name=value`, once for each value: the only form in which the parser takes several."""
    options = {
        name: parameter
        for parameter in command.get_params(context)
        if parameter.param_type_name == "option"
        for name in parameter.opts
    }
    rewritten: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            rewritten.append(word)
            if isinstance(command, Group):  # the name of a subcommand, which parses the words after it
                return rewritten + rest
            continue
        name, equals, value = word.partition("=")
        name = "--" + name[2:].replace("-", "_")
        parameter = options.get(name)
        if parameter is None or parameter.is_flag or equals:
            rewritten.append(name + equals + value)
            continue
        values = list(takewhile(lambda each: not each.startswith("--"), rest))
        if not values:
            raise typer.BadParameter("the option needs a value", ctx=context, param_hint=f"'{name}'")
        taken = values if parameter.multiple else values[:1]
        rewritten += [f"{name}={each}" for each in taken]
        del rest[: len(taken)]
    return rewritten


# ---- Options of several commands ----


def option(name: str, metavar: str | None, text: str, **limits: Any) -> Any:
    """An option with a value, for `Annotated`."""
    return typer.Option(f"--{name}", metavar=metavar, help=text, **limits)


def switch(name: str, text: str) -> Any:
    """An option without a value."""
    return typer.Option(f"--{name}", help=text)


_dataset = option("dataset", "ID_OR_FOLDER", "Data set: an id on the Hub or a folder.")

Model = Annotated[str, option("model", "ID_OR_FOLDER", "Checkpoint: an id on the Hub or a folder.")]
_encoder = option("model", "ID_OR_FOLDER", "Checkpoint (an id on the Hub or a folder), or a folder of 'cca export'.")
Encoder = Annotated[str, _encoder]
OptionalEncoder = Annotated[str | None, _encoder]
OptionalModel = Annotated[
    str | None, option("model", "ID_OR_FOLDER", "Checkpoint. Default: the checkpoint that made the index.")
]
ModelFolder = Annotated[Path, option("model", "FOLDER", "Output folder of a training, or a saved checkpoint.")]
Dataset = Annotated[str, _dataset]
OptionalDataset = Annotated[str | None, _dataset]
Images = Annotated[Path | None, option("images", "FOLDER", "Folder of images. Images in its subfolders are included.")]
OutputDir = Annotated[Path, option("output_dir", "FOLDER", "Folder for the output files.")]
Attributes = Annotated[
    list[str] | None, option("attributes", "NAME ...", "Attributes to use. Default: all attributes of the model.")
]
Split = Annotated[str | None, option("split", "NAME", "Split of the data set, if it has several.")]
IdColumn = Annotated[
    str | None, option("id_column", "NAME", "Column with the unique id of each image. Default: the row number.")
]
GroupColumn = Annotated[
    str | None,
    option(
        "group_column",
        "NAME",
        "Column with one value for all images of an item. These do not count as neighbours of each other.",
    ),
]
BatchSize = Annotated[int, option("batch_size", "NUMBER", "Images in one pass of the model.", min=1)]
NumWorkers = Annotated[int | None, option("num_workers", "NUMBER", "Threads that read images.", min=0)]
Device = Annotated[
    str | None,
    option("device", "NAME", "cpu, cuda, cuda:1, mps, ... Default: the accelerator, if the machine has one."),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    option("precision", None, "Number type of the computation. auto: the type in which the model was saved."),
]
Json = Annotated[bool, switch("json", "Print JSON instead of text.")]
Repo = Annotated[str, option("repo", "ID", "Repository on the Hub, such as me/shoes.")]
Private = Annotated[bool, switch("private", "Make the repository private.")]
Revision = Annotated[
    str | None, option("revision", "BRANCH", "Branch to push to, created if needed. Default: the main branch.")
]
Message = Annotated[str, option("message", "TEXT", "Commit message.")]
DryRun = Annotated[Path | None, option("dry_run", "FOLDER", "Write the files to this new folder and push nothing.")]
Licence = Annotated[str | None, option("license", "ID", "Licence for the card, such as apache-2.0.")]


# ---- Used by several commands before their call of the library ----


def named_values(name_of_option: str, words: list[str] | None, form: str = "NAME=...") -> dict[str, str]:
    """The words `NAME=VALUE ...` of an option; an error names the `form` that the words must have."""
    values = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise UsageError(f"{name_of_option} takes {form}; got {word!r}")
        values[name] = value
    return values


def load_encoder(name: str, device: str | None, precision: str = "auto") -> "ImageEncoder":
    """Loads a checkpoint, or a folder that `cca export` wrote."""
    from cca_hf.models.loading import load_model
    from cca_hf.runtimes.exported import ExportedModel, is_exported

    if not is_exported(name):
        encoder: ImageEncoder = load_model(name, device, precision)
        return encoder
    if device not in (None, "cpu") or precision not in ("auto", "float32"):
        raise ValueError(f"{name} is an exported model: it runs on the CPU, in the precision that it was exported in")
    return ExportedModel.from_pretrained(name)


def resolved(name: str) -> str:
    """The absolute path of a folder, which is valid in any working directory; an id is returned unchanged."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def model_of_index(store: str) -> str:
    """The checkpoint that an index was made with.

    Raises:
        ValueError: if the index does not name it.
    """
    from cca_hf.search import AttributeIndex

    with AttributeIndex.open(store) as index:
        name = index.schema.checkpoint.name
    if not name:
        raise ValueError(f"the index at {store} does not name its model: give --model")
    return name


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Redirects what libraries print to standard error, so that the output of a command can be piped."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
