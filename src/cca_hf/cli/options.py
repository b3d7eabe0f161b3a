"""What several commands of `cca` need: options of several words, a model by its name, a clean standard output."""

import contextlib
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
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


# what checkpoints can be, and what reports call them
NAMES = {
    "cca": "CCA",
    "cca_csn": "CSN",
    "cca_asen": "ASEN",
    "cca_separate": "one network per attribute",
}


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
    """A whole checkpoint of CCA or a baseline, on the accelerator there is or the device that is named, in eval mode.

    Args:
        precision: the name of a dtype of torch, or `"auto"` for the one it was saved in.

    Raises:
        FileNotFoundError, OSError: there is none, here or on the Hub.
        ValueError: it is of another kind, or lacks weights.
    """
    import torch
    from transformers import AutoModel, PreTrainedConfig

    if not Path(name).exists() and (Path(name).is_absolute() or len(Path(name).parts) > 2):  # no id on the Hub
        raise FileNotFoundError(f"there is no checkpoint at {name}")
    try:
        model_type = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
    except OSError as error:
        raise OSError(f"{name!r} is not a folder here, and could not be had from the Hub: {error}") from error
    if model_type not in NAMES:
        raise ValueError(
            f"{name} is a checkpoint of type {model_type!r}, not of CCA; a CCA is trained on it by "
            f"'cca train --backbone {name}'"
        )
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    model, loaded = AutoModel.from_pretrained(name, dtype=precision, output_loading_info=True)
    if loaded["missing_keys"]:  # they are random now, and so would the figures be
        missing = sorted(loaded["missing_keys"])
        raise ValueError(f"{name} lacks {len(missing)} of the model's weights, such as {missing[0]}: it is not whole")
    return model.to(device or accelerator or "cpu").eval()


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
