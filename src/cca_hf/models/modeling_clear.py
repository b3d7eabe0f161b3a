"""CLEAR: recognition of attributes by a global and a local branch, whose summaries attend to the other branch.

Bui, Le, Ngo, Choi: "CLEAR: Cross-Transformers with Pre-trained Language Model is All you need for Person Attribute
Recognition and Retrieval", https://arxiv.org/abs/2403.06119. No code was published; parts are as in C2T-Net, the
predecessor by the same authors. With cls and P of the vision transformer and the cells X of the hierarchical backbone,

    before each of its stages:  X = X + Dropout(softmax(Q K' / sqrt(cells)) V)   channels attend to channels
    g = cls + CA(cls, [cls, X]);   l = mean(X);   l = l + CA(l, [l, P]);         logits = Linear([g, l])

Our reading: Q, K and V are the map of a channel behind a small filter, so that images may have any size (C2T-Net
multiplies by a matrix cells x cells). Ours: a layer normalisation before the channels attend, as before each other
attention; V starts at 0, so that a pretrained backbone starts as it is; a projection if the widths of the branches
differ; attributes with several exclusive values; images that are not labelled.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, Self, TypeAlias

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .attribute_recognition import (
    AttributeRecogniser,
    AttributeRecognitionOutput,
    check_recognisable,
    recognition_loss,
)
from .backbones import (
    describe_backbone,
    image_size_of,
    interpolates_positions,
    load_backbone_processor,
    make_image_processor,
    native_config,
    prepare_backbone,
    run_backbone,
    window_arguments,
)
from .configuration_clear import CONVNEXT_TYPES, CLEARConfig
from .configuration_images import check_sizes, public_name
from .cross_attention import CrossAttention
from .modeling_images import ImagePreTrainedModel
from .recognition_pipeline import DESCRIPTION

Backbone: TypeAlias = str | PathLike[str] | PreTrainedConfig


@dataclass
class CLEARModelOutput(ModelOutput):
    """
    Args:
        pooler_output: (batch, config.feature_dim), the summaries of the global and the local branch side by side.
        global_states: (batch, tokens, width), the normalised tokens of the global branch, if the model has it.
        local_states: (batch, cells, width), the normalised cells of the local branch, if the model has it.
        cross_attentions: with `output_attentions=True`, the weights (batch, heads, 1, 1 + cells) of the global summary
            over itself and the cells of the local branch, and those (batch, heads, 1, 1 + patches) of the local
            summary over itself and the patches of the global branch.
    """

    pooler_output: torch.Tensor | None = None
    global_states: torch.Tensor | None = None
    local_states: torch.Tensor | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


class ChannelProjection(nn.Module):
    """Queries, keys or values of the channels of a map: each channel behind a filter, or mixtures of all channels."""

    def __init__(self, config: CLEARConfig, channels: int, *, starts_at_zero: bool = False):
        super().__init__()
        self.starts_at_zero = starts_at_zero
        self.size = config.channel_kernel_size if config.channel_projection == "depthwise" else None
        shape = (channels, channels) if self.size is None else (channels, 1, self.size, self.size)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(channels))

    def init_weights(self) -> None:
        """As PyTorch initialises its layers, or 0."""
        bound = 0.0 if self.starts_at_zero else self.weight[0].numel() ** -0.5
        init.uniform_(self.weight, -bound, bound)
        init.uniform_(self.bias, -bound, bound)

    def forward(self, states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(batch, cells, channels) of a grid of (height, width) cells -> the same shape."""
        if self.size is None:
            return nn.functional.linear(states, self.weight, self.bias)
        filtered = nn.functional.conv2d(
            as_map(states, grid), self.weight, self.bias, padding=self.size // 2, groups=states.shape[-1]
        )
        return as_cells(filtered)


class ChannelAttention(GradientCheckpointingLayer):
    """The channels of a map attend to each other: x + Dropout(A v), A = softmax(q k' / sqrt(cells)).

    The values start at 0, so that the layer starts as the identity.
    """

    def __init__(self, config: CLEARConfig, channels: int):
        super().__init__()
        self.layernorm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.q_proj = ChannelProjection(config, channels)
        self.k_proj = ChannelProjection(config, channels)
        self.v_proj = ChannelProjection(config, channels, starts_at_zero=True)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(batch, cells, channels) of a grid of (height, width) cells -> the same shape."""
        normed = self.layernorm(states)
        query, key, value = (project(normed, grid) for project in (self.q_proj, self.k_proj, self.v_proj))
        nothing = query.new_zeros(1)
        scale = query.shape[1] ** -0.5
        scores = torch.baddbmm(nothing, query.transpose(1, 2), key, beta=0, alpha=scale)  # (B, C, C)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)
        return states + self.dropout(value @ weights.transpose(1, 2))  # (B, N, C): the transpose of A v


def as_map(states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(batch, cells, channels) -> (batch, channels, height, width), without a copy."""
    return states.unflatten(1, grid).permute(0, 3, 1, 2)


def as_cells(states: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) -> (batch, cells, channels)."""
    return states.flatten(2).transpose(1, 2)


class CrossFusion(GradientCheckpointingLayer):
    """The summary s of a branch attends to itself and the tokens x of the other one: s + CA(LN(s), LN([s, x]))."""

    def __init__(self, config: CLEARConfig, width: int, other_width: int):
        super().__init__()
        self.config = config  # for the attention implementation, which may change
        self.projection = nn.Identity() if width == other_width else nn.Linear(other_width, width)
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = CrossAttention(width, config.fusion_heads)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, summary: torch.Tensor, other_states: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Summary (batch, width), tokens (batch, tokens, other width) -> the summary (batch, width), and the weights
        (batch, heads, 1, 1 + tokens) or None.
        """
        tokens = self.layernorm(torch.cat([summary[:, None], self.projection(other_states)], dim=1))
        attended, weights = self.attention(
            tokens[:, 0],
            tokens,
            attn_implementation=self.config._attn_implementation,
            output_attentions=output_attentions,
        )
        return summary + self.dropout(attended), None if weights is None else weights[:, :, None]


class CLEARPreTrainedModel(ImagePreTrainedModel):
    config_class = CLEARConfig
    config: CLEARConfig
    base_model_prefix = "clear"
    _no_split_modules = ["ChannelAttention", "CrossFusion"]

    display_name = "CLEAR"
    method = "recognition of attributes by cross-transformers (CLEAR)"
    paper_url = "https://arxiv.org/abs/2403.06119"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ChannelProjection):
            module.init_weights()

    @classmethod
    def from_backbones(
        cls,
        global_backbone: Backbone,
        local_backbone: Backbone,
        attributes: Sequence[str] | Mapping[str, Sequence[str]] = (),
        *,
        image_size: int | Sequence[int] | None = None,
        attn_implementation: str | None = None,
        dtype: torch.dtype = torch.float32,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
        **config_fields: Any,
    ) -> Self:
        """A new model on two pretrained vision backbones.

        Args:
            global_backbone: a vision transformer (ViT, DeiT, DINOv2, SigLIP, ...): a model id on the Hub, a folder, or
                a configuration for a backbone with random weights.
            local_backbone: likewise, a backbone with stages: Swin, Swin v2, ConvNeXt or ConvNeXt v2.
            attributes: names of the attributes, or value names by attribute name (as `AttributeDataset.attributes`).
                A [`CLEARModel`] needs none.
            image_size: side of the images in pixels, or (height, width), such as (256, 128) for persons; defaults to
                the global backbone's own. Both branches get the same image.
            attn_implementation: `"eager"`, `"sdpa"`, ... as in `from_pretrained`.
            dtype: of the weights.
            token, cache_dir, local_files_only: as in `from_pretrained`.
            config_fields: any other field of the configuration, such as `attribute_kinds` or `use_fusion`.

        Raises:
            TypeError: for a field that the configuration does not have.
            ValueError: for a backbone that does not fit, or attributes without values.
        """
        cls.config_class.refuse_unknown_fields(config_fields)
        if isinstance(attributes, str):
            raise TypeError(f"attributes must be a list of names or values by attribute name; got {attributes!r}")
        hub_kwargs: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        hub_kwargs["trust_remote_code"] = False
        whole = _load_backbone(global_backbone, dtype, hub_kwargs)
        local = _load_backbone(local_backbone, dtype, hub_kwargs)
        size = image_size or image_size_of(whole.config)
        if "hidden_size" not in vars(whole.config):
            raise ValueError(
                "the global branch needs a vision transformer, such as a ViT or DINOv2; a backbone of type "
                f"{whole.config.model_type!r} returns no tokens"
            )
        described = describe_backbone(whole, size, {"feature_levels": []}, takes_last_layer=False)
        given = (global_backbone, local_backbone)
        names = [None if isinstance(each, PreTrainedConfig) else fspath(each) for each in given]
        processors = [None if name is None else load_backbone_processor(name, hub_kwargs) for name in names]
        fields: dict[str, Any] = {
            "backbone_config": copy.deepcopy(whole.config),
            "backbone_name": names[0],
            "local_backbone_config": copy.deepcopy(local.config),
            "local_backbone_name": names[1],
            "num_prefix_tokens": described["num_prefix_tokens"],
            "layer_norm_eps": 1e-6,
            "image_size": size if isinstance(size, int) else list(size),
            "attributes": list(attributes),
        }
        if isinstance(attributes, Mapping):
            fields["attribute_values"] = {key: list(values) for key, values in attributes.items()}
        image_processor = make_image_processor(size, processors[0])
        if processors[1] is not None:
            fields |= _change_of_normalisation(image_processor, processors[1])
        config = cls.config_class(**fields | config_fields)
        config._attn_implementation = attn_implementation
        model = cls(config)
        branches: Any = model.base_model
        for part, native in ((branches.backbone, whole), (branches.local_backbone, local)):
            if part is not None:
                weights = native.state_dict()
                part.load_state_dict({key: weights[key] for key in part.state_dict()})
        model = model.to(dtype)
        model.image_processor = image_processor
        return model.eval()  # as from_pretrained

    def get_input_embeddings(self) -> nn.Module:
        """Those of the global branch, or of the local branch if there is no other."""
        model: Any = self.base_model
        return (model.local_backbone if model.backbone is None else model.backbone).get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        model: Any = self.base_model
        (model.local_backbone if model.backbone is None else model.backbone).set_input_embeddings(value)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As [`ImagePreTrainedModel.save_pretrained`]; both auto classes load the checkpoint."""
        classes = {"AutoModel": "CLEARModel", "AutoModelForImageClassification": "CLEARForAttributeRecognition"}
        auto_map = {auto: f"modeling_clear.{name}" for auto, name in classes.items()}
        self.config.auto_map = {"AutoConfig": "configuration_clear.CLEARConfig"} | auto_map
        self.config.custom_pipelines = {"image-classification": dict(DESCRIPTION)}
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def usage_example(cls, model_id: str, config: CLEARConfig) -> str:
        return f"""```python
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained({json.dumps(model_id)}, trust_remote_code=True)
for name, prediction in model.predict("image.jpg")[0].items():
    print(name, prediction.value, f"{{prediction.probability:.2f}}")  # the value is None if it is unknown
```
This code needs only `pip install torch transformers pillow`: the repository has the code of the model. The
probabilities are right on average for images like those of the training, and not for images of another kind.

The model recognises:

| attribute | values |
|---|---|
{_table_of_values(config)}

{_branches(config)}

### Images of people
{_PEOPLE}
"""


class CLEARModel(CLEARPreTrainedModel):
    """The two branches of CLEAR without a classifier.

    Example:

    ```python
    >>> from cca_hf.models.modeling_clear import CLEARModel

    >>> vit, swin = "google/vit-base-patch16-224-in21k", "microsoft/swin-tiny-patch4-window7-224"
    >>> model = CLEARModel.from_backbones(vit, swin, image_size=(256, 128))
    >>> model(torch.zeros(1, 3, 256, 128)).pooler_output.shape
    torch.Size([1, 1536])
    ```
    """

    def __init__(self, config: CLEARConfig):
        super().__init__(config)
        self.backbone: Any = None
        self.local_backbone: Any = None
        self.channel_attentions: Any = None
        if config.use_global:
            self.backbone = prepare_backbone(AutoModel.from_config(config.backbone_config), config)
            self.interpolates_positions = interpolates_positions(self.backbone)
        if config.use_local:
            self.local_backbone = AutoModel.from_config(config.local_backbone_config)
            if config.use_channel_attention:
                self.channel_attentions = nn.ModuleList(
                    ChannelAttention(config, channels) for channels in config.stage_channels
                )
        if config.has_fusion:
            self.global_fusion = CrossFusion(config, config.hidden_size, config.local_size)
            self.local_fusion = CrossFusion(config, config.local_size, config.hidden_size)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> CLEARModelOutput | tuple[torch.Tensor, ...]:
        """
        Args:
            pixel_values: (batch, channels, height, width), from the image processor, of any size.
            output_attentions: also return the weights of the fusion.
            return_dict: `False` for a plain tuple.

        Raises:
            ValueError: for attentions of a model without fusion.
        """
        if output_attentions is None:
            output_attentions = bool(self.config.output_attentions)
        if output_attentions and not self.config.has_fusion:
            raise ValueError("this model has no fusion, and so no attentions: they need use_fusion and both branches")
        # convolutions run up to 2.4 times faster on a CPU with channels last
        pixel_values = pixel_values.to(self.dtype).contiguous(memory_format=torch.channels_last)
        tokens: Any = None
        cells: Any = None
        cross_attentions = None
        summaries = []
        if self.backbone is not None:
            tokens = run_backbone(self.backbone, pixel_values, self.interpolates_positions).last_hidden_state
            summaries.append(tokens[:, 0] if self.config.num_prefix_tokens else tokens.mean(dim=1))
        if self.local_backbone is not None:
            cells = self._run_local_branch(pixel_values)
            summaries.append(cells.mean(dim=1))
        if self.config.has_fusion:
            patches = tokens[:, self.config.num_prefix_tokens :]
            whole, whole_weights = self.global_fusion(summaries[0], cells, output_attentions)
            local, local_weights = self.local_fusion(summaries[1], patches, output_attentions)
            summaries = [whole, local]
            cross_attentions = (whole_weights, local_weights) if output_attentions else None
        output = CLEARModelOutput(
            pooler_output=torch.cat(summaries, dim=-1),
            global_states=tokens,
            local_states=cells,
            cross_attentions=cross_attentions,
        )
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()

    def _run_local_branch(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The stages of the local backbone with channel-aware attention before them: (batch, cells, width)."""
        if self.config.local_pixel_scale is not None:
            scale, shift = (
                pixel_values.new_tensor(numbers)[:, None, None]
                for numbers in (self.config.local_pixel_scale, self.config.local_pixel_shift)
            )
            pixel_values = pixel_values * scale + shift
        backbone = self.local_backbone
        if backbone.config.model_type in CONVNEXT_TYPES:
            states = backbone.embeddings(pixel_values)
            for place, stage in enumerate(backbone.encoder.stages):
                if self.channel_attentions is not None:
                    grid = states.shape[-2:]
                    states = as_map(self.channel_attentions[place](as_cells(states), grid), grid)
                states = stage(states)
            return backbone.layernorm(as_cells(states))
        states, grid = backbone.embeddings(pixel_values, interpolate_pos_encoding=True)
        arguments = window_arguments(backbone.config, pixel_values.shape[-2:])
        for place, stage in enumerate(backbone.encoder.layers):
            if self.channel_attentions is not None:
                states = self.channel_attentions[place](states, grid)
            states = stage(states, grid, **arguments)[0]
            if stage.downsample is not None:
                grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
        return backbone.layernorm(states)


class CLEARForAttributeRecognition(CLEARPreTrainedModel, AttributeRecogniser):
    """CLEAR with a linear classifier of the values of all attributes.

    Example:

    ```python
    >>> from cca_hf.models.modeling_clear import CLEARForAttributeRecognition

    >>> model = CLEARForAttributeRecognition.from_pretrained("me/clear-persons")
    >>> model.predict("person.jpg")[0]["hair"]
    Prediction(value='long', probability=0.93, probabilities={'short': 0.07, 'long': 0.93})
    ```
    """

    modules_without_effect = frozenset({"classifier"})

    def __init__(self, config: CLEARConfig):
        super().__init__(config)
        check_recognisable(config)
        self.clear = CLEARModel(config)
        self.classifier = nn.Linear(config.feature_dim, config.num_logits)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> AttributeRecognitionOutput | tuple[torch.Tensor, ...]:
        """
        Args:
            pixel_values, output_attentions, return_dict: as in [`CLEARModel`].
            labels: (batch, num_logits) of 1, 0, and -1 where an image is not labelled, see [`encode_labels`]; adds the
                loss.

        Raises:
            ValueError: for labels of another shape, or attentions of a model without fusion.
        """
        outputs = self.clear(pixel_values, output_attentions, return_dict=True)
        logits = self.classifier(outputs.pooler_output)
        output = AttributeRecognitionOutput(
            loss=None if labels is None else recognition_loss(self.config, logits, labels),
            logits=logits,
            features=outputs.pooler_output,
            cross_attentions=outputs.cross_attentions,
        )
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()


_PEOPLE = """\
A model that recognises attributes of people sees only how a person looks in one image. What it calls gender, age or
group is a guess from clothes and posture, by the conventions of the people who labelled the training images.

- Use images of people only if these people have agreed to this use, or if a law clearly allows it. An image that was
  taken in public, or that is on the web, is not an agreement.
- Do not use the model to identify, follow or rate people. Do not use it to make decisions about them, for example at
  work, at a border or in a shop.
- The error rates differ between groups of people, cameras and places. Measure them for every group before you use the
  model.
- Store images and predictions only as long as your purpose needs them. Delete them if the person asks for it."""


def _branches(config: CLEARConfig) -> str:
    if not config.use_local:
        return "The model has the global branch alone."
    local: Any = config.local_backbone_config
    kind, name = local.model_type, config.local_backbone_name
    backbone = f"a network of type `{kind}`" if name is None else public_name(name)
    alone = "" if config.use_global else " The model has this branch alone."
    return f"The backbone of the local branch is {backbone}.{alone}"


def _table_of_values(config: CLEARConfig) -> str:
    return "\n".join(f"| {name} | {', '.join(config.values_of(name))} |" for name in config.attributes)


def _load_backbone(backbone: Backbone, dtype: torch.dtype, hub_kwargs: Mapping[str, Any]) -> PreTrainedModel:
    """A pretrained backbone, or a new one from its configuration."""
    if isinstance(backbone, PreTrainedConfig):
        config = native_config(copy.deepcopy(backbone))
        check_sizes(config)
        return AutoModel.from_config(config)
    name = fspath(backbone)
    config = native_config(AutoConfig.from_pretrained(name, **hub_kwargs))
    check_sizes(config)
    return AutoModel.from_pretrained(name, config=config, dtype=dtype, **hub_kwargs)


def _change_of_normalisation(given: BaseImageProcessor, wanted: BaseImageProcessor) -> dict[str, list[float]]:
    """The fields that bring pixel values of one image processor to the normalisation of another."""
    (mean, std), (wanted_mean, wanted_std) = (
        (each.image_mean, each.image_std) if each.do_normalize is not False else ([0.0] * 3, [1.0] * 3)
        for each in (given, wanted)
    )
    if list(mean) == list(wanted_mean) and list(std) == list(wanted_std):
        return {}
    channels = list(zip(mean, std, wanted_mean, wanted_std, strict=True))
    return {
        "local_pixel_scale": [s / wanted_s for _, s, _, wanted_s in channels],
        "local_pixel_shift": [(m - wanted_m) / wanted_s for m, _, wanted_m, wanted_s in channels],
    }


CLEARModel.register_for_auto_class("AutoModel")
CLEARForAttributeRecognition.register_for_auto_class("AutoModelForImageClassification")
