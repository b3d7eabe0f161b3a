"""Configuration of attribute-driven disentangled embeddings (ADDE), Hou et al., ICCV 2021."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .configuration_cca import CCAConfig


@strict
class ADDEConfig(CCAConfig):
    r"""Configuration of an [`ADDEModel`]; [`ADDEModel.from_backbone`] fills it from a backbone.

    Every attribute needs `attribute_values`.

    Args:
        encoder: `"mlp"` as in the paper, a two-layer network for each attribute on the pooled output of the backbone;
            `"cross_attention"` is CCA's conditional layer. Only it reads the arguments of `ConditionConfig` and
            `ConditionalLayerConfig`. With `"mlp"`, `hidden_size` is the width of the pooled output.
        embedding_dim: width of an embedding, by default the paper's; `None` for `hidden_size`.
    """

    model_type = "adde"

    encoder: Literal["mlp", "cross_attention"] = "mlp"
    embedding_dim: int | None = 340

    def __post_init__(self, **kwargs: Any) -> None:
        if self.encoder == "mlp":
            self.replaces_last_layer = False
        super().__post_init__(**kwargs)

    def validate_layer(self) -> None:
        """Part of the strict validation: that of the conditional layer, or of the pooled output."""
        if self.encoder == "cross_attention":
            super().validate_layer()
        elif self.hidden_size != sum(self.feature_channels):
            raise ValueError(
                f"with encoder='mlp', hidden_size is the width of the pooled output, the sum of feature_channels "
                f"{list(self.feature_channels)}; got {self.hidden_size}"
            )

    def validate_values(self) -> None:
        """Part of the strict validation: the values of every attribute are given."""
        without = [name for name in self.attributes if not (self.attribute_values or {}).get(name)]
        if without:
            raise ValueError(
                f"ADDE learns a classifier and prototypes of the values of each attribute, and {without} have no "
                "values: give attributes as {name: [value, ...]}, such as the attributes of an AttributeDataset"
            )


ADDEConfig.register_for_auto_class()
