"""Configuration of conditional cross-attention (CCA), Song et al., ICCV 2023, https://arxiv.org/abs/2307.13254.

Unlike most configurations this one carries words: the names of the attributes and of their values, so that a
checkpoint explains itself and users speak to it by name. The backbone keeps its own native configuration inside, as in
DPT or DETR.
"""

from difflib import get_close_matches
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig


@strict
class CCAConfig(PreTrainedConfig):
    r"""Configuration of a [`CCAModel`]; [`CCAModel.from_backbone`] fills it from a backbone.

    Args:
        attributes: names of the attributes ("colour", ...); an attribute's id is its place in this list.
        attribute_values: value names by attribute name, in the order of the data set's label ids. May be left out.
        backbone_config: native configuration of the backbone, or its dict with `model_type`; defaults to a ViT-B/16
            without its last layer.
        backbone_name: where the backbone came from, for the model card.
        replaces_last_layer: the conditional layer stands in the place of the backbone's last layer, whose final
            normalisation moves behind it (ViT); otherwise it stands on top of the whole backbone.
        num_prefix_tokens: tokens before the grid of image tokens (CLS, distillation, registers); the first is used as
            the summary of the image, without one the mean of the tokens.
        feature_levels: indices into the backbone's `hidden_states` whose feature maps are asked beside its last one.
            Early maps hold what late ones forget, such as colour.
        feature_channels: channels of those maps and, last, of the backbone's output.
        feature_grid: earlier maps finer than this many cells a side are averaged down to it.
        condition_embedding: `"one_hot"` and `"lookup"` as in the paper; `"text"` asks by what the attribute is called,
            through a frozen text encoder; `"none"` is one learned query for every attribute, that is one embedding
            space for everything: the baseline.
        text_embedding_dim: width of the text encoder's embeddings; for `"text"` alone.
        text_encoder: where they came from, so that [`CCAModel.add_attribute`] is given more of the same.
        attribute_texts: what was embedded, by attribute name. May be left out.
        residual: what the attended values are added to: the summary of the `"image"`, the `"condition"`, or `"none"`.
        embedding_dim: width of the projected embedding; `None` leaves it at `hidden_size`, without projection.
        attribute_subspaces: each attribute's embedding is projected on what tells its own values apart, which takes
            the other attributes out of it; see `attribute_subspaces.py`. Fitted at the end of training.
        hidden_size, num_attention_heads, intermediate_size: the conditional layer, named as in `ViTConfig`, and so are
            the next ones.
        hidden_act, layer_norm_eps, qkv_bias: of its parts.
        hidden_dropout_prob, attention_probs_dropout_prob, initializer_range: of its training.
        freeze_batch_norm: batch normalisation of the backbone keeps its running statistics while training;
            [`CCAModel.from_backbone`] asks for it where the backbone is pretrained.
        image_size: side of the square images in pixels that the model was made for, or their (height, width).
            Position embeddings are interpolated for other sizes.
    """

    model_type = "cca"
    sub_configs: ClassVar[dict] = {"backbone_config": AutoConfig}

    attributes: list[str] | tuple[str, ...] = ()
    attribute_values: dict[str, list[str]] | None = None
    backbone_config: dict | PreTrainedConfig | None = None
    backbone_name: str | None = None
    replaces_last_layer: bool = True
    num_prefix_tokens: int = 1
    feature_levels: list[int] | tuple[int, ...] = ()
    feature_channels: list[int] | tuple[int, ...] = ()
    feature_grid: int = 7
    condition_embedding: Literal["one_hot", "lookup", "text", "none"] = "one_hot"
    text_embedding_dim: int | None = None
    text_encoder: str | None = None
    attribute_texts: dict[str, str] | None = None
    residual: Literal["image", "condition", "none"] = "image"
    embedding_dim: int | None = None
    attribute_subspaces: bool = False
    hidden_size: int = 768
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    initializer_range: float = 0.02
    freeze_batch_norm: bool = True
    image_size: int | list[int] | tuple[int, int] = 224

    def __post_init__(self, **kwargs: Any) -> None:
        if self.backbone_config is None:
            self.backbone_config = CONFIG_MAPPING["vit"](num_hidden_layers=11)
        elif isinstance(self.backbone_config, dict):
            backbone = dict(self.backbone_config)
            self.backbone_config = CONFIG_MAPPING[backbone.pop("model_type", "vit")](**backbone)
        if not self.feature_channels:
            self.feature_channels = [self.hidden_size]
        self.attributes = list(self.attributes)
        self.attribute_values = dict(self.attribute_values or {})
        self.attribute_texts = dict(self.attribute_texts or {})
        super().__post_init__(**kwargs)

    def validate_attributes(self) -> None:
        """Part of the strict validation: names must be unique; values and texts belong to attributes that exist."""
        if len(set(self.attributes)) != len(self.attributes):
            raise ValueError(f"attribute names must be unique; got {list(self.attributes)}")
        for field, words in (("attribute_values", self.attribute_values), ("attribute_texts", self.attribute_texts)):
            strangers = sorted(set(words or {}) - set(self.attributes))
            if strangers:
                raise ValueError(f"{field} names {strangers}, which are not among the attributes {self.attributes}")

    @property
    def image_height_and_width(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the model was made for."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        height, width = self.image_size
        return height, width

    def validate_image_size(self) -> None:
        """Part of the strict validation: a positive number, or two."""
        sides = [self.image_size] * 2 if isinstance(self.image_size, int) else self.image_size
        if len(sides) != 2 or min(sides) < 1:
            raise ValueError(f"image_size must be a positive number or (height, width); got {self.image_size}")

    def validate_layer(self) -> None:
        """Part of the strict validation: the conditional layer can be built."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads; "
                f"got {self.hidden_size} and {self.num_attention_heads}"
            )
        if (self.condition_embedding == "text") != (self.text_embedding_dim is not None):
            raise ValueError(
                "condition_embedding='text' needs a text_embedding_dim, and the others have none; "
                f"got {self.condition_embedding!r} and {self.text_embedding_dim}"
            )
        if len(self.feature_channels) != len(self.feature_levels) + 1:
            raise ValueError(
                f"feature_channels needs one number for each of the {len(self.feature_levels)} feature_levels and "
                f"one for the backbone's output; got {list(self.feature_channels)}"
            )

    def attribute_id(self, name: str) -> int:
        """The id of an attribute, its place in `attributes`.

        Raises:
            ValueError: if there is no such attribute; the message names the closest one and all that there are.
        """
        if name in self.attributes:
            return self.attributes.index(name)
        closest = get_close_matches(str(name), self.attributes, n=1, cutoff=0.5)
        hint = f" Did you mean {closest[0]!r}?" if closest else ""
        raise ValueError(f"unknown attribute {name!r}.{hint} This model knows {self.attributes}.")

    def attribute_ids(self, names: str | list[str] | tuple[str, ...] | None = None) -> list[int]:
        """The ids of one name, of several, or (`None`) of all attributes."""
        if names is None:
            return list(range(len(self.attributes)))
        return [self.attribute_id(name) for name in ([names] if isinstance(names, str) else names)]


CCAConfig.register_for_auto_class()

__all__ = ["CCAConfig"]
