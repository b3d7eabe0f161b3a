"""Models that recognise attributes, made for a training: CLEAR, one of its branches, or a head on a CCA model."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig, SwinConfig, ViTConfig

from cca_hf.data.recognition import RecognitionDataset
from cca_hf.models.backbones import freeze_statistics, image_size_of
from cca_hf.models.configuration_cca import CCAConfig
from cca_hf.models.configuration_images import height_and_width
from cca_hf.models.modeling_cca_recognition import CCAForAttributeRecognition
from cca_hf.models.modeling_clear import CLEARForAttributeRecognition

from .backbone_config import read_backbone_config
from .recognition_arguments import RecognitionArguments

# CLEAR without a branch has the configuration of one all the same
_NO_GLOBAL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 16,
}
_NO_LOCAL: dict[str, Any] = {"embed_dim": 16, "depths": [1], "num_heads": [1]}


def config_of_cca(name: str) -> CCAConfig:
    """The configuration of the CCA model that `--model` names.

    Raises:
        ValueError: for a checkpoint of another type.
    """
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if not isinstance(config, CCAConfig):
        raise ValueError(
            f"--model needs a trained CCA model; {name} is of type {config.model_type!r}. For another vision model, "
            "give --backbone or --local_backbone"
        )
    return config


def make_recogniser(args: RecognitionArguments, data: RecognitionDataset) -> Any:
    """A [`CLEARForAttributeRecognition`] or [`CCAForAttributeRecognition`] for the attributes of the data.

    Raises:
        ValueError: for a backbone that does not fit.
        OSError: if a backbone cannot be loaded.
    """
    kinds: dict[str, Any] = {"attribute_kinds": dict(data.kinds)}
    if args.model is not None:
        model: Any = CCAForAttributeRecognition.from_cca(args.model, attribute_values=data.attributes, **kinds)
    else:
        model = _make_clear(args, data, kinds)
    for module in pretrained_parts(args, model):
        module.register_forward_pre_hook(_into_eval_mode if args.freeze_backbone else _freeze_statistics)
    return model


def pretrained_parts(args: RecognitionArguments, model: Any) -> Iterator[nn.Module]:
    """The modules of a model whose weights are not new."""
    if args.model is not None:
        yield model.cca
    if args.backbone is not None:
        yield model.clear.backbone
    if args.local_backbone is not None:
        yield model.clear.local_backbone


def _make_clear(
    args: RecognitionArguments, data: RecognitionDataset, kinds: dict[str, Any]
) -> CLEARForAttributeRecognition:
    size = args.height_and_width
    whole, local = (
        name if config is None else _from_scratch(config, size)
        for name, config in (
            (args.backbone, args.backbone_config),
            (args.local_backbone, args.local_backbone_config),
        )
    )
    if whole is None and size is None:
        assert local is not None  # the arguments have a branch
        size = image_size_of(local if isinstance(local, PreTrainedConfig) else AutoConfig.from_pretrained(local))
    fields: dict[str, Any] = {
        "use_global": whole is not None,
        "use_local": local is not None,
        "use_fusion": args.fusion,
        "use_channel_attention": args.channel_attention,
    }
    return CLEARForAttributeRecognition.from_backbones(
        ViTConfig(image_size=height_and_width(size), **_NO_GLOBAL) if whole is None and size is not None else whole,
        SwinConfig(**_NO_LOCAL) if local is None else local,
        data.attributes,
        image_size=size,
        **fields,
        **kinds,
    )


def _from_scratch(source: str, size: int | list[int] | None) -> PreTrainedConfig:
    config = read_backbone_config(source)
    if size is not None and "image_size" in config.to_dict():
        config.image_size = size
    return config


def _into_eval_mode(module: nn.Module, _: Any) -> None:
    module.eval()


def _freeze_statistics(module: nn.Module, _: Any) -> None:
    freeze_statistics(module)
