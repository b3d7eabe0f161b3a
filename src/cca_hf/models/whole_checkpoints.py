"""Loads and saves checkpoints completely, or says what is wrong. This file is not saved with checkpoints."""

import json
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

from .backbones import AutoImageProcessor
from .configuration_images import without_folders
from .modeling_images import CHECKPOINT_FILES, ImagePreTrainedModel
from .whole_files import staged, write_checksums, write_json

_POOLER = "pooler"  # the module of many models that computes only `pooler_output`


def config_class_of(name_or_path: str | PathLike[str], revision: str | None = None) -> type[PreTrainedConfig]:
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
        model_type = PreTrainedConfig.get_config_dict(name, revision=revision or "main")[0].get("model_type")
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


def classes_of(config: PreTrainedConfig, mapping: Any) -> tuple[type[PreTrainedModel], ...]:
    """The classes that an auto class of transformers has for a configuration; `mapping` belongs to the auto class."""
    if type(config) not in mapping:
        return ()
    found = mapping[type(config)]
    return tuple(found) if isinstance(found, (list, tuple)) else (found,)


def is_classifier(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> bool:
    """Whether a class of models classifies images, as those of `AutoModelForImageClassification` do."""
    return model_class in classes_of(config, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING)


def saved_class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that a checkpoint was saved with: a classifier, or a model without a head.

    Raises:
        ValueError: for a model with another head.
    """
    classifiers = classes_of(config, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING)
    plain = classes_of(config, MODEL_MAPPING)
    saved = config.architectures or []
    found = [each for each in (*classifiers, *plain) if each.__name__ in saved]
    if found:
        return found[0]
    if plain and issubclass(plain[0], ImagePreTrainedModel):  # a subclass of it, which the user has made
        return plain[0]
    raise ValueError(
        f"the checkpoint is of {', '.join(saved) or 'an unknown class'}; this package publishes models that classify "
        "or embed images"
    )


def load_image_processor(name_or_path: str | PathLike[str], revision: str | None = None) -> BaseImageProcessor:
    """The image processor of a checkpoint.

    Raises:
        ValueError: if the checkpoint has none, or one with code of its own.
    """
    name = fspath(name_or_path)
    try:
        return AutoImageProcessor.from_pretrained(name, revision=revision or "main", trust_remote_code=False)
    except OSError as error:
        raise ValueError(
            f"{name} has no image processor (preprocessor_config.json), which says how images become the model's "
            "input. Save that of the training beside the checkpoint, with its save_pretrained; 'cca convert crossvit' "
            "writes the published one of a CrossViT"
        ) from error


def save_whole(model: PreTrainedModel, image_processor: BaseImageProcessor, folder: str | PathLike[str]) -> None:
    """Save a model of transformers, its image processor and checksums: all files, or none.

    The configuration contains no path of this machine.

    Raises:
        OSError: if the disk is full; the message names the folder.
    """
    with staged(folder) as staging:
        model.save_pretrained(staging)
        image_processor.save_pretrained(staging)
        settings = json.loads((staging / "config.json").read_text(encoding="utf-8"))
        write_json(without_folders(settings), staging / "config.json")
        write_checksums(staging)


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
