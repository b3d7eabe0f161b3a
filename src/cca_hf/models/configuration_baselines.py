"""Configurations of the models that CCA is compared with. A configuration has only the fields that its model reads."""

from dataclasses import fields
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_cca import CCAConfig, ConditionalLayerConfig, ConditionConfig
from .configuration_images import AttributeConfig


@strict
class _BaselineConfig(AttributeConfig):
    """Reads files of version 0.1, which wrote all fields of CCA into the checkpoints of the baselines."""

    def __post_init__(self, **kwargs: Any) -> None:
        if self.transformers_version is not None:
            unused = {field.name for field in fields(CCAConfig)}
            kwargs = {name: value for name, value in kwargs.items() if name not in unused}
        super().__post_init__(**kwargs)


@strict
class CSNConfig(_BaselineConfig, ConditionalLayerConfig):
    """Configuration of a [`CSNModel`]: one query for all attributes."""

    model_type = "cca_csn"

    condition_embedding: Literal["none"] = "none"


@strict
class ASENConfig(_BaselineConfig, ConditionConfig):
    """Configuration of an [`ASENModel`], which is on top of the whole backbone and has one head."""

    model_type = "cca_asen"
    replaces_last_layer: ClassVar[bool] = False
    num_attention_heads: ClassVar[int] = 1


@strict
class SeparateConfig(CCAConfig):
    """Configuration of a [`SeparateModel`]: that of one of its networks, with the attributes of all."""

    model_type = "cca_separate"


CSNConfig.register_for_auto_class()
ASENConfig.register_for_auto_class()
SeparateConfig.register_for_auto_class()
