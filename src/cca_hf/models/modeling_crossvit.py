"""CrossViT: two vision transformers on patches of two sizes, whose class tokens attend to each other's patches.

Chen, Fan, Panda: "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification", ICCV 2021,
https://arxiv.org/abs/2103.14899. The order of normalisation, activation and projection is that of the authors' code
(https://github.com/IBM/CrossViT, Apache-2.0) and of timm, whose weights load with `from_timm`.

For branch i and the other branch j, a block computes

    x_i = Layers_i(x_i);  p_i = Linear(GELU(LN(cls_i)));  c_i = p_i + CrossAttention(LN(p_i), LN([p_i, patches_j]))
    x_i = [Linear(GELU(LN(c_i))), patches_i]

Ours: images of any size and shape; gradient checkpointing; tokens, hidden states and attentions of both branches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import ModelOutput

from .configuration_crossvit import CrossViTConfig
from .configuration_images import output_settings
from .conversion_crossvit import config_of, from_timm_names, read_weights, to_timm_names
from .cross_attention import CrossAttention

BRANCHES = (0, 1)  # small patches, large patches


@dataclass
class CrossViTModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state: (batch, tokens, hidden_sizes[1]), the normalised tokens of the branch of large patches, the
            class token first.
        pooler_output: (batch, sum of hidden_sizes), the class tokens of the two branches side by side.
        branch_states: the normalised tokens of both branches: (batch, tokens, hidden_sizes[0]) and
            `last_hidden_state`.
        hidden_states: the tokens of the first and the second branch in turn: the embeddings, then the result of each
            block, with `output_hidden_states=True`. The last two are `branch_states`.
        attentions: (batch, heads, tokens, tokens), the weights of each self-attention layer: in each block those of
            the first and then those of the second branch, with `output_attentions=True`.
        cross_attentions: (batch, heads, 1, tokens), the weights of each class token over itself and the patches of the
            other branch: two for each block, with `output_attentions=True`.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    branch_states: tuple[torch.Tensor, torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


class DropPath(nn.Module):
    """Stochastic depth: in training, some images skip the layer, and the others are scaled to keep the mean."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
            return states
        kept = torch.rand(states.shape[0], *[1] * (states.ndim - 1), device=states.device) >= self.rate
        return states * kept.to(states.dtype) / (1 - self.rate)


def _patch_embeddings(config: CrossViTConfig, branch: int) -> nn.Module:
    """Pixels (batch, channels, height, width) -> (batch, width of the branch, rows, columns)."""
    dim, patch = config.hidden_sizes[branch], config.patch_sizes[branch]
    if not config.multi_conv:
        return nn.Conv2d(config.num_channels, dim, kernel_size=patch, stride=patch)
    first = nn.Conv2d(config.num_channels, dim // 4, kernel_size=7, stride=4, padding=3)
    if patch == 12:
        second = nn.Conv2d(dim // 4, dim // 2, kernel_size=3, stride=3)
        third = nn.Conv2d(dim // 2, dim, kernel_size=3, stride=1, padding=1)
    else:
        second = nn.Conv2d(dim // 4, dim // 2, kernel_size=3, stride=2, padding=1)
        third = nn.Conv2d(dim // 2, dim, kernel_size=3, stride=2, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


class CrossViTEmbeddings(nn.Module):
    """The tokens of one branch: a class token and the patches of the scaled image, with positions."""

    def __init__(self, config: CrossViTConfig, branch: int):
        super().__init__()
        self.config, self.branch = config, branch
        self.patch_size = config.patch_sizes[branch]
        height, width = config.size_in_branch(branch, *config.image_height_and_width)
        self.grid = (height // self.patch_size, width // self.patch_size)
        dim = config.hidden_sizes[branch]
        self.patch_embeddings = _patch_embeddings(config, branch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], dim))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) of the whole image -> (batch, 1 + patches, dim)."""
        height, width = pixel_values.shape[-2:]
        size = self.config.size_in_branch(self.branch, height, width)
        if size != (height, width):
            pixel_values = nn.functional.interpolate(pixel_values, size, mode="bicubic", align_corners=False)
        grid = (size[0] // self.patch_size, size[1] // self.patch_size)
        whole_patches = pixel_values[..., : grid[0] * self.patch_size, : grid[1] * self.patch_size]
        patches = self.patch_embeddings(whole_patches).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return self.dropout(tokens + self._positions(grid))

    def _positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """(1, 1 + rows * columns, dim)"""
        if grid == self.grid:
            return self.position_embeddings
        cls, table = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        table = table.transpose(1, 2).unflatten(2, self.grid)  # (1, N, D) -> (1, D, rows, columns)
        table = nn.functional.interpolate(table, grid, mode="bicubic", align_corners=False)
        return torch.cat([cls, table.flatten(2).transpose(1, 2)], dim=1)


class CrossViTLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer of one branch. Its modules are named as in the ViT layer."""

    def __init__(self, config: CrossViTConfig, branch: int, drop_path_rate: float):
        super().__init__()
        self.config = config  # for the attention implementation, which may change
        dim, inner = config.hidden_sizes[branch], int(config.hidden_sizes[branch] * config.mlp_ratio)
        self.layernorm_before = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attention = _attention(config, branch)
        self.layernorm_after = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(dim, inner))
        self.mlp.add_module("activation_fn", ACT2FN[config.hidden_act])
        self.mlp.add_module("fc2", nn.Linear(inner, dim))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, states: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, tokens, dim) -> the same, and the weights (batch, heads, tokens, tokens) or None."""
        normed = self.layernorm_before(states)
        attended, weights = self.attention(
            normed,
            normed,
            attn_implementation=self.config._attn_implementation,
            output_attentions=output_attentions,
        )
        states = states + self.drop_path(self.dropout(attended))
        states = states + self.drop_path(self.dropout(self.mlp(self.layernorm_after(states))))
        return states, None if weights is None else weights.transpose(1, 2)


class ClassTokenProjection(nn.Module):
    """Linear(GELU(LN(x))), from the width of one branch to that of the other."""

    def __init__(self, config: CrossViTConfig, source: int, target: int):
        super().__init__()
        self.layernorm = nn.LayerNorm(config.hidden_sizes[source], eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.dense = nn.Linear(config.hidden_sizes[source], config.hidden_sizes[target])

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.dense(self.activation(self.layernorm(states)))


class CrossViTFusion(GradientCheckpointingLayer):
    """The class token of one branch attends to the patches of the other branch, in the width of the latter."""

    def __init__(self, config: CrossViTConfig, branch: int, drop_path_rate: float):
        super().__init__()
        self.config = config
        other = 1 - branch
        self.projection = ClassTokenProjection(config, branch, other)
        self.layernorm = nn.LayerNorm(config.hidden_sizes[other], eps=config.layer_norm_eps)
        self.attention = _attention(config, other)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)
        self.reverse_projection = ClassTokenProjection(config, other, branch)

    def forward(
        self, states: torch.Tensor, other_states: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`states` (batch, tokens, dim) of the branch and those of the other branch -> `states` with another class
        token, and the weights (batch, heads, 1, 1 + patches of the other branch) or None.
        """
        projected = self.projection(states[:, 0])
        tokens = self.layernorm(torch.cat([projected[:, None], other_states[:, 1:]], dim=1))
        attended, weights = self.attention(
            tokens[:, 0],
            tokens,
            attn_implementation=self.config._attn_implementation,
            output_attentions=output_attentions,
        )
        fused = self.reverse_projection(projected + self.drop_path(self.dropout(attended)))
        states = torch.cat([fused[:, None], states[:, 1:]], dim=1)
        return states, None if weights is None else weights[:, :, None]


def _attention(config: CrossViTConfig, branch: int) -> CrossAttention:
    return CrossAttention(
        config.hidden_sizes[branch],
        config.num_attention_heads[branch],
        bias=config.qkv_bias,
        dropout=config.attention_probs_dropout_prob,
    )


class CrossViTBlock(nn.Module):
    """Layers of both branches, and then the fusion of both, which reads the tokens from before the fusion."""

    def __init__(self, config: CrossViTConfig, drop_path_rates: Sequence[float]):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.ModuleList(CrossViTLayer(config, branch, rate) for rate in drop_path_rates[: config.num_layers[branch]])
            for branch in BRANCHES
        )
        self.fusions = nn.ModuleList(CrossViTFusion(config, branch, drop_path_rates[-1]) for branch in BRANCHES)

    def forward(
        self, states: Sequence[torch.Tensor], output_attentions: bool = False
    ) -> tuple[list[torch.Tensor], list[torch.Tensor | None], list[torch.Tensor | None]]:
        """Tokens of both branches -> the same, the weights of the layers, and the weights of the fusions."""
        encoded, attentions = [], []
        for tokens, layers in zip(states, self.branches, strict=True):
            for layer in layers.children():
                tokens, weights = layer(tokens, output_attentions)
                attentions.append(weights)
            encoded.append(tokens)
        fused = [
            fusion(encoded[branch], encoded[1 - branch], output_attentions)
            for branch, fusion in zip(BRANCHES, self.fusions, strict=True)
        ]
        return [tokens for tokens, _ in fused], attentions, [weights for _, weights in fused]


class CrossViTPreTrainedModel(PreTrainedModel):
    """Initialisation, loading of timm's weights and saving, for the model with and without a classifier."""

    config_class = CrossViTConfig
    config: CrossViTConfig
    base_model_prefix = "crossvit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["CrossViTEmbeddings", "CrossViTBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CrossViTEmbeddings):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)

    @classmethod
    def from_timm(
        cls,
        source: str | PathLike[str] | Mapping[str, torch.Tensor],
        *,
        id2label: Sequence[str] | Mapping[int, str] | None = None,
        config: CrossViTConfig | None = None,
    ) -> Self:
        """Load weights of timm or of the authors. The variant is recognised by the shapes of the weights.

        Args:
            source: an id on the Hub, such as `"timm/crossvit_15_240.in1k"`; a folder with such a download; or a file:
                `.safetensors`, or one of PyTorch such as `.pth`, which is read with `weights_only=True`; or weights
                that [`read_weights`] has read.
            id2label: names of the classes. By default the `label_names` beside the weights, or else numbers.
            config: of a model that is no published variant, if its heads or image size are other than theirs. It has
                the names of the classes too.

        Raises:
            ValueError: if both `config` and `id2label` are given; if the file is damaged or truncated, has other
                weights than those of CrossViT, or has no classifier for this class; or if the number of names is not
                that of the classes.
        """
        if config is not None and id2label is not None:
            raise ValueError("give either config or id2label: the configuration has the names of the classes")
        weights, names = (dict(source), None) if isinstance(source, Mapping) else read_weights(source)
        config = config or config_of(weights, id2label=names if id2label is None else id2label)
        is_classifier = issubclass(cls, CrossViTForImageClassification)
        own = from_timm_names(weights, config, with_classifiers=is_classifier)
        with torch.device("meta"):
            model = cls(config)
        if is_classifier:
            prefix = f"{cls.base_model_prefix}."
            own = {name if name.startswith("classifiers.") else prefix + name: weight for name, weight in own.items()}
        try:
            model.load_state_dict(own, assign=True)
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit the configuration: {error}") from error
        return model.eval()

    def to_timm(self, layout: str = "timm") -> dict[str, torch.Tensor]:
        """The weights with the names of timm (`layout="timm"`) or of the authors' code (`"ibm"`)."""
        prefix = f"{self.base_model_prefix}."
        own = {name.removeprefix(prefix): weight for name, weight in self.state_dict().items()}
        return to_timm_names(own, self.config, layout)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As [`PreTrainedModel.save_pretrained`]; a classifier can also be loaded as an `AutoModel`."""
        classes = {"AutoModel": "CrossViTModel", "AutoModelForImageClassification": "CrossViTForImageClassification"}
        auto_map = {auto: f"modeling_crossvit.{name}" for auto, name in classes.items()}
        self.config.auto_map = {"AutoConfig": "configuration_crossvit.CrossViTConfig"} | auto_map
        super().save_pretrained(save_directory, *args, **kwargs)


class CrossViTModel(CrossViTPreTrainedModel):
    """The two branches without a classifier.

    Example:

    ```python
    >>> from cca_hf.models.modeling_crossvit import CrossViTConfig, CrossViTModel

    >>> model = CrossViTModel(CrossViTConfig.from_variant("crossvit_tiny_240"))
    >>> [tuple(tokens.shape) for tokens in model(torch.zeros(1, 3, 240, 240)).branch_states]
    [(1, 401, 96), (1, 197, 192)]
    ```
    """

    def __init__(self, config: CrossViTConfig):
        super().__init__(config)
        self.embeddings = nn.ModuleList(CrossViTEmbeddings(config, branch) for branch in BRANCHES)
        depth = max(config.num_layers)  # the branches share the list of rates
        steps = max(1, depth * config.num_blocks - 1)
        rates = [config.drop_path_rate * layer / steps for layer in range(depth * config.num_blocks)]
        self.blocks = nn.ModuleList(
            CrossViTBlock(config, rates[block * depth : (block + 1) * depth]) for block in range(config.num_blocks)
        )
        self.layernorms = nn.ModuleList(nn.LayerNorm(dim, eps=config.layer_norm_eps) for dim in config.hidden_sizes)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The patch embeddings of the branch of small patches."""
        return self.get_submodule("embeddings.0.patch_embeddings")

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings[0].patch_embeddings = value

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CrossViTModelOutput | tuple:
        """
        Args:
            pixel_values: (batch, channels, height, width), of any size from a patch on.
            output_attentions: also return the attention weights, which are then computed by eager attention.
            output_hidden_states: also return the tokens after each block.
            return_dict: `False` for a plain tuple.

        Raises:
            ValueError: for images that are smaller than a patch.
        """
        with_attentions, with_states, return_dict = output_settings(
            self.config, output_attentions, output_hidden_states, return_dict
        )
        height, width = pixel_values.shape[-2:]
        smallest = self.config.smallest_side
        if min(height, width) < smallest:
            raise ValueError(
                f"images of {height} x {width} pixels are smaller than a patch: this model needs at least "
                f"{smallest} x {smallest}"
            )
        pixel_values = pixel_values.to(self.dtype)
        states = [embed(pixel_values) for embed in self.embeddings]
        hidden_states, attentions, cross_attentions = [*states], [], []
        for block in self.blocks:
            states, weights, cross_weights = block(states, with_attentions)
            hidden_states += states
            attentions += weights
            cross_attentions += cross_weights
        states = [normalise(tokens) for normalise, tokens in zip(self.layernorms, states, strict=True)]
        hidden_states[-2:] = states
        output = CrossViTModelOutput(
            last_hidden_state=states[1],
            pooler_output=torch.cat([tokens[:, 0] for tokens in states], dim=1),
            branch_states=(states[0], states[1]),
            hidden_states=tuple(hidden_states) if with_states else None,
            attentions=tuple(attentions) if with_attentions else None,
            cross_attentions=tuple(cross_attentions) if with_attentions else None,
        )
        return output if return_dict else output.to_tuple()


class CrossViTForImageClassification(CrossViTPreTrainedModel):
    """A linear classifier on the class token of each branch; the logits are the mean of the two."""

    def __init__(self, config: CrossViTConfig):
        super().__init__(config)
        several = ("regression", "multi_label_classification")
        if config.num_labels < 2 and not (config.num_labels == 1 and config.problem_type in several):
            raise ValueError(
                f"a classifier needs at least 2 classes; got num_labels={config.num_labels}. CrossViTModel is the "
                "model without a classifier, and a single output needs problem_type='regression' or "
                "'multi_label_classification'"
            )
        self.crossvit = CrossViTModel(config)
        self.classifiers = nn.ModuleList(nn.Linear(dim, config.num_labels) for dim in config.hidden_sizes)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput | tuple:
        """
        Args:
            pixel_values, output_attentions, output_hidden_states, return_dict: as in [`CrossViTModel`]; the weights of
                the fusions are those that [`CrossViTModel`] returns as `cross_attentions`, and are left out here.
            labels: (batch,) ids of classes, or (batch, num_labels) for several labels or a regression; adds the loss.

        Raises:
            ValueError: for images that are smaller than a patch.
        """
        with_attentions, with_states, return_dict = output_settings(
            self.config, output_attentions, output_hidden_states, return_dict
        )
        outputs = self.crossvit(pixel_values, with_attentions, with_states, return_dict=True)
        logits = [
            classify(tokens[:, 0]) for classify, tokens in zip(self.classifiers, outputs.branch_states, strict=True)
        ]
        mean = torch.stack(logits).mean(dim=0)
        output = ImageClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, mean, self.config),
            logits=mean,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return output if return_dict else output.to_tuple()


CrossViTModel.register_for_auto_class("AutoModel")
CrossViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")
