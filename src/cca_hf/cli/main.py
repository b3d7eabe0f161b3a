"""The command `cca`. Results go to standard output, everything else to standard error.

Exit codes: 0 for success, 1 if the work failed, 2 if the command line is wrong, 130 if interrupted. An error is one
line; with `CCA_TRACEBACK=1` in the environment the traceback is shown.
"""

import importlib.metadata
import os
import sys
from collections.abc import Sequence

import typer

from .checkpoint import card, check, evaluate, push
from .complete import complete
from .convert import app as convert_commands
from .data import app as data_commands
from .docs import docs
from .embed import embed, export
from .index import app as index_commands
from .index import search
from .label import label
from .options import Command, UsageError, printable
from .serve import demo, serve
from .train import Training, train
from .trial import trial

# the exceptions whose message says what is wrong with the input; of others, the type is printed too
_EXPECTED = (ValueError, KeyError, OSError, ImportError, RuntimeError)

app = typer.Typer(
    name="cca",
    help="One embedding per attribute of an image: train, evaluate, publish, embed and search.",
    epilog="'cca COMMAND --help' shows examples.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("try", cls=Command)(trial)
app.command(cls=Training)(train)
for command in (evaluate, label, embed, export, search, complete, card, push, check, serve, demo, docs):
    app.command(cls=Command)(command)
app.add_typer(index_commands)
app.add_typer(data_commands)
app.add_typer(convert_commands)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; `arguments` default to those of the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return int(app(given or ["--help"], prog_name="cca", standalone_mode=False) or 0)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("cca", "interrupted", 130)
    except BrokenPipeError:  # `cca ... | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UsageError as error:
        path = "cca" if error.ctx is None else error.ctx.command_path
        message = error.format_message().strip()
        stop = "" if message.endswith((".", "?", ")")) else "."
        return _fail(path, f"{message}{stop} See '{path} --help'.", 2)
    except Exception as error:
        if os.environ.get("CCA_TRACEBACK"):
            raise
        message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        if not isinstance(error, _EXPECTED):
            message = f"{type(error).__name__}: {message} (CCA_TRACEBACK=1 shows where it comes from)"
        return _fail("cca", message, 1)


def _print_version(given: bool) -> None:
    if given:
        print(importlib.metadata.version("cca_hf"))
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_print_version, is_eager=True
    ),
) -> None:
    pass


def _fail(source: str, message: str, code: int) -> int:
    print(printable(f"{source}: error: {' '.join(message.split())}"), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
