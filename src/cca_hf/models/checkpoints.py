"""Moves to backbones.py."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

# transformers 5.17 lends the same class from its top level only where torchvision is installed
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import is_torchvision_available, logging

from .backbones import extract_features, interpolates_positions

if is_torchvision_available():
    from transformers import ViTImageProcessor
else:  # asking for the other one would work too, with a warning to each user
    from transformers import ViTImageProcessorPil as ViTImageProcessor

logger = logging.get_logger(__name__)

DEFAULT_IMAGE_SIZE = 224
FEATURE_MAP_HIDDEN_SIZE = 256
HEAD_DIM = 32

# of the conditional layer, the fields that it takes over from the ViT layer it replaces
VIT_LAYER_FIELDS = (
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "layer_norm_eps",
    "qkv_bias",
    "initializer_range",
)


def _native_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Of a model of images and text, such as SigLIP or CLIP, the vision tower's; and without a pooling head."""
    if "vision_config" in type(config).sub_configs:
        config = config.vision_config
    if config.model_type.startswith("siglip"):
        config.vision_use_head = False
    return config


def _image_size(config: PreTrainedConfig) -> int:
    size = config.to_dict().get("image_size") or DEFAULT_IMAGE_SIZE
    return int(size if isinstance(size, int) else max(size))


@torch.no_grad()
def _describe(
    native: PreTrainedModel, image_size: int, config_fields: Mapping[str, Any], *, takes_last_layer: bool
) -> dict[str, Any]:
    """The fields of `CCAConfig` that follow from what a backbone returns for one empty picture."""
    training = native.training
    native.eval()
    channels = native.config.to_dict().get("num_channels", 3)
    picture = torch.zeros(1, channels, image_size, image_size, dtype=native.dtype)
    interpolate = interpolates_positions(native)
    output = extract_features(native, picture, (), interpolate)[-1]
    if output.ndim not in (3, 4):
        raise ValueError(
            f"{type(native).__name__} gives neither image tokens (batch, tokens, channels) nor a feature map "
            f"(batch, channels, height, width): its last_hidden_state has shape {tuple(output.shape)}"
        )
    levels = config_fields.get("feature_levels")
    if levels is None:
        levels = _default_feature_levels(native, picture, interpolate)
    features = extract_features(native, picture, levels, interpolate)
    native.train(training)

    backbone_config = copy.deepcopy(native.config)
    described: dict[str, Any] = {
        "backbone_config": backbone_config,
        "replaces_last_layer": takes_last_layer and backbone_config.model_type == "vit",
        "num_prefix_tokens": _num_prefix_tokens(output),
        "feature_levels": list(levels),
        "feature_channels": [_channels(feature) for feature in features],
    }
    if described["replaces_last_layer"]:
        described |= {field: value for field, value in backbone_config.to_dict().items() if field in VIT_LAYER_FIELDS}
        backbone_config.num_hidden_layers -= 1
    else:
        hidden_size = config_fields.get(
            "hidden_size", _channels(output) if output.ndim == 3 and not levels else FEATURE_MAP_HIDDEN_SIZE
        )
        described |= {
            "hidden_size": hidden_size,
            "num_attention_heads": _num_heads(hidden_size),
            "intermediate_size": 2 * hidden_size,
            "layer_norm_eps": 1e-6,
            # measured on MobileNetV2: its summary, a mean, as residual halves what is retrieved by colour
            "residual": "image" if described["num_prefix_tokens"] else "condition",
        }
    return described


def _default_feature_levels(native: PreTrainedModel, picture: torch.Tensor, interpolate: bool) -> list[int]:
    """The last hidden state of each of the three resolutions above the output's; none where it does not shrink."""
    arguments = {"interpolate_pos_encoding": True} if interpolate else {}
    outputs = native(picture, output_hidden_states=True, **arguments)
    sizes = [_num_cells(feature) for feature in outputs.hidden_states]
    finer = sorted({size for size in sizes if size > _num_cells(outputs.last_hidden_state)})[:3]
    return sorted(max(level for level, s in enumerate(sizes) if s == size) for size in finer)


def _num_cells(feature: torch.Tensor) -> int:
    return feature.shape[1] if feature.ndim == 3 else feature.shape[2] * feature.shape[3]


def _channels(feature: torch.Tensor) -> int:
    return feature.shape[2] if feature.ndim == 3 else feature.shape[1]


def _num_prefix_tokens(output: torch.Tensor) -> int:
    """Tokens in excess of a square grid: CLS, distillation and register tokens, which stand first."""
    return output.shape[1] - int(output.shape[1] ** 0.5) ** 2 if output.ndim == 3 else 0


def _num_heads(hidden_size: int) -> int:
    heads = max(1, hidden_size // HEAD_DIM)
    while hidden_size % heads:
        heads -= 1
    return heads


def _load_processor_of_backbone(name: str, hub_kwargs: dict[str, Any]) -> BaseImageProcessor | None:
    try:
        return AutoImageProcessor.from_pretrained(name, **hub_kwargs)
    except (OSError, ValueError):
        logger.warning(
            f"{name} has no preprocessor_config.json: pictures will be scaled to [-1, 1]. If the backbone was trained "
            "otherwise, set model.image_processor."
        )
        return None


def _square_image_processor(size: int, like: BaseImageProcessor | None) -> ViTImageProcessor:
    """Resizes the whole picture to a square and normalises as the backbone was trained.

    The centre crop of ImageNet recipes is left out on purpose: it cuts off what attributes are about, collars and
    heels.
    """
    if like is None:
        return ViTImageProcessor(size={"height": size, "width": size})
    return ViTImageProcessor(
        size={"height": size, "width": size},
        resample=like.resample,
        do_normalize=like.do_normalize is not False,
        image_mean=like.image_mean,
        image_std=like.image_std,
    )


def load_image_processor(
    config: PreTrainedConfig, name_or_path: str, hub_kwargs: dict[str, Any]
) -> BaseImageProcessor:
    """The image processor of a saved CCA checkpoint, or a new one for a model that was never saved."""
    if not name_or_path:
        return _square_image_processor(config.image_size, None)
    return AutoImageProcessor.from_pretrained(name_or_path, **hub_kwargs)
