"""Load a checkpoint of any model of this package or of transformers. This file is not saved with checkpoints."""

from os import PathLike, fspath
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel

from .configuration_images import AttributeConfig, ImageModelConfig, RecognitionConfig
from .image_embedder import ImageEmbedder
from .whole_checkpoints import config_class_of, load_weights, saved_class_of

_RECOGNISERS = "ForAttributeRecognition"  # ends the names of their classes


def load_model(
    name_or_path: str | PathLike[str],
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    *,
    auto_class: Any = AutoModel,
) -> Any:
    """Load a checkpoint of this package with attributes or categories, in evaluation mode.

    Args:
        name_or_path: a folder, or a model id on the Hub.
        device: defaults to the accelerator of this machine, or else the CPU.
        dtype: of the weights; `"auto"` for the one in which they were saved.
        revision: branch, tag or commit on the Hub.
        auto_class: the auto class of transformers that selects the kind of model.

    Returns:
        An [`ImagePreTrainedModel`], such as a [`CCAModel`].

    Raises:
        OSError: if the checkpoint exists neither on this machine nor on the Hub.
        ValueError: if the checkpoint is of another type, lacks weights, or has weights that are NaN or infinite, an
            image processor with code of its own, or a file that is a pipe or a device.
    """
    config_class = config_class_of(name_or_path, revision)
    if not issubclass(config_class, ImageModelConfig):
        name = fspath(name_or_path)
        raise ValueError(
            f"{name} is a checkpoint of type {config_class.model_type!r}, which has no attributes: 'cca train "
            f"--backbone {name}' trains a CCA model on it, and 'cca embed', 'cca index' and 'cca search' take it as "
            "it is"
        )
    return load_weights(auto_class, name_or_path, device, dtype=dtype, revision=revision or "main")


def load_encoder(
    name_or_path: str | PathLike[str],
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
) -> Any:
    """Load what embeds images, from a checkpoint of any vision model.

    Args:
        name_or_path, device, dtype, revision: as in [`load_model`].

    Returns:
        The model itself, as [`load_model`] returns it; for a model of another type, such as [`CrossViTModel`] or a
        DINOv2, an [`ImageEmbedder`] with one embedding of an image.

    Raises:
        OSError, ValueError: see [`load_model`] and [`ImageEmbedder.from_pretrained`].
    """
    config_class = config_class_of(name_or_path, revision)
    only_recognises = issubclass(config_class, RecognitionConfig) and not issubclass(config_class, AttributeConfig)
    if issubclass(config_class, ImageModelConfig) and not only_recognises:
        return load_model(name_or_path, device, dtype, revision)
    return ImageEmbedder.from_pretrained(name_or_path, device, dtype, revision)


def load_saved(folder: str | PathLike[str]) -> PreTrainedModel:
    """Load a checkpoint on the CPU with the head that it was saved with, such as that of a classifier.

    Raises:
        OSError, ValueError: see [`load_model`]; or if it has a head of another kind.
    """
    config_class_of(folder)  # raises for a folder that is no checkpoint
    config = AutoConfig.from_pretrained(fspath(folder), trust_remote_code=False)
    return load_weights(saved_class_of(config), folder, "cpu", dtype="auto")


def is_recogniser(name_or_path: str | PathLike[str]) -> bool:
    """Whether a checkpoint has a head that recognises the values of attributes. No weights are read.

    Raises:
        OSError, ValueError: see [`load_model`].
    """
    config_class_of(name_or_path)  # raises for what is no checkpoint
    architectures = PreTrainedConfig.get_config_dict(name_or_path)[0].get("architectures") or []
    return any(name.endswith(_RECOGNISERS) for name in architectures)


def load_recogniser(
    name_or_path: str | PathLike[str], device: str | torch.device | None = None, dtype: str | torch.dtype = "auto"
) -> Any:
    """As [`load_model`], for a checkpoint that recognises attributes: an [`AttributeRecogniser`].

    Raises:
        ValueError: also for a checkpoint without a head for recognition.
    """
    if not is_recogniser(name_or_path):
        architecture = (PreTrainedConfig.get_config_dict(name_or_path)[0].get("architectures") or [None])[0]
        raise ValueError(
            f"{fspath(name_or_path)} is a checkpoint of {architecture}, which does not recognise values: 'cca train "
            "recognise' makes a model that does"
        )
    return load_model(name_or_path, device, dtype, auto_class=AutoModelForImageClassification)
