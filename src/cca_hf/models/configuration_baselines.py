"""Configurations of the models that CCA is compared with. A configuration has only the fields that its model reads."""

from dataclasses import fields
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_cca import CCAConfig, ConditionalLayerConfig, ConditionConfig


@strict
class CSNConfig(ConditionalLayerConfig):
    """Configuration of a [`CSNModel`]: one query for all attributes."""

    model_type = "cca_csn"

    condition_embedding: Literal["none"] = "none"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**_without_unused_fields(self, kwargs))


@strict
class ASENConfig(ConditionConfig):
    """Configuration of an [`ASENModel`], which is on top of the whole backbone and has one head."""

    model_type = "cca_asen"
    replaces_last_layer: ClassVar[bool] = False
    num_attention_heads: ClassVar[int] = 1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**_without_unused_fields(self, kwargs))


@strict
class SeparateConfig(CCAConfig):
    """Configuration of a [`SeparateModel`]: that of one of its networks, with the attributes of all."""

    model_type = "cca_separate"


def _without_unused_fields(config: CSNConfig | ASENConfig, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Version 0.1 wrote all fields of CCA into the checkpoints of the baselines."""
    if config.transformers_version is None:
        return kwargs
    return {name: value for name, value in kwargs.items() if name not in {field.name for field in fields(CCAConfig)}}


CSNConfig.register_for_auto_class()
ASENConfig.register_for_auto_class()
SeparateConfig.register_for_auto_class()
