"""Load a checkpoint of this package and check it."""

from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedConfig

from .modeling_conditional import CCAPreTrainedModel

_TYPES = ("cca", "cca_csn", "cca_asen", "cca_separate")


def load_model(name: str, device: str | None = None, dtype: str = "auto") -> CCAPreTrainedModel:
    """A whole checkpoint of CCA or a baseline, on the accelerator there is or the device that is named, in eval mode.

    Args:
        dtype: the name of a dtype of torch, or `"auto"` for the one it was saved in.

    Raises:
        FileNotFoundError, OSError: there is none, here or on the Hub.
        ValueError: it is of another kind, or lacks weights.
    """
    if not Path(name).exists() and (Path(name).is_absolute() or len(Path(name).parts) > 2):  # no id on the Hub
        raise FileNotFoundError(f"there is no checkpoint at {name}")
    try:
        model_type = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
    except OSError as error:
        raise OSError(f"{name!r} is not a folder here, and could not be had from the Hub: {error}") from error
    if model_type not in _TYPES:
        raise ValueError(
            f"{name} is a checkpoint of type {model_type!r}, not of CCA; a CCA is trained on it by "
            f"'cca train --backbone {name}'"
        )
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    model, loaded = AutoModel.from_pretrained(name, dtype=dtype, output_loading_info=True)
    if loaded["missing_keys"]:  # they are random now, and so would the figures be
        missing = sorted(loaded["missing_keys"])
        raise ValueError(f"{name} lacks {len(missing)} of the model's weights, such as {missing[0]}: it is not whole")
    return model.to(device or accelerator or "cpu").eval()
