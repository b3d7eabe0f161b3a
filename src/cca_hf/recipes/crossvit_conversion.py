"""Conversion of CrossViT between files of timm or of its authors, and checkpoints of this package."""

from collections.abc import Mapping
from pathlib import Path

from transformers import AutoConfig

from cca_hf.models.configuration_crossvit import CrossViTConfig
from cca_hf.models.conversion_crossvit import make_image_processor, read_weights, write_weights
from cca_hf.models.modeling_crossvit import CrossViTForImageClassification, CrossViTModel, CrossViTPreTrainedModel
from cca_hf.models.whole_files import check_new, staged


def convert_to_checkpoint(source: str, output: Path, *, id2label: Mapping[int, str] | None = None) -> CrossViTConfig:
    """Write a checkpoint with its image processor; without a classifier if `source` has none.

    Args:
        source, id2label: as in [`CrossViTPreTrainedModel.from_timm`].
        output: a new folder.

    Raises:
        FileExistsError: if the folder has files.
        ValueError: see [`CrossViTPreTrainedModel.from_timm`].
    """
    check_new(output)
    weights, names = read_weights(source)
    model_class = CrossViTForImageClassification if "head.0.weight" in weights else CrossViTModel
    model = model_class.from_timm(weights, id2label=names if id2label is None else id2label)
    with staged(output) as folder:
        model.save_pretrained(folder)
        make_image_processor(model.config).save_pretrained(folder)
    return model.config


def convert_from_checkpoint(source: str, output: Path, layout: str) -> None:
    """Write the weights of a checkpoint with other names.

    Args:
        source: a folder, or an id on the Hub.
        output: a new file: `.safetensors`, or `.pth` for a file of PyTorch.
        layout: `"timm"` or `"ibm"`.

    Raises:
        FileExistsError: if the file exists.
        ValueError: if the checkpoint is no CrossViT.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists already; choose a new file")
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if not isinstance(config, CrossViTConfig):
        raise ValueError(f"{source} is a checkpoint of type {config.model_type!r}, not of CrossViT")
    model_class: type[CrossViTPreTrainedModel] = CrossViTModel
    if CrossViTForImageClassification.__name__ in (config.architectures or ()):
        model_class = CrossViTForImageClassification
    model = model_class.from_pretrained(source, dtype="auto", trust_remote_code=False)
    with staged(output.parent) as folder:
        write_weights(model.to_timm(layout), folder / output.name)


def read_class_names(source: str) -> dict[int, str]:
    """Names of classes by number: the lines of a text file, or those of a classifier on this machine or the Hub."""
    path = Path(source)
    if path.is_file():
        return dict(enumerate(path.read_text(encoding="utf-8").splitlines()))
    return dict(AutoConfig.from_pretrained(source, trust_remote_code=False).id2label)
