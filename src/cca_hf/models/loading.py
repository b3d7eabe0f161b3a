"""Load a checkpoint of any model of this package. This file is not saved with checkpoints."""

from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForImageClassification, PreTrainedConfig

from .configuration_images import ImageModelConfig
from .modeling_images import CHECKPOINT_FILES


def load_model(
    name_or_path: str | PathLike[str],
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    *,
    auto_class: Any = AutoModel,
) -> Any:
    """Load a checkpoint of this package, in evaluation mode.

    Args:
        name_or_path: a folder, or a model id on the Hub.
        device: defaults to the accelerator of this machine, or else the CPU.
        dtype: of the weights; `"auto"` for the one in which they were saved.
        auto_class: the auto class of transformers that selects the kind of model.

    Returns:
        An [`ImagePreTrainedModel`], such as a [`CCAModel`].

    Raises:
        OSError: if the checkpoint exists neither on this machine nor on the Hub.
        ValueError: if the checkpoint is of another type, lacks weights, or has weights that are NaN or infinite, an
            image processor with code of its own, or a file that is a pipe or a device.
    """
    name, settings = _read_config(name_or_path)
    model_type = settings.get("model_type")
    if model_type is None and (Path(name) / "adapter_config.json").is_file():
        raise ValueError(
            f"{name} is an adapter without its base model: load both with PEFT, and save the merged model "
            "(PeftModel.from_pretrained(base_model, adapter).merge_and_unload())"
        )
    if model_type not in CONFIG_MAPPING or not issubclass(CONFIG_MAPPING[model_type], ImageModelConfig):
        raise ValueError(
            f"{name} is a checkpoint of type {model_type!r}, not of CCA; 'cca train --backbone {name}' trains a CCA "
            "model on it"
        )
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    loading = {"output_loading_info": True, "trust_remote_code": False}
    model, report = auto_class.from_pretrained(name, dtype=dtype, **loading)
    if report["missing_keys"]:  # they would be random, and the embeddings useless
        missing = sorted(report["missing_keys"])
        raise ValueError(f"{name} lacks {len(missing)} of the model's weights, such as {missing[0]}: it is incomplete")
    return model.to(device or accelerator or "cpu").eval()


def load_recogniser(
    name_or_path: str | PathLike[str], device: str | torch.device | None = None, dtype: str | torch.dtype = "auto"
) -> Any:
    """As [`load_model`], for a checkpoint that recognises attributes: an [`AttributeRecogniser`].

    Raises:
        ValueError: also for a checkpoint without a head for recognition.
    """
    name, settings = _read_config(name_or_path)
    architecture = (settings.get("architectures") or [None])[0]
    if not str(architecture).endswith("ForAttributeRecognition"):
        raise ValueError(
            f"{name} is a checkpoint of {architecture}, which does not recognise values: 'cca train recognise' makes "
            "a model that does"
        )
    return load_model(name, device, dtype, auto_class=AutoModelForImageClassification)


def _read_config(name_or_path: str | PathLike[str]) -> tuple[str, dict[str, Any]]:
    """The name of a checkpoint as text, and the content of its config.json."""
    name, parts = fspath(name_or_path), Path(name_or_path).parts
    if not Path(name).exists() and (Path(name).is_absolute() or len(parts) > 2):  # not an id on the Hub
        raise FileNotFoundError(f"there is no checkpoint at {name}")
    check_files(Path(name))
    try:
        return name, PreTrainedConfig.get_config_dict(name)[0]
    except OSError as error:
        raise OSError(f"{name!r} is not a folder here, and could not be loaded from the Hub: {error}") from error


def check_files(folder: Path) -> None:
    """Raises ValueError if a file of a checkpoint is a pipe or a device: reading it may never end."""
    for path in folder.iterdir() if folder.is_dir() else ():
        special = path.exists() and not path.is_file() and not path.is_dir()
        if special and any(path.match(pattern) for pattern in CHECKPOINT_FILES):
            raise ValueError(f"{path} is a pipe or a device, not a file: remove it, or restore the checkpoint")
