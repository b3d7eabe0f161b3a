"""Configurations of the models that CCA is compared with; each is that of CCA with less to choose."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .configuration_cca import CCAConfig


@strict
class CSNConfig(CCAConfig):
    """Configuration of a [`CSNModel`]: the query is one for all attributes."""

    model_type = "cca_csn"

    condition_embedding: Literal["none"] = "none"


@strict
class ASENConfig(CCAConfig):
    """Configuration of an [`ASENModel`]: of CCA's layer there is `hidden_size` alone, and attention has one head."""

    model_type = "cca_asen"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.num_attention_heads = 1


@strict
class SeparateConfig(CCAConfig):
    """Configuration of a [`SeparateModel`]: that of each of its networks, with the attributes of all."""

    model_type = "cca_separate"


CSNConfig.register_for_auto_class()
ASENConfig.register_for_auto_class()
SeparateConfig.register_for_auto_class()

__all__ = ["ASENConfig", "CSNConfig", "SeparateConfig"]
