"""Loads a checkpoint completely, or says what is wrong with it. This file is not saved with checkpoints."""

from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from .modeling_images import CHECKPOINT_FILES

_POOLER = "pooler"  # the module of many models that computes only `pooler_output`


def config_class_of(name_or_path: str | PathLike[str]) -> type[PreTrainedConfig]:
    """The class of a checkpoint's configuration. No weights are read.

    Raises:
        OSError: if the checkpoint exists neither on this machine nor on the Hub.
        ValueError: if the checkpoint is of a type that neither transformers nor this package knows, or an adapter, or
            if one of its files is a pipe or a device.
    """
    name, parts = fspath(name_or_path), Path(name_or_path).parts
    if not Path(name).exists() and (Path(name).is_absolute() or len(parts) > 2):  # not an id on the Hub
        raise FileNotFoundError(f"there is no checkpoint at {name}")
    _check_files(Path(name))
    try:
        model_type = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
    except OSError as error:
        raise OSError(f"{name!r} is not a folder here, and could not be loaded from the Hub: {error}") from error
    if model_type is None and (Path(name) / "adapter_config.json").is_file():
        raise ValueError(
            f"{name} is an adapter without its base model: load both with PEFT, and save the merged model "
            "(PeftModel.from_pretrained(base_model, adapter).merge_and_unload())"
        )
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{name} is a checkpoint of type {model_type!r}, which neither cca_hf nor this version of transformers "
            "knows"
        )
    return CONFIG_MAPPING[model_type]


def load_weights(
    loader: Any, name_or_path: str | PathLike[str], device: str | torch.device | None, **settings: Any
) -> PreTrainedModel:
    """A model in evaluation mode, on a device (default: the accelerator, or else the CPU).

    A pooler that the checkpoint lacks is removed, so that the model gives no `pooler_output`: a classifier is saved
    without one.

    Args:
        loader: a class of models, or an auto class.
        settings: of its `from_pretrained`.

    Raises:
        ValueError: if the checkpoint lacks other weights, which would be random.
    """
    name = fspath(name_or_path)
    model, report = loader.from_pretrained(name, output_loading_info=True, trust_remote_code=False, **settings)
    missing = sorted(report["missing_keys"])
    if missing and all(weight.split(".")[0] == _POOLER for weight in missing):
        model.pooler, missing = None, []
    if missing:
        raise ValueError(f"{name} lacks {len(missing)} of the model's weights, such as {missing[0]}: it is incomplete")
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return model.to(device or accelerator or "cpu").eval()


def _check_files(folder: Path) -> None:
    """Raises ValueError if a file of a checkpoint is a pipe or a device: reading it may never end."""
    for path in folder.iterdir() if folder.is_dir() else ():
        special = path.exists() and not path.is_file() and not path.is_dir()
        if special and any(path.match(pattern) for pattern in CHECKPOINT_FILES):
            raise ValueError(f"{path} is a pipe or a device, not a file: remove it, or restore the checkpoint")
