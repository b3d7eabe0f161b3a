"""Native vision backbones of transformers, seen alike: pixel values in, a list of features out.

What differs between them is gathered here: which parts serve only a pooled output that CCA does not use (they would be
parameters without gradient, on which DistributedDataParallel stops), and which interpolate their positions when asked.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

# by model type, the modules behind `last_hidden_state`: they make the pooled output only
POOLING_MODULES = {
    "vit": ("pooler",),
    "deit": ("pooler",),
    "convnext": ("layernorm",),
    "convnextv2": ("layernorm",),
    "clip_vision_model": ("post_layernorm",),
}

# by model type, parameters for masked image modelling
MASK_TOKENS = {
    "dinov2": "embeddings.mask_token",
    "dinov2_with_registers": "embeddings.mask_token",
    "dinov3_vit": "embeddings.mask_token",
}


def prepare_backbone(backbone: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Leaves of a native backbone what the conditional layer needs.

    Where the layer replaces the backbone's last one, the final normalisation belongs behind the new layer; the
    backbone then returns the plain hidden states before it.
    """
    model_type = backbone.config.model_type
    for name in POOLING_MODULES.get(model_type, ()):
        if name in dict(backbone.named_children()):
            # convolutional networks call theirs without a look, transformers test for None
            setattr(backbone, name, nn.Identity() if "layernorm" in name else None)
    if model_type in MASK_TOKENS and MASK_TOKENS[model_type] in dict(backbone.named_parameters()):
        backbone.get_parameter(MASK_TOKENS[model_type]).requires_grad_(False)
    if config.replaces_last_layer:
        backbone.layernorm = nn.Identity()
    return backbone


def architecture_of(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a native configuration that say what is computed; not where it came from, nor names of classes."""
    common = {*PreTrainedConfig().to_dict(), "_name_or_path", "use_cache"} - {"model_type"}
    return {name: value for name, value in config.to_dict().items() if name not in common}


def interpolates_positions(backbone: PreTrainedModel) -> bool:
    """Whether position embeddings are fitted to other image sizes on demand; the others need no asking."""
    return "interpolate_pos_encoding" in inspect.signature(backbone.forward).parameters


def extract_features(
    backbone: PreTrainedModel, pixel_values: torch.Tensor, feature_levels: Sequence[int], interpolate: bool
) -> list[torch.Tensor]:
    """The hidden states of `feature_levels` and, last, the backbone's output.

    Each is (batch, tokens, channels) or (batch, channels, height, width).
    """
    arguments = {"interpolate_pos_encoding": True} if interpolate else {}
    if not feature_levels:
        return [backbone(pixel_values, **arguments).last_hidden_state]
    outputs = backbone(pixel_values, output_hidden_states=True, **arguments)
    return [*(outputs.hidden_states[level] for level in feature_levels), outputs.last_hidden_state]


def parameters_of_levels(backbone: PreTrainedModel, config: PreTrainedConfig, num_levels: int) -> list[nn.Parameter]:
    """The parameters that make the maps of the first `num_levels` feature levels: those that they have a gradient by.

    Raises:
        ValueError: if there are fewer levels.
    """
    if not 0 <= num_levels <= len(config.feature_levels):
        raise ValueError(
            f"this model asks {len(config.feature_levels)} feature levels before the backbone's output; "
            f"got {num_levels}"
        )
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if num_levels == 0 or not parameters:
        return []
    channels = backbone.config.to_dict().get("num_channels", 3)
    reference = parameters[0]
    picture = torch.zeros(
        1, channels, config.image_size, config.image_size, dtype=reference.dtype, device=reference.device
    )
    with torch.enable_grad():
        levels = config.feature_levels[:num_levels]
        features = extract_features(backbone, picture, levels, interpolates_positions(backbone))[:-1]
        total = torch.stack([feature.sum() for feature in features]).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


__all__ = ["architecture_of", "extract_features", "interpolates_positions", "parameters_of_levels", "prepare_backbone"]
