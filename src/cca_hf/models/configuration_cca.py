"""Configuration of conditional cross-attention (CCA), Song et al., ICCV 2023, https://arxiv.org/abs/2307.13254."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_images import AttributeConfig, RecognitionConfig


@strict
class ConditionConfig(AttributeConfig):
    r"""How an attribute becomes a query, in CCA and ASEN.

    Args:
        condition_embedding: `"one_hot"` and `"lookup"` as in the paper; `"text"` makes the query from the attribute's
            name, through a frozen text encoder; `"none"` is the baseline, one learned query and so one embedding
            space for all attributes.
        text_embedding_dim: width of the text encoder's embeddings; for `"text"` only.
        text_encoder: name of the text encoder, which embeds attributes that are added later.
        attribute_texts: the embedded texts by attribute name. Optional.
    """

    fields_without_effect: ClassVar[set[str]] = {"text_encoder", "attribute_texts"}

    condition_embedding: Literal["one_hot", "lookup", "text", "none"] = "one_hot"
    text_embedding_dim: int | None = None
    text_encoder: str | None = None
    attribute_texts: dict[str, str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.attribute_texts = dict(self.attribute_texts or {})
        super().__post_init__(**kwargs)

    def restricted_to(self, attributes: Sequence[str]) -> Self:
        copied, texts = super().restricted_to(attributes), self.attribute_texts or {}
        copied.attribute_texts = {name: texts[name] for name in attributes if name in texts}
        return copied

    def validate_conditions(self) -> None:
        """Part of the strict validation: texts have a width and belong to attributes that exist."""
        self._check_names_in("attribute_texts", self.attribute_texts)
        if (self.condition_embedding == "text") != (self.text_embedding_dim is not None):
            raise ValueError(
                "condition_embedding='text' needs a text_embedding_dim, and the others have none; "
                f"got {self.condition_embedding!r} and {self.text_embedding_dim}"
            )


@strict
class ConditionalLayerConfig(AttributeConfig):
    r"""The conditional layer of CCA and CSN. Its fields are named as in `ViTConfig`.

    Args:
        replaces_last_layer: the conditional layer replaces the backbone's last layer, and the final normalisation of
            the backbone moves behind it (ViT); otherwise the layer is added on top of the whole backbone.
        residual: what the attended values are added to: the summary of the `"image"`, the `"condition"`, or `"none"`.
        num_attention_heads, intermediate_size, hidden_act, qkv_bias: shape of the layer.
        hidden_dropout_prob, attention_probs_dropout_prob: dropout while training.
    """

    fields_without_effect: ClassVar[set[str]] = {"hidden_dropout_prob", "attention_probs_dropout_prob"}

    replaces_last_layer: bool = True
    residual: Literal["image", "condition", "none"] = "image"
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    qkv_bias: bool = True

    def _default_backbone(self, kwargs: dict[str, Any]) -> PreTrainedConfig:
        vit = super()._default_backbone(kwargs)
        vit.num_hidden_layers -= self.replaces_last_layer
        return vit

    def validate_layer(self) -> None:
        """Part of the strict validation: the heads divide the width."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads; "
                f"got {self.hidden_size} and {self.num_attention_heads}"
            )


@strict
class CCAConfig(ConditionConfig, ConditionalLayerConfig, RecognitionConfig):
    r"""Configuration of a [`CCAModel`]; [`CCAModel.from_backbone`] fills it from a backbone.

    Without a `backbone_config` the model is a ViT whose last layer is the conditional one, and every field of
    `ViTConfig` may be given: `CCAConfig(attributes=["colour"], hidden_size=192, num_hidden_layers=6, patch_size=8)`.
    The arguments are those of `ConditionConfig`, `ConditionalLayerConfig`, `AttributeConfig` and `ImageModelConfig`;
    [`CCAForAttributeRecognition`] also reads those of `RecognitionConfig`.

    Raises:
        TypeError: for a field that neither this configuration nor the default ViT has.
    """

    model_type = "cca"


CCAConfig.register_for_auto_class()
