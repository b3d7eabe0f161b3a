"""Shared by the commands of `cca`: the parsing of options, the options of several commands, and loading a model."""

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from cca_hf.models.encoding import ImageEncoder

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and line breaks

# Recent versions of typer contain a copy of click; this is the right class with or without it.
UsageError: Any = typer.BadParameter.__base__


class Command(TyperCommand):
    """A command whose options are typed as in `cca train`: `--attributes a b c`, `--item -3`, `--output-dir out`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        _name_with_underscores(self.params)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _one_value_each(self, ctx, args))


class Group(TyperGroup):
    """As [`Command`], for a command that has subcommands."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        _name_with_underscores(self.params)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _one_value_each(self, ctx, args))


def _name_with_underscores(parameters: list[Any]) -> None:
    for parameter in parameters:  # typer has made --id-column of id_column
        parameter.opts = [name[:2] + name[2:].replace("-", "_") for name in parameter.opts]


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


def option(default: Any, metavar: str | None, text: str, *, names: Sequence[str] = (), **limits: Any) -> Any:
    """The default of a parameter that is an option with a value; `...` stands for a required one.

    The option has the name of the parameter, or all of `names`.
    """
    return typer.Option(default, *names, metavar=metavar, help=text, **limits)


def switch(name: str, text: str, default: bool | None = False) -> Any:
    """The default of a parameter that is an option without a value."""
    return typer.Option(default, f"--{name}", help=text)


_ENCODER = "Checkpoint (an id on the Hub or a folder), or a folder of 'cca export'."
_DATASET = "Data set: an id on the Hub, a folder, or a table (CSV, TSV, Excel, JSON lines, parquet)."

MODEL = option(..., "ID_OR_FOLDER", "Checkpoint: an id on the Hub or a folder.")
ENCODER = option(..., "ID_OR_FOLDER", _ENCODER)
OPTIONAL_ENCODER = option(None, "ID_OR_FOLDER", _ENCODER)
MODEL_OF_INDEX = option(None, "ID_OR_FOLDER", "Checkpoint. Default: the checkpoint that made the index.")
MODEL_FOLDER = option(..., "FOLDER", "Output folder of a training, or a saved checkpoint.")
DATASET = option(..., "ID_OR_PATH", _DATASET)
OPTIONAL_DATASET = option(None, "ID_OR_PATH", _DATASET)
IMAGES = option(None, "FOLDER", "Folder of images. Images in its subfolders are included.")
OUTPUT_DIR = option(..., "FOLDER", "Folder for the output files.")
ATTRIBUTES = option(
    None,
    "NAME ...",
    "Attributes to use. Default: all attributes of the model.",
    names=("--attributes", "--attribute"),
)
SPLIT = option(None, "NAME", "Split of the data set, if it has several.")
ID_COLUMN = option(None, "NAME", "Column with the unique id of each image. Default: the row number.")
GROUP_COLUMN = option(
    None, "NAME", "Column with one value for all images of an item. These do not count as neighbours of each other."
)
IMAGE_COLUMN = option(
    None, "NAME", "Column of the data set with the images. Default: image, or the only image column."
)
ON_UNREADABLE = option("error", None, "Stop at an image that cannot be read, or skip the image.")
NUM_WORKERS = option(None, "NUMBER", "Number of threads that read images.", min=0)
DEVICE = option(None, "NAME", "cpu, cuda, cuda:1, mps, ... Default: the accelerator, if there is one.")
Precision: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
OnUnreadable: TypeAlias = Literal["error", "skip"]
PRECISION = option("auto", None, "Number type of the computation. auto means the type of the checkpoint.")
JSON = switch("json", "Print JSON instead of text.")
REPO = option(..., "ID", "Repository on the Hub, such as me/shoes.")
PRIVATE = switch("private", "Make the repository private.")
REVISION = option(None, "BRANCH", "Branch to push to, created if needed. Default: the main branch.")
DRY_RUN = option(None, "FOLDER", "Write the files to this new folder and push nothing.")
LICENCE = option(None, "ID", "Licence for the card, such as apache-2.0.", names=("--license", "--licence"))


def batch_size(default: int) -> Any:
    return option(default, "NUMBER", "Number of images in one pass of the model.", min=1)


def message(default: str) -> Any:
    return option(default, "TEXT", "Commit message.")


# ---- Used by several commands before their call of the library ----


def named_values(
    name_of_option: str, words: list[str] | None, form: str = "NAME=...", *, may_be_empty: bool = False
) -> dict[str, str]:
    """The words `NAME=VALUE ...` of an option; an error names the `form` that the words must have.

    Args:
        may_be_empty: whether `NAME=` is allowed.
    """
    values = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not (name and equals and (value or may_be_empty)):
            raise UsageError(f"{name_of_option} takes {form}; got {word!r}")
        values[name] = value
    return values


def printable(text: str) -> str:
    """Text for a terminal: control characters, which could move its cursor or change its title, as JSON escapes."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def load_encoder(name: str, device: str | None, precision: str = "auto") -> "ImageEncoder":
    """Loads a checkpoint, or a folder that `cca export` wrote."""
    from cca_hf.runtimes.export import load_encoder

    return load_encoder(name, device, precision)


def load_encoder_of_index(name: str, device: str | None, precision: str) -> "ImageEncoder":
    """As [`load_encoder`], but a checkpoint keeps its precision, in which an index compares the weights."""
    from cca_hf.runtimes.export import is_exported

    return load_encoder(name, device, precision if is_exported(name) else "auto")


def resolved(name: str) -> str:
    """The absolute path of a folder, which is valid in any working directory; an id is returned unchanged."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def check_engine(store: str) -> None:
    """Raises ImportError if the engine of an index is not installed. Call it before a model is loaded."""
    from cca_hf.search.store import check_engine as check

    check(store)


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
