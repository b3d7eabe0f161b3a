"""DCAL: a vision transformer that also looks at its most attended patches, and at a second image while it trains.

Zhu, Ke, Li, Liu, Tian, Shan: "Dual Cross-Attention Learning for Fine-Grained Visual Categorization and Object
Re-Identification", CVPR 2022, https://arxiv.org/abs/2205.02151. The authors released no code.

- Self-attention: the backbone, a plain vision transformer of transformers with its weights and its code.
- GLCA: X' = X[CLS, the R most attended patches]; Y = X' + CrossAttention(LN(X'), LN(X)); Z = LN(Y + MLP(LN(Y))), for
  the output X of the last layer. The patches are those of the attention roll-out, S'_L ... S'_1 with S' = (S + I) / 2.
- PWCA, in training only: in each layer, an image attends to its own tokens and to those of a second image.
- Loss: 1/2 sum_b (e^-w_b L_b + w_b) over the three branches, w learned.

Ours, where the paper is silent: S is the mean of the heads; the class token is always a query of GLCA, and other
tokens without a place in the image never are; the second image's tokens are those of its own self-attention.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, Self

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .attention_dcal import DCAL_ATTENTION, AttentionPass
from .backbones import interpolates_positions, native_config, prepare_backbone
from .configuration_dcal import DCALConfig
from .configuration_images import height_and_width, output_settings
from .cross_attention import CrossAttention


@dataclass
class DCALModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state: (batch, tokens, hidden_size), the tokens of the backbone, the class token first.
        pooler_output: (batch, 2 * hidden_size), the class tokens of self-attention and GLCA side by side; without GLCA
            (batch, hidden_size).
        branch_embeddings: (batch, hidden_size), the class token of each branch in the order of `config.branches`: of
            self-attention, of GLCA, and of PWCA if `partners` were given.
        rollout: (batch, tokens), what the class token has gathered from each token; a row sums to 1. `None` without
            GLCA.
        hidden_states: (batch, tokens, hidden_size), the embeddings and the tokens after each layer of the backbone,
            with `output_hidden_states=True`.
        attentions: (batch, heads, tokens, tokens) of each layer of the backbone, with `output_attentions=True`.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    branch_embeddings: tuple[torch.Tensor, ...] | None = None
    rollout: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class DCALImageClassifierOutput(ModelOutput):
    """
    Args:
        loss: with `labels`; in training the loss of all branches, otherwise the cross-entropy of `logits`.
        logits: (batch, num_labels); their softmax is the mean of the probabilities of both classifiers.
        branch_logits: (batch, num_labels) of each branch, as `branch_embeddings` of [`DCALModelOutput`]. PWCA has the
            classifier of self-attention.
        rollout, hidden_states, attentions: as in [`DCALModelOutput`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    branch_logits: tuple[torch.Tensor, ...] | None = None
    rollout: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class GlobalLocalLayer(GradientCheckpointingLayer):
    """GLCA: a pre-norm transformer layer in which some tokens attend to all, and a last normalisation.

    Its weights are new. A new residual layer changes the tokens little, so that the branch begins as a copy of the
    backbone's class token; and the layers of some backbones have parts that this one has not.
    """

    def __init__(self, config: DCALConfig):
        super().__init__()
        self.config = config  # for the attention implementation, which may change
        dim, shape = config.hidden_size, config.local_layer_settings
        self.layernorm_before = nn.LayerNorm(dim, eps=shape["layer_norm_eps"])
        self.attention = CrossAttention(
            dim, shape["num_heads"], bias=shape["qkv_bias"], dropout=shape["attention_dropout"]
        )
        self.layernorm_after = nn.LayerNorm(dim, eps=shape["layer_norm_eps"])
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(dim, shape["intermediate_size"]))
        self.mlp.add_module("activation_fn", ACT2FN[shape["hidden_act"]])
        self.mlp.add_module("fc2", nn.Linear(shape["intermediate_size"], dim))
        self.layernorm = nn.LayerNorm(dim, eps=shape["layer_norm_eps"])
        self.dropout = nn.Dropout(shape["dropout"])

    def forward(self, tokens: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """tokens (batch, N, D), indices of queries (batch, Q) -> (batch, Q, D)"""
        rows = queries[..., None].expand(-1, -1, tokens.shape[-1])
        normalised = self.layernorm_before(tokens)
        attended, _ = self.attention(
            normalised.gather(1, rows), normalised, attn_implementation=self.config._attn_implementation
        )
        states = tokens.gather(1, rows) + self.dropout(attended)
        states = states + self.dropout(self.mlp(self.layernorm_after(states)))
        return self.layernorm(states)


class DCALPreTrainedModel(PreTrainedModel):
    """Initialisation, backbones and saving, for the model with and without a classifier."""

    config_class = DCALConfig
    config: DCALConfig
    base_model_prefix = "dcal"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["GlobalLocalLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DCALForImageClassification) and module.loss_weights is not None:
            init.zeros_(module.loss_weights)

    @classmethod
    def from_backbone(
        cls,
        backbone: str | PathLike[str] | PreTrainedConfig,
        *,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
        **config_fields: Any,
    ) -> Self:
        """A new model on a pretrained vision transformer, whose weights are kept. GLCA and classifiers are new.

        Args:
            backbone: a model id on the Hub, a folder, or a configuration for a backbone with random weights.
            dtype: of the weights.
            revision, token, cache_dir, local_files_only: as in `from_pretrained`.
            config_fields: fields of the configuration, such as `local_share`; and `num_labels`, or `id2label` and
                `label2id`, for a classifier. `attn_implementation` is that of the backbone and GLCA.

        Raises:
            TypeError: for a field that the configuration does not have.
            ValueError: for a backbone that is no plain vision transformer with a class token.
        """
        cls.config_class.refuse_unknown_fields(config_fields)
        if isinstance(backbone, PreTrainedConfig):
            native, settings = None, native_config(copy.deepcopy(backbone))
        else:
            hub_kwargs: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
            hub_kwargs |= {"local_files_only": local_files_only, "trust_remote_code": False}
            name = fspath(backbone)
            settings = native_config(AutoConfig.from_pretrained(name, **hub_kwargs))
            native = AutoModel.from_pretrained(name, config=settings, dtype=dtype, **hub_kwargs)
            settings = copy.deepcopy(native.config)
        settings.name_or_path = ""  # folders of this machine are private
        settings.num_labels = 2  # transformers' default: a backbone has no classes
        model = cls(cls.config_class(backbone_config=settings, **config_fields))
        inner = model if isinstance(model, DCALModel) else model.dcal
        if native is not None:
            weights = native.state_dict()
            inner.backbone.load_state_dict({key: weights[key] for key in inner.backbone.state_dict()})
        model = model.to(dtype).eval()  # as from_pretrained
        height, width = height_and_width(settings.image_size)
        with torch.no_grad():  # raises for a backbone that does not fit
            inner(torch.zeros(1, settings.num_channels, height, width))
        return model

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """As [`PreTrainedModel.set_attn_implementation`]; the backbone keeps DCAL's function, which calls it."""
        super().set_attn_implementation(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, DCALModel):
                module.backbone.config._attn_implementation = DCAL_ATTENTION

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As [`PreTrainedModel.save_pretrained`]; a classifier can also be loaded as an `AutoModel`."""
        classes = {"AutoModel": "DCALModel", "AutoModelForImageClassification": "DCALForImageClassification"}
        auto_map = {auto: f"modeling_dcal.{name}" for auto, name in classes.items()}
        self.config.auto_map = {"AutoConfig": "configuration_dcal.DCALConfig"} | auto_map
        super().save_pretrained(save_directory, *args, **kwargs)


class DCALModel(DCALPreTrainedModel):
    """A vision transformer with GLCA, and in training PWCA: one embedding of an image, of both class tokens.

    Example:

    ```python
    >>> from cca_hf.models.modeling_dcal import DCALModel

    >>> model = DCALModel.from_backbone("google/vit-base-patch16-224-in21k", local_share=0.3)
    >>> model(torch.zeros(1, 3, 256, 128)).pooler_output.shape
    (1, 1536)
    ```
    """

    def __init__(self, config: DCALConfig):
        super().__init__(config)
        backbone = AutoModel.from_config(config.backbone_config, trust_remote_code=False)
        self.backbone = prepare_backbone(backbone, config)
        self.backbone.config._attn_implementation = DCAL_ATTENTION
        self.interpolates_positions = interpolates_positions(self.backbone)
        self.local_layer = GlobalLocalLayer(config) if config.use_local_attention else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Those of the backbone."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def forward(
        self,
        pixel_values: torch.Tensor,
        partners: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> DCALModelOutput | tuple:
        """
        Args:
            pixel_values: (batch, channels, height, width), of any size from a patch on.
            partners: (batch,), for each image the row of another one, see [`draw_partners`]; adds the branch of PWCA,
                which doubles the time. For training.
            output_attentions: also return the attention weights, which are then computed by eager attention.
            output_hidden_states: also return the tokens after each layer of the backbone.
            return_dict: `False` for a plain tuple.

        Raises:
            ValueError: for images that are smaller than a patch; partners of a model without PWCA, or not one for each
                image; or a backbone that is no plain vision transformer with a class token.
        """
        with_attentions, with_states, return_dict = output_settings(
            self.config, output_attentions, output_hidden_states, return_dict
        )
        batch = pixel_values.shape[0]
        num_patches = self._num_patches(pixel_values)
        if partners is not None:
            self._check_partners(partners, batch)
            pixel_values = torch.cat([pixel_values, pixel_values])  # rows of self-attention, then of PWCA
        attention_pass = AttentionPass(
            implementation="eager" if with_attentions else self.config._attn_implementation,
            rollout_layers=self._num_layers if self.local_layer is not None else 0,
            partners=partners,
        )
        outputs = self._run_backbone(
            pixel_values,
            attention_pass,
            output_attentions=with_attentions,
            output_hidden_states=with_states or self.local_layer is not None,
        )
        tokens, hidden_states = outputs.last_hidden_state, outputs.hidden_states
        self._check_backbone(attention_pass, tokens, num_patches)
        embeddings, rollout = [tokens[:batch, 0]], None
        if self.local_layer is not None:
            rollout = attention_pass.roll_out()
            queries = self._select_queries(rollout, num_patches)
            embeddings.append(self.local_layer(hidden_states[-1][:batch], queries)[:, 0])
        pooled = torch.cat(embeddings, dim=1)
        if partners is not None:
            embeddings.append(tokens[batch:, 0])
            tokens = tokens[:batch]
            hidden_states = tuple(states[:batch] for states in hidden_states) if with_states else None
        output = DCALModelOutput(
            last_hidden_state=tokens,
            pooler_output=pooled,
            branch_embeddings=tuple(embeddings),
            rollout=rollout,
            hidden_states=hidden_states if with_states else None,
            attentions=outputs.attentions if with_attentions else None,
        )
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def rollout_maps(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the class token has gathered from each patch, for reports; for models without GLCA too.

        Args:
            pixel_values: (batch, channels, height, width)

        Returns:
            (batch, rows, columns) of patches. A map sums to less than 1: the rest comes from the class token.
        """
        num_patches = self._num_patches(pixel_values)
        attention_pass = AttentionPass(self.config._attn_implementation, self._num_layers)
        tokens = self._run_backbone(pixel_values, attention_pass).last_hidden_state
        self._check_backbone(attention_pass, tokens, num_patches)
        height, width = (
            side // patch
            for side, patch in zip(pixel_values.shape[-2:], self.config.patch_height_and_width, strict=True)
        )
        return attention_pass.roll_out()[:, -num_patches:].unflatten(1, (height, width))

    @property
    def _num_layers(self) -> int:
        return self.backbone.config.num_hidden_layers

    def _run_backbone(
        self, pixel_values: torch.Tensor, attention_pass: AttentionPass, **outputs: bool
    ) -> BaseModelOutput:
        arguments: dict[str, Any] = {"attention_pass": attention_pass, **outputs}
        # transformers interpolates only square tables of positions; a backbone made for this size needs none
        size = tuple(pixel_values.shape[-2:])
        if self.interpolates_positions and size != height_and_width(self.backbone.config.image_size):
            arguments["interpolate_pos_encoding"] = True
        return self.backbone(pixel_values.to(self.dtype), **arguments)

    def _num_patches(self, pixel_values: torch.Tensor) -> int:
        height, width = pixel_values.shape[-2:]
        patch_height, patch_width = self.config.patch_height_and_width
        if height < patch_height or width < patch_width:
            raise ValueError(
                f"images of {height} x {width} pixels are smaller than a patch: this model needs at least "
                f"{patch_height} x {patch_width}"
            )
        return (height // patch_height) * (width // patch_width)

    def _check_partners(self, partners: torch.Tensor, batch: int) -> None:
        if not self.config.use_pairwise_attention:
            raise ValueError("partners were given, but this model has use_pairwise_attention=False")
        if tuple(partners.shape) != (batch,):
            raise ValueError(f"partners needs one row for each of the {batch} images; got {tuple(partners.shape)}")

    def _check_backbone(self, attention_pass: AttentionPass, tokens: torch.Tensor, num_patches: int) -> None:
        name = type(self.backbone).__name__
        if attention_pass.num_calls != self._num_layers:
            raise ValueError(
                f"{name} is no plain vision transformer: DCAL saw {attention_pass.num_calls} self-attentions in its "
                f"{self._num_layers} layers. DCAL on DINOv2 needs transformers 5.24 or newer"
            )
        if tokens.shape[1] <= num_patches:
            raise ValueError(
                f"{name} has no class token before its {num_patches} patches: it returns {tokens.shape[1]} tokens"
            )

    def _select_queries(self, rollout: torch.Tensor, num_patches: int) -> torch.Tensor:
        """(batch, 1 + R) indices of tokens: the class token, and the most attended patches."""
        first_patch = rollout.shape[1] - num_patches
        count = max(1, round(self.config.local_share * num_patches))
        most_attended = rollout[:, first_patch:].topk(count, dim=1).indices + first_patch
        return torch.cat([torch.zeros_like(most_attended[:, :1]), most_attended], dim=1)


class DCALForImageClassification(DCALPreTrainedModel):
    """A linear classifier on the class tokens of self-attention and of GLCA."""

    def __init__(self, config: DCALConfig):
        super().__init__(config)
        several = ("regression", "multi_label_classification")
        if config.num_labels < 2 and not (config.num_labels == 1 and config.problem_type in several):
            raise ValueError(
                f"a classifier needs at least 2 classes; got num_labels={config.num_labels}. DCALModel is the model "
                "without a classifier, and a single output needs problem_type='regression' or "
                "'multi_label_classification'"
            )
        self.dcal = DCALModel(config)
        self.classifiers = nn.ModuleList(
            nn.Linear(config.hidden_size, config.num_labels) for _ in range(config.num_heads_at_inference)
        )
        several_branches = len(config.branches) > 1
        self.loss_weights = nn.Parameter(torch.zeros(len(config.branches))) if several_branches else None
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> DCALImageClassifierOutput | tuple:
        """
        Args:
            pixel_values, output_attentions, output_hidden_states, return_dict: as in [`DCALModel`].
            labels: (batch,) ids of classes, or (batch, num_labels) probabilities of classes, several labels or a
                regression; adds the loss. In training they also select the partners of PWCA.

        Raises:
            ValueError: for images that are smaller than a patch.
        """
        with_attentions, with_states, return_dict = output_settings(
            self.config, output_attentions, output_hidden_states, return_dict
        )
        partners = None
        if self.training and self.config.use_pairwise_attention:
            partners = draw_partners(labels, pixel_values.shape[0], device=pixel_values.device)
        outputs = self.dcal(pixel_values, partners, with_attentions, with_states, return_dict=True)
        embeddings = outputs.branch_embeddings
        heads = [*self.classifiers] if partners is None else [*self.classifiers, self.classifiers[0]]
        branch_logits = tuple(head(embedding) for head, embedding in zip(heads, embeddings, strict=True))
        logits = self._join(branch_logits[: len(self.classifiers)])
        loss = None
        if labels is not None:
            if self.training:
                loss = self.weighted_loss([self._loss(each, labels) for each in branch_logits])
            else:
                loss = self._loss(logits, labels)
        output = DCALImageClassifierOutput(
            loss=loss,
            logits=logits,
            branch_logits=branch_logits,
            rollout=outputs.rollout,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return output if return_dict else output.to_tuple()

    def weighted_loss(self, losses: Sequence[torch.Tensor]) -> torch.Tensor:
        """1/2 sum_b (e^-w_b L_b + w_b), w learned, for the losses of all branches; the loss itself for one branch."""
        if self.loss_weights is None:
            return losses[0]
        stacked = torch.stack(tuple(losses))
        return (torch.exp(-self.loss_weights) * stacked + self.loss_weights).sum() / 2

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        problem = self.config.problem_type
        if problem == "single_label_classification" or (problem is None and not labels.is_floating_point()):
            return nn.functional.cross_entropy(logits, labels)  # of ids or of probabilities
        return self.loss_function(labels, logits, self.config)

    def _join(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits whose softmax is the mean of the probabilities; the mean of the logits where they are not those."""
        if len(logits) == 1:
            return logits[0]
        stacked = torch.stack(tuple(logits))
        if self.config.problem_type in ("regression", "multi_label_classification"):
            return stacked.mean(dim=0)
        return stacked.log_softmax(dim=-1).logsumexp(dim=0) - torch.tensor(float(len(logits))).log()


def draw_partners(
    labels: torch.Tensor | None,
    batch: int,
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Draw a second image for each image of a batch, for PWCA.

    Args:
        labels: (batch,) ids of classes or identities, or (batch, classes) probabilities. The partner is of another
            class if the batch has one. `None` for any other image.
        batch: number of images. An image alone is its own partner, and PWCA is then its self-attention.
        generator: on the device of the result.
        device: of the result; that of `labels` by default.

    Returns:
        (batch,) int64 rows.
    """
    if device is None:
        device = labels.device if labels is not None else torch.device("cpu")
    order = torch.rand(batch, batch, generator=generator, device=device)
    if labels is not None:
        classes = (labels if labels.ndim == 1 else labels.argmax(dim=1)).to(device)
        order += 2 * (classes[:, None] != classes)  # first those of another class
    order.fill_diagonal_(-1)  # last the image itself
    return order.argmax(dim=1)


DCALModel.register_for_auto_class("AutoModel")
DCALForImageClassification.register_for_auto_class("AutoModelForImageClassification")
