"""Conditional cross-attention (CCA): one network, one pass, one embedding space per attribute.

Song, Hwang, Yoon, Choi, Gu: "Conditional Cross Attention Network for Multi-Space Embedding without Entanglement in
Only a SINGLE Network", ICCV 2023, https://arxiv.org/abs/2307.13254.

From the paper: the self-attention of a ViT's last layer becomes cross-attention with the condition; one-hot and lookup
conditions. Our reading: the condition is the query, one row for each condition; keys and values come from the image;
the choices of residual. Ours: other backbones, with the layer on top and, for feature maps, attention to earlier maps
too; one pass for all conditions of an image.
"""

import json
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .backbones import (
    FeatureCells,
    ImageTokens,
    StatePlace,
    describe_backbone,
    find_state,
    freeze_statistics,
    image_size_of,
    interpolates_positions,
    load_backbone_processor,
    load_native,
    make_image_processor,
    parameters_of_levels,
    prepare_backbone,
    run_backbone,
    run_backbone_from,
    select_features,
    state_as_map,
)
from .configuration_cca import CCAConfig, ConditionalLayerConfig
from .configuration_images import AttributeConfig, fields_of
from .cross_attention import CrossAttention
from .modeling_conditional import (
    CCAModelOutput,
    CCAPreTrainedModel,
    ConditionalPreTrainedModel,
    ConditionEmbedding,
    ImageFeatures,
    Vector,
    stack_texts,
)
from .pipeline_cca import CCAPipeline

if TYPE_CHECKING:  # not run, but transformers reads this import, and so saves the file
    from .sentence_transformers_cca import CCAInputModule as CCAInputModule


class ConditionalCrossAttentionLayer(GradientCheckpointingLayer):
    """The transformer layer in which conditions attend to an image. Its modules are named as in the ViT layer.

    Y_c = CrossAttention(LN(q_c), LN(X));  Z_c = R + Y_c;  Z_c = Z_c + MLP(LN(Z_c))
    """

    def __init__(self, config: ConditionalLayerConfig):
        super().__init__()
        self.config = config  # for the attention implementation, which may change
        self.residual = config.residual
        dim, dropout = config.hidden_size, config.attention_probs_dropout_prob
        self.layernorm_before = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attention = CrossAttention(dim, config.num_attention_heads, bias=config.qkv_bias, dropout=dropout)
        self.layernorm_after = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(dim, config.intermediate_size))
        self.mlp.add_module("activation_fn", ACT2FN[config.hidden_act])
        self.mlp.add_module("fc2", nn.Linear(config.intermediate_size, dim))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, conditions: torch.Tensor, image_tokens: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """conditions (batch, D) or (batch, k, D), image_tokens (batch, N, D) -> states of the shape of `conditions`;
        attention weights (batch, heads, N) or (batch, k, heads, N), or None.
        """
        attended, weights = self.attention(
            self.layernorm_before(conditions),
            self.layernorm_before(image_tokens),
            attn_implementation=self.config._attn_implementation,
            output_attentions=output_attentions,
        )
        states = self.dropout(attended)
        if self.residual == "image":
            states = states + (image_tokens[:, 0] if conditions.ndim == 2 else image_tokens[:, :1])
        elif self.residual == "condition":
            states = states + conditions
        return states + self.dropout(self.mlp(self.layernorm_after(states))), weights


class CCAModel(ConditionalPreTrainedModel):
    """A vision backbone with one conditional cross-attention layer: one embedding of an image for each attribute.

    Example:

    ```python
    >>> from cca_hf import CCAModel

    >>> model = CCAModel.from_backbone("google/vit-base-patch16-224-in21k", attributes=["colour", "shape"])
    >>> model.encode(["shoe.jpg"], attributes=["colour"]).shape
    (1, 1, 768)
    ```
    """

    config_class = CCAConfig
    config: CCAConfig
    _no_split_modules = ["ImageTokens", "ConditionEmbedding", "ConditionalCrossAttentionLayer"]
    takes_last_layer = True  # the conditional layer replaces the last layer of a ViT

    display_name = "CCA"
    method = "conditional cross-attention (CCA)"
    paper_url = "https://arxiv.org/abs/2307.13254"
    pipeline_class = CCAPipeline
    sentence_transformers_class = "sentence_transformers_cca.CCAInputModule"

    @classmethod
    def usage_example(cls, model_id: str, config: AttributeConfig) -> str:
        example = super().usage_example(model_id, config)
        if "CCAForAttributeRecognition" not in (config.architectures or ()):
            return example
        return (
            example
            + f"""
The model also recognises the values of the attributes:
```python
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained({json.dumps(model_id)}, trust_remote_code=True)
print(model.predict("image.jpg"))
```
"""
        )

    def __init__(self, config: CCAConfig):
        super().__init__(config)
        self.backbone = prepare_backbone(AutoModel.from_config(config.backbone_config), config)
        self.interpolates_positions = interpolates_positions(self.backbone)
        self.image_tokens: FeatureCells = ImageTokens(config)
        self._state_places: dict[int, StatePlace] = {}
        self._add_head(config)
        self.post_init()

    def _add_head(self, config: Any) -> None:
        """Add the modules behind the image tokens, which `_embed_tokens` applies."""
        self.condition_embedding = ConditionEmbedding(
            config.condition_embedding, len(config.attributes), config.hidden_size, config.text_embedding_dim
        )
        self._add_layer(config)

    def _add_layer(self, config: Any) -> None:
        self.conditional_layer = ConditionalCrossAttentionLayer(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection: nn.Module = nn.Identity()
        if config.embedding_dim is not None:
            self.projection = nn.Linear(config.hidden_size, config.embedding_dim, bias=False)

    @classmethod
    def from_backbone(
        cls,
        backbone: str | PathLike[str] | PreTrainedConfig,
        attributes: Sequence[str] | Mapping[str, Sequence[str]],
        *,
        text_embeddings: Mapping[str, Vector] | None = None,
        freeze_backbone: bool = False,
        image_size: int | Sequence[int] | None = None,
        attn_implementation: str | None = None,
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
        **config_fields: Any,
    ) -> Self:
        """A new model on a pretrained vision backbone.

        The conditional layer replaces the last layer of a ViT and starts from its weights. On any other backbone
        (DeiT, DINOv2, SigLIP, Swin, ConvNeXt, MobileNetV2, ...) the layer is added on top. If the backbone's feature
        maps shrink from layer to layer, it attends to earlier maps as well, see `CCAConfig.feature_levels`.

        Args:
            backbone: a model id on the Hub, a folder, or a configuration for a backbone with random weights.
            attributes: names of the attributes, or value names by attribute name (as `AttributeDataset.attributes`).
            text_embeddings: for `condition_embedding="text"`, the text encoder's embeddings by attribute name.
            freeze_backbone: train only the layers on top of the backbone.
            image_size: side of the images in pixels, or (height, width); defaults to the backbone's own, or 224.
            attn_implementation: `"eager"`, `"sdpa"`, `"flash_attention_2"`, ... as in `from_pretrained`.
            dtype: of the weights.
            revision, token, cache_dir, local_files_only: as in `from_pretrained`.
            config_fields: any other field of the configuration, such as `condition_embedding` or `embedding_dim`.

        Raises:
            TypeError: for a field that the configuration does not have.
            ValueError: for a backbone that returns neither tokens nor a feature map, or wrong `text_embeddings`.
        """
        cls.config_class.refuse_unknown_fields(config_fields)
        if isinstance(attributes, str):
            raise TypeError(f"attributes must be a list of names or values by attribute name; got {attributes!r}")
        if (config_fields.get("condition_embedding") == "text") != (text_embeddings is not None):
            raise ValueError(
                "condition_embedding='text' and text_embeddings, a vector for each attribute, go together"
            )
        texts = None if text_embeddings is None else stack_texts(list(attributes), text_embeddings)
        name = None if isinstance(backbone, PreTrainedConfig) else fspath(backbone)
        hub_kwargs: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
        hub_kwargs |= {"local_files_only": local_files_only, "trust_remote_code": False}
        native = load_native(backbone, dtype, hub_kwargs)
        image_processor = None if name is None else load_backbone_processor(name, hub_kwargs)
        size = image_size or image_size_of(native.config)
        described = cls._describe_backbone(native, size, config_fields)
        # batch normalisation keeps the statistics of a pretrained backbone; a new one has none yet
        described |= {
            "backbone_name": name,
            "image_size": size if isinstance(size, int) else list(size),
            "freeze_batch_norm": name is not None,
            "text_embedding_dim": None if texts is None else texts.shape[1],
            "attributes": list(attributes),
        }
        if isinstance(attributes, Mapping):
            described["attribute_values"] = {key: list(values) for key, values in attributes.items()}
        names = fields_of(cls.config_class)
        fields = {field: value for field, value in described.items() if field in names}
        config = cls.config_class(**fields | config_fields)
        config._attn_implementation = attn_implementation
        model = cls(config)
        if name is not None:
            weights = native.state_dict()
            model.backbone.load_state_dict({key: weights[key] for key in model.backbone.state_dict()})
            if config.replaces_last_layer:
                model.conditional_layer.load_state_dict(native.layers[-1].state_dict())
                model.layernorm.load_state_dict(native.layernorm.state_dict())
        if texts is not None:
            model.condition_embedding.texts.copy_(texts)
        model = model.to(dtype)
        model.image_processor = make_image_processor(size, image_processor)
        model.eval()  # as from_pretrained
        return model.freeze_backbone() if freeze_backbone else model

    @classmethod
    def _describe_backbone(
        cls, native: PreTrainedModel, image_size: int | Sequence[int], config_fields: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The fields of the configuration that follow from the backbone."""
        return describe_backbone(native, image_size, config_fields, takes_last_layer=cls.takes_last_layer)

    def freeze_backbone(self, num_levels: int | None = None) -> Self:
        """Exclude the backbone from training, or only the layers that compute the first `num_levels` feature levels.

        Raises:
            ValueError: if the model has fewer levels.
        """
        if num_levels is None:
            self.backbone.requires_grad_(False)
        else:
            # in evaluation mode, so that the blank image does not change the statistics of batch normalisation
            backbone = self.in_eval_mode().backbone
            for parameter in parameters_of_levels(backbone, self.config, num_levels):
                parameter.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.config.freeze_batch_norm:
            freeze_statistics(self.backbone)
        return self

    def add_attribute(self, name: str, text_embedding: Vector) -> Self:
        """Add an attribute to a model with text conditions, without training. It becomes the last attribute.

        Args:
            text_embedding: (text_embedding_dim,), from the encoder that `config.text_encoder` names.

        Raises:
            ValueError: if the name exists, the model's conditions are learned, or the embedding does not fit.
        """
        if name in self.config.attributes:
            raise ValueError(f"{name!r} is an attribute of this model already: {self.config.attributes}")
        self.condition_embedding.append_text(name, text_embedding)
        if self.subspaces is not None:
            self.subspaces.append()
        if self.prototypes is not None:
            self.prototypes.append()
        self.config.attributes = [*self.config.attributes, name]
        return self

    def project_features(self, backbone_features: Sequence[torch.Tensor]) -> torch.Tensor:
        cells = list(backbone_features)
        if cells[0].ndim == 4:
            cells = self._run_later_part(*cells)
        return self.image_tokens(cells)

    def get_backbone_outputs(self, pixel_values: torch.Tensor, output_hidden_states: bool = False) -> ImageFeatures:
        # convolutions run up to 2.4 times faster on a CPU with channels last; a ViT's patch embedding does not care
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        levels = self.config.feature_levels
        with_states = output_hidden_states or len(levels) > 0
        outputs = run_backbone(self.backbone, pixel_values, self.interpolates_positions, with_states)
        features = select_features(outputs, levels)
        height, width = pixel_values.shape[-2:]
        cells, grids = self.image_tokens.flatten(features, (height, width))
        return ImageFeatures(cells, grids, outputs.hidden_states if output_hidden_states else None)

    def get_early_features(self, pixel_values: torch.Tensor, num_levels: int) -> list[torch.Tensor]:
        """Compute the part of [`get_backbone_features`] that ends with the first `num_levels` feature levels.

        If only the later part of the backbone learns, these features of an image never change. `forward` accepts them
        as `backbone_features` and runs the later part of the backbone.

        Returns:
            The hidden state of the last of these levels, (batch, channels, height, width), and rows of cells (batch,
            cells, channels) of these levels, from the last to the first.
        """
        cells, _, states = self.get_backbone_outputs(pixel_values, output_hidden_states=True)
        assert states is not None  # for the type checker: the field is optional
        state = states[self.config.feature_levels[num_levels - 1]]
        height, width = pixel_values.shape[-2:]
        return [state_as_map(self.backbone, state, (height, width)), *cells[-num_levels:]]

    @torch.compiler.disable
    def _run_later_part(self, state: torch.Tensor, *cells: torch.Tensor) -> list[torch.Tensor]:
        """The result of `get_early_features` -> that of `get_backbone_features`."""
        done, levels = self.config.feature_levels[: len(cells)], self.config.feature_levels[len(cells) :]
        level = done[-1]
        if level not in self._state_places:
            backbone = self.in_eval_mode().backbone
            self._state_places[level] = find_state(backbone, level, self.config.image_height_and_width)
        place, interpolate = self._state_places[level], self.interpolates_positions
        outputs, image_size = run_backbone_from(self.backbone, state, place, interpolate, len(levels) > 0)
        later, _ = self.image_tokens.flatten(select_features(outputs, levels), image_size)
        return [*later, *cells]

    def _embed_tokens(
        self, image_tokens: torch.Tensor, attribute_ids: torch.Tensor, output_attentions: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        conditions = self.condition_embedding(attribute_ids)  # (B, D) or (B, k, D)
        states, weights = self.conditional_layer(conditions, image_tokens, output_attentions)
        return self.projection(self.layernorm(states)), weights


CCAModel.register_for_auto_class("AutoModel")

__all__ = ["CCAModel", "CCAModelOutput", "CCAPreTrainedModel"]
