"""Configuration of CLEAR, Bui, Le, Ngo, Choi, https://arxiv.org/abs/2403.06119."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .configuration_images import RecognitionConfig, backbone_config_from, check_sizes, without_path

SWIN_TYPES = ("swin", "swinv2")
CONVNEXT_TYPES = ("convnext", "convnextv2")


@strict
class CLEARConfig(RecognitionConfig):
    r"""Configuration of a [`CLEARModel`]; [`CLEARModel.from_backbones`] fills it from two backbones.

    Args:
        backbone_config: the backbone of the global branch, a plain vision transformer, by default a ViT.
        local_backbone_config: the backbone of the local branch, whose stages have smaller and smaller maps: Swin,
            Swin v2, ConvNeXt or ConvNeXt v2; by default the tiny Swin.
        local_backbone_name: model id or path of the local backbone, for the model card.
        local_pixel_scale, local_pixel_shift: for each colour channel, `scale * pixel_values + shift` are the pixel
            values in the normalisation that the local backbone was trained with; by default both backbones were
            trained with the same.
        use_global, use_local: whether the model has this branch. It needs at least one.
        use_fusion: whether the summary of a branch attends to the other branch. It needs both branches.
        use_channel_attention: whether channel-aware attention precedes the stages of the local branch.
        channel_projection: how queries, keys and values of the channel-aware attention are computed. `"depthwise"`:
            by a small filter for each channel, so that a channel is still itself. `"linear"`: as mixtures of all
            channels.
        channel_kernel_size: height and width of a filter in cells, for `"depthwise"` only; an odd number.
        fusion_heads: number of attention heads of the fusion; it divides the widths of both branches.
        dropout: dropout of what the channel-aware attention and the fusion add, while training.

    The other arguments are those of `RecognitionConfig`, `NamedAttributesConfig` and `ImageModelConfig`.
    """

    model_type = "clear"
    replaces_last_layer: ClassVar[bool] = False  # read by `prepare_backbone`
    sub_configs: ClassVar[dict] = {"backbone_config": AutoConfig, "local_backbone_config": AutoConfig}
    fields_without_effect: ClassVar[set[str]] = {"local_backbone_name", "dropout"}

    local_backbone_config: dict | PreTrainedConfig | None = None
    local_backbone_name: str | None = None
    local_pixel_scale: list[float] | tuple[float, ...] | None = None
    local_pixel_shift: list[float] | tuple[float, ...] | None = None
    use_global: bool = True
    use_local: bool = True
    use_fusion: bool = True
    use_channel_attention: bool = True
    channel_projection: Literal["depthwise", "linear"] = "depthwise"
    channel_kernel_size: int = 3
    fusion_heads: int = 8
    dropout: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.local_backbone_config is None:
            self.local_backbone_config = CONFIG_MAPPING["swin"]()
        elif isinstance(self.local_backbone_config, dict):
            self.local_backbone_config = backbone_config_from(self.local_backbone_config)
        check_sizes(self.local_backbone_config)
        super().__post_init__(**kwargs)
        backbone: Any = self.backbone_config
        self.hidden_size = backbone.hidden_size
        self.feature_channels = [self.hidden_size]

    def to_diff_dict(self) -> dict[str, Any]:
        settings = super().to_diff_dict()
        if self.local_backbone_name is not None:
            settings["local_backbone_name"] = without_path(self.local_backbone_name)
        return settings

    @property
    def has_fusion(self) -> bool:
        """Whether the summaries of the branches attend to the other branch."""
        return self.use_fusion and self.use_global and self.use_local

    @property
    def stage_channels(self) -> list[int]:
        """The channels of the map that enters each stage of the local branch."""
        local: Any = self.local_backbone_config
        if local.model_type in SWIN_TYPES:
            return [local.embed_dim * 2**stage for stage in range(len(local.depths))]
        return [local.hidden_sizes[0], *local.hidden_sizes[:-1]]

    @property
    def local_size(self) -> int:
        """The width of the local branch: the channels of its last map."""
        local: Any = self.local_backbone_config
        return self.stage_channels[-1] if local.model_type in SWIN_TYPES else local.hidden_sizes[-1]

    @property
    def feature_dim(self) -> int:
        """The length of an image's feature vector: the summaries of the branches side by side."""
        return self.hidden_size * self.use_global + self.local_size * self.use_local

    def validate_branches(self) -> None:
        """Part of the strict validation: a branch exists, and its parts fit together."""
        local: Any = self.local_backbone_config
        kinds = (*SWIN_TYPES, *CONVNEXT_TYPES)
        if local.model_type not in kinds:
            raise ValueError(
                f"the local branch needs a backbone with stages, which are {', '.join(kinds)}; got "
                f"{local.model_type!r}"
            )
        if not (self.use_global or self.use_local):
            raise ValueError("use_global and use_local are both False: the model needs at least one branch")
        if self.has_fusion and (self.hidden_size % self.fusion_heads or self.local_size % self.fusion_heads):
            raise ValueError(
                f"fusion_heads must divide the widths of both branches, {self.hidden_size} and {self.local_size}; got "
                f"{self.fusion_heads}"
            )
        if self.channel_kernel_size % 2 == 0 or self.channel_kernel_size < 1:
            raise ValueError(f"channel_kernel_size must be an odd number; got {self.channel_kernel_size}")
        if (self.local_pixel_scale is None) != (self.local_pixel_shift is None):
            raise ValueError("local_pixel_scale and local_pixel_shift go together: give both or neither")


CLEARConfig.register_for_auto_class()
