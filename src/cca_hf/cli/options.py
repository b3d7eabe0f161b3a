"""What several commands of `cca` need: options of several words, a model by its name, a clean standard output."""

import contextlib
import sys
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

if TYPE_CHECKING:
    from cca_hf.models.encoding import ImageEncoder
    from cca_hf.models.modeling_cca import CCAModel

_LISTS = ("--attributes", "--columns", "--image", "--item", "--value", "--attribute", "--weights")


def spread_lists(words: list[str]) -> list[str]:
    """`--attributes a b c` as the option given several times, the only way in which the parser takes several."""
    spread: list[str] = []
    current: str | None = None
    for word in words:
        if word.startswith("-"):
            current = word if word in _LISTS else None
            spread += [] if current else [word]
        else:
            spread += [current, word] if current else [word]
    return spread


class Precision(StrEnum):
    """What a model computes in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class SpreadLists(TyperCommand):
    """Lets `--attributes a b c` take several words, as in `cca train`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread_lists(args))


def load_model(name: str, device: str | None, precision: str = "auto") -> "CCAModel":
    """See `cca_hf.models.loading.load_model`, which is imported when a command needs it."""
    from cca_hf.models.loading import load_model

    return load_model(name, device, precision)


def load_encoder(name: str, device: str | None, precision: str = "auto") -> "ImageEncoder":
    """As `load_model`, or what `cca export` wrote."""
    from cca_hf.runtimes.exported import ExportedModel, is_exported

    if not is_exported(name):
        return load_model(name, device, precision)
    if device not in (None, "cpu") or precision not in ("auto", "float32"):
        raise ValueError(f"{name} is an exported model: it runs on the CPU, in the precision that it was exported in")
    return ExportedModel.from_pretrained(name)


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Whatever a library prints goes to standard error, so that the output can be piped."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
