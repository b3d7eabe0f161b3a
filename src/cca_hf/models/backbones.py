"""Vision backbones of transformers behind one interface: pixel values in, a sequence of image tokens out.

Transformers return tokens (batch, tokens, channels), with or without CLS and register tokens before them.
Convolutional networks return feature maps (batch, channels, height, width). Modules for a pooled output are removed,
because DistributedDataParallel stops at parameters without a gradient.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BaseImageProcessor, PreTrainedConfig, PreTrainedModel

# transformers 5.17 has the same class at its top level only where torchvision is installed
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import ModelOutput, is_torchvision_available, logging

from .configuration_images import check_sizes, fields_of, height_and_width

if is_torchvision_available():
    from transformers import ViTImageProcessor
else:  # ViTImageProcessor would work too, but with a warning
    from transformers import ViTImageProcessorPil as ViTImageProcessor

logger = logging.get_logger(__name__)

FEATURE_MAP_HIDDEN_SIZE = 256

# Modules that compute only the pooled output, by model type.
POOLING_MODULES = {"vit": "pooler", "deit": "pooler", "clip_vision_model": "post_layernorm"}
POOLING_MODULES |= {"convnext": "layernorm", "convnextv2": "layernorm"}


def freeze_statistics(backbone: nn.Module) -> None:
    """Put the batch normalisation of a backbone into evaluation mode, so that training leaves its statistics."""
    for module in backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


class FeatureCells(nn.Module):
    """Feature maps of one or several levels as sequences of cells. It has no parameters."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.num_prefix_tokens = config.num_prefix_tokens
        self.feature_grid = config.feature_grid
        self.patch_size = _patch_size(config.backbone_config)

    def flatten(
        self, features: list[torch.Tensor], image_size: tuple[int, int]
    ) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
        """Compute sequences of cells, with earlier levels averaged down to `feature_grid`.

        Args:
            features: the result of `extract_features` for `feature_levels`.
            image_size: (height, width) of the pixel values.

        Returns:
            Cells (batch, cells, channels) of the output and then of the levels, from the last to the first; and the
            (height, width) of their grids, which follow the prefix tokens.
        """
        last = len(features) - 1
        flat = [self._flatten(features[level], image_size, pool=level < last) for level in range(last, -1, -1)]
        return [cells for cells, _ in flat], [grid for _, grid in flat]

    def _flatten(
        self, feature: torch.Tensor, image_size: tuple[int, int], *, pool: bool
    ) -> tuple[torch.Tensor, tuple[int, int]]:
        if feature.ndim == 3:
            grid = _token_grid(feature.shape[1] - self.num_prefix_tokens, image_size, self.patch_size)
            if not pool or self.num_prefix_tokens or max(grid) <= self.feature_grid:
                return feature, grid
            feature = feature.transpose(1, 2).unflatten(2, grid)  # (B, N, C) -> (B, C, h, w)
        height, width = feature.shape[-2:]
        longest = max(height, width)
        if pool and longest > self.feature_grid:
            height, width = (max(1, round(side * self.feature_grid / longest)) for side in (height, width))
            feature = nn.functional.adaptive_avg_pool2d(feature, (height, width))
        return feature.flatten(2).transpose(1, 2), (height, width)  # (B, C, h, w) -> (B, h w, C)


class ImageTokens(FeatureCells):
    """The cells of all levels, projected to `hidden_size` and concatenated behind a summary token.

    For a plain transformer of the right width with a CLS token, this is the identity.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        levels = len(config.feature_channels)
        self.is_identity = levels == 1 and config.feature_channels[0] == config.hidden_size
        if not self.is_identity:
            dim, eps = config.hidden_size, config.layer_norm_eps
            self.projections = nn.ModuleList(nn.Linear(channels, dim) for channels in config.feature_channels)
            self.layernorms = nn.ModuleList(nn.LayerNorm(dim, eps=eps) for _ in range(levels))
            self.level_embeddings = nn.Embedding(levels, dim)

    def forward(self, flattened: list[torch.Tensor]) -> torch.Tensor:
        """Project and concatenate the result of `flatten`: tokens (batch, 1 + ..., hidden_size), the summary first."""
        if not self.is_identity:
            levels = torch.arange(len(flattened) - 1, -1, -1, device=flattened[0].device)
            embeddings = self.level_embeddings(levels)  # by a call: the weights may be offloaded or have an adapter
            flattened = [
                self.layernorms[-1 - place](self.projections[-1 - place](cells)) + embeddings[place]
                for place, cells in enumerate(flattened)
            ]
        if self.num_prefix_tokens == 0:
            flattened = [flattened[0].mean(dim=1, keepdim=True), *flattened]
        return torch.cat(flattened, dim=1) if len(flattened) > 1 else flattened[0]


def _patch_size(config: PreTrainedConfig) -> tuple[int, int] | None:
    """(height, width) of a transformer's patches in pixels, or None if its configuration does not give it."""
    fields = config.to_dict()
    size = fields.get("patch_stride", fields.get("patch_size"))
    if isinstance(size, int):
        return size, size
    return tuple(size) if isinstance(size, (list, tuple)) and len(size) == 2 else None


def _token_grid(num_tokens: int, image_size: tuple[int, int], patch_size: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of the grid of image tokens; the tokens that do not fit into it are a prefix.

    A plain transformer cuts the image into whole patches. A pyramid (Swin) pads it, and halves its grid at each stage.
    """
    height, width = image_size
    if patch_size is None:
        return _grid_of_square_cells(num_tokens, height, width)
    whole = (height // patch_size[0], width // patch_size[1])
    padded = (-(-height // patch_size[0]), -(-width // patch_size[1]))
    grids = []
    for rows, columns in (whole, padded):
        while rows * columns > num_tokens:
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        grids.append((rows, columns))
    return max(grids, key=lambda grid: grid[0] * grid[1])


def _grid_of_square_cells(num_tokens: int, height: int, width: int) -> tuple[int, int]:
    """The largest grid of at most `num_tokens` whole square cells, as large as the image has room for."""
    grid = (0, 0)
    for count in range(1, num_tokens + 1):
        # a cell is as high as the image / count, or as wide
        grids = [(count, width * count // height), (height * count // width, count)]
        fitting = [(rows, columns) for rows, columns in grids if rows * columns <= num_tokens]
        if not fitting:
            break
        grid = max(grid, *fitting, key=lambda each: each[0] * each[1])
    return grid


def prepare_backbone(backbone: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Remove the unused parts of a native backbone, and a final normalisation that moves behind the new layer."""
    name = POOLING_MODULES.get(backbone.config.model_type, "")
    if name in dict(backbone.named_children()):
        # convolutional networks call theirs unconditionally, transformers test for None
        setattr(backbone, name, nn.Identity() if "layernorm" in name else None)
    for name, parameter in backbone.named_parameters():
        if name == "embeddings.mask_token":  # for masked image modelling
            parameter.requires_grad_(False)
    if config.replaces_last_layer:
        backbone.layernorm = nn.Identity()
    return backbone


def architecture_of(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a native configuration that change the computation, without its origin and names of classes."""
    common = {*PreTrainedConfig().to_dict(), "_name_or_path", "use_cache"} - {"model_type"}
    return {name: value for name, value in config.to_dict().items() if name not in common}


def interpolates_positions(backbone: PreTrainedModel) -> bool:
    """Whether the backbone needs an argument to interpolate its position embeddings to another image size."""
    return "interpolate_pos_encoding" in inspect.signature(backbone.forward).parameters


def run_backbone(
    backbone: PreTrainedModel, pixel_values: torch.Tensor, interpolate: bool, output_hidden_states: bool = False
) -> ModelOutput:
    """The backbone's output for images of any size, with `last_hidden_state` and, if asked for, `hidden_states`.

    A state is (batch, tokens, channels) or (batch, channels, height, width).
    """
    config, size = backbone.config, tuple(pixel_values.shape[-2:])
    arguments = {"output_hidden_states": True} if output_hidden_states else {}
    # transformers interpolates only square tables of positions; a backbone made for this size needs no interpolation
    if interpolate and size != height_and_width(config.image_size):
        arguments["interpolate_pos_encoding"] = True
    return backbone(pixel_values, **arguments, **window_arguments(config, size))


def window_arguments(config: PreTrainedConfig, size: Sequence[int]) -> dict[str, bool]:
    """The arguments that Swin and its stages need for images of a (height, width)."""
    if config.model_type == "swin":
        last_stride = config.patch_size * 2 ** (len(config.depths) - 1)
        # on a grid smaller than its windows, Swin would shrink the windows but not their tables of positions
        if -(-min(size) // last_stride) < config.window_size:
            return {"always_partition": True}
    return {}


def extract_features(
    backbone: PreTrainedModel, pixel_values: torch.Tensor, feature_levels: Sequence[int], interpolate: bool
) -> list[torch.Tensor]:
    """The hidden states of `feature_levels` and, last, the backbone's output."""
    outputs = run_backbone(backbone, pixel_values, interpolate, output_hidden_states=bool(feature_levels))
    return select_features(outputs, feature_levels)


def select_features(outputs: ModelOutput, feature_levels: Sequence[int]) -> list[torch.Tensor]:
    """As `extract_features`, from the outputs of [`run_backbone`]."""
    return [*(outputs.hidden_states[level] for level in feature_levels), outputs.last_hidden_state]


class StatePlace(NamedTuple):
    """Where a backbone computes one of its hidden states.

    Args:
        module: name of the outermost module that returns the state.
        part: index of the state in what the module returns; `None` if it returns only the state.
        cell: (height, width) of a cell of the state in pixels.
    """

    module: str
    part: int | None
    cell: tuple[float, float]


@torch.no_grad()
def find_state(backbone: PreTrainedModel, level: int, size: tuple[int, int]) -> StatePlace:
    """The place of `hidden_states[level]`, found on a blank image of `size`.

    Args:
        backbone: in evaluation mode, so that the blank image changes no statistics.

    Raises:
        ValueError: if no module returns the state, or it is no map.
    """
    returned: list[tuple[str, Any]] = []
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: returned.append((name, output)))
        for name, module in backbone.named_modules()
        if name
    ]
    try:
        outputs = run_backbone(backbone, _blank_image(backbone, size), interpolates_positions(backbone), True)
    finally:
        for hook in hooks:
            hook.remove()
    state = outputs.hidden_states[level]
    rows, columns = state_as_map(backbone, state, size).shape[-2:]
    cell = (size[0] / rows, size[1] / columns)
    places = []
    for name, output in returned:
        parts = output if isinstance(output, tuple) else (output,)
        part = next((index for index, each in enumerate(parts) if each is state), None)
        if part is not None:
            places.append(StatePlace(name, part if isinstance(output, tuple) else None, cell))
    if not places:
        raise ValueError(cannot_be_resumed(backbone))
    # the innermost module returns the state first, and the modules around it later
    innermost = places[0].module
    return [place for place in places if f"{innermost}.".startswith(f"{place.module}.")][-1]


def state_as_map(backbone: PreTrainedModel, state: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """A hidden state of tokens or a map -> (batch, channels, height, width).

    Raises:
        ValueError: if the tokens are not those of a grid alone.
    """
    if state.ndim == 4:
        return state
    grid = _token_grid(state.shape[1], image_size, _patch_size(backbone.config))
    if grid[0] * grid[1] != state.shape[1]:
        raise ValueError(cannot_be_resumed(backbone))
    return state.transpose(1, 2).unflatten(2, grid)


def cannot_be_resumed(backbone: PreTrainedModel) -> str:
    """The message of the error for a backbone that does not fit [`run_backbone_from`]."""
    return (
        f"the later part of {type(backbone).__name__} cannot be run by itself: use --freeze_backbone, or no "
        "--cache_tokens"
    )


def run_backbone_from(
    backbone: PreTrainedModel,
    state: torch.Tensor,
    place: StatePlace,
    interpolate: bool,
    output_hidden_states: bool = False,
) -> tuple[ModelOutput, tuple[int, int]]:
    """As [`run_backbone`], but the modules behind `place` compute on `state`.

    The modules before it run on one blank image, because some of them return the size of their grid besides the state.
    That costs as much as one more image of the batch.

    Args:
        state: (batch, channels, height, width), also for a backbone whose hidden states are tokens.

    Returns:
        The output, and the (height, width) of the images that the state comes from.

    Raises:
        ValueError: if images of this size have a state of another shape.
    """
    rows, columns = state.shape[-2:]
    size = (round(rows * place.cell[0]), round(columns * place.cell[1]))
    producer = backbone.get_submodule(place.module)

    def replace(module: nn.Module, _: Any, output: Any) -> Any:
        if module is not producer:  # a replica of DataParallel, in another thread: replicas share their hooks
            return None
        blank = output if place.part is None else output[place.part]
        given = state if blank.ndim == 4 else state.flatten(2).transpose(1, 2)
        if blank.shape[1:] != given.shape[1:]:
            raise ValueError(
                f"a hidden state of this backbone is {tuple(blank.shape[1:])} for images of {size[0]} x {size[1]} "
                f"pixels; got {tuple(given.shape[1:])}"
            )
        return given if place.part is None else (*output[: place.part], given, *output[place.part + 1 :])

    image = _blank_image(backbone, size).contiguous(memory_format=torch.channels_last)
    with producer.register_forward_hook(replace):
        return run_backbone(backbone, image, interpolate, output_hidden_states), size


def parameters_of_levels(backbone: PreTrainedModel, config: PreTrainedConfig, num_levels: int) -> list[nn.Parameter]:
    """The parameters that the maps of the first `num_levels` feature levels depend on.

    Raises:
        ValueError: if there are fewer levels.
    """
    if not 0 <= num_levels <= len(config.feature_levels):
        raise ValueError(
            f"this model has {len(config.feature_levels)} feature levels before the backbone's output; "
            f"got {num_levels}"
        )
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if num_levels == 0 or not parameters:
        return []
    image = _blank_image(backbone, config.image_height_and_width)
    with torch.enable_grad():
        levels = config.feature_levels[:num_levels]
        features = extract_features(backbone, image, levels, interpolates_positions(backbone))[:-1]
        total = torch.stack([feature.sum() for feature in features]).sum()
        if not total.requires_grad:  # the levels are frozen already
            return []
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def native_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the vision tower, for a model of images and text (SigLIP, CLIP); without a pooling head."""
    if "vision_config" in type(config).sub_configs:
        config = config.vision_config
    if config.model_type.startswith("siglip"):
        config.vision_use_head = False
    return config


def load_native(
    backbone: str | PathLike[str] | PreTrainedConfig, dtype: torch.dtype, hub_kwargs: dict[str, Any]
) -> PreTrainedModel:
    """A model of transformers, from the Hub or a folder, or with random weights by a configuration.

    Raises:
        ValueError: if the configuration has absurd sizes.
    """
    is_new = isinstance(backbone, PreTrainedConfig)
    config = native_config(copy.deepcopy(backbone) if is_new else AutoConfig.from_pretrained(backbone, **hub_kwargs))
    check_sizes(config)
    if is_new:
        return AutoModel.from_config(config)
    return AutoModel.from_pretrained(backbone, config=config, dtype=dtype, **hub_kwargs)


def image_size_of(config: PreTrainedConfig) -> int | list[int]:
    """The image size of a native configuration: the side of a square, or [height, width]."""
    height, width = height_and_width(config.to_dict().get("image_size") or 224)
    return height if height == width else [height, width]


def _blank_image(backbone: PreTrainedModel, size: tuple[int, int]) -> torch.Tensor:
    channels = backbone.config.to_dict().get("num_channels", 3)
    return torch.zeros(1, channels, *size, dtype=backbone.dtype, device=backbone.device)


@torch.no_grad()
def describe_backbone(
    native: PreTrainedModel,
    image_size: int | Sequence[int],
    config_fields: Mapping[str, Any],
    *,
    takes_last_layer: bool,
) -> dict[str, Any]:
    """The fields of a model's configuration that follow from the output of a backbone for one blank image.

    If the model replaces the last layer of a ViT, all fields of the ViT are included.

    Raises:
        ValueError: for a backbone that returns neither tokens nor a feature map.
    """
    native.eval()
    size = height_and_width(image_size)
    outputs = run_backbone(native, _blank_image(native, size), interpolates_positions(native), True)
    states, output = outputs.hidden_states, outputs.last_hidden_state
    if output.ndim not in (3, 4):
        raise ValueError(
            f"{type(native).__name__} returns neither image tokens (batch, tokens, channels) nor a feature map "
            f"(batch, channels, height, width): its last_hidden_state has shape {tuple(output.shape)}"
        )
    levels = config_fields.get("feature_levels")
    if levels is None:  # the last hidden state of each of the three resolutions above the output's
        *sizes, last = [feature[0].numel() // _channels(feature) for feature in (*states, output)]
        finer = sorted({size for size in sizes if size > last})[:3]
        levels = sorted(max(level for level, s in enumerate(sizes) if s == size) for size in finer)
    features = [*(states[level] for level in levels), output]
    backbone_config = copy.deepcopy(native.config)
    num_prefix_tokens = 0
    if output.ndim == 3:  # CLS, distillation and register tokens come before the grid
        rows, columns = _token_grid(output.shape[1], size, _patch_size(backbone_config))
        num_prefix_tokens = output.shape[1] - rows * columns
    described: dict[str, Any] = {
        "backbone_config": backbone_config,
        "replaces_last_layer": takes_last_layer and backbone_config.model_type == "vit",
        "num_prefix_tokens": num_prefix_tokens,
        "feature_levels": list(levels),
        "feature_channels": [_channels(feature) for feature in features],
    }
    if described["replaces_last_layer"]:
        described |= {name: vars(backbone_config)[name] for name in fields_of(type(backbone_config))}
        backbone_config.num_hidden_layers -= 1
    else:
        default = _channels(output) if output.ndim == 3 and not levels else FEATURE_MAP_HIDDEN_SIZE
        hidden_size = config_fields.get("hidden_size", default)
        described |= {
            "hidden_size": hidden_size,
            "num_attention_heads": max(n for n in range(1, max(1, hidden_size // 32) + 1) if hidden_size % n == 0),
            "intermediate_size": 2 * hidden_size,
            "layer_norm_eps": 1e-6,
            # measured on MobileNetV2: with the mean of the tokens as residual, the mAP of colour is half as high
            "residual": "image" if num_prefix_tokens else "condition",
        }
    return described


def _channels(feature: torch.Tensor) -> int:
    return feature.shape[2] if feature.ndim == 3 else feature.shape[1]


def load_backbone_processor(name: str, hub_kwargs: dict[str, Any]) -> BaseImageProcessor | None:
    """The image processor of a pretrained backbone, or None if it has none."""
    try:
        return AutoImageProcessor.from_pretrained(name, **hub_kwargs)
    except (OSError, ValueError):
        logger.warning(
            f"{name} has no preprocessor_config.json: images will be scaled to [-1, 1]. If the backbone was trained "
            "otherwise, set model.image_processor."
        )
        return None


def make_image_processor(size: int | Sequence[int], like: BaseImageProcessor | None = None) -> ViTImageProcessor:
    """An image processor that squashes the whole image to `size`, and normalises it as the processor `like` does.

    It does not crop the centre, as ImageNet recipes do, because that would remove collars and heels.
    """
    settings: dict[str, Any] = {"size": dict(zip(("height", "width"), height_and_width(size), strict=True))}
    if like is not None:
        settings |= {"resample": like.resample, "image_mean": like.image_mean, "image_std": like.image_std}
        settings["do_normalize"] = like.do_normalize is not False
    return ViTImageProcessor(**settings)
