"""Tiny backbones of every kind that CCA promises to stand on, and a model to share."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from transformers import (
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    MobileNetV2Config,
    PreTrainedConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
)

from cca_hf import ADDEModel, CCAModel
from cca_hf.models.modeling_asen import ASENModel
from cca_hf.models.modeling_conditional import CCAPreTrainedModel
from cca_hf.models.modeling_csn import CSNModel
from cca_hf.models.modeling_separate import SeparateModel

# transformers 5.17 drops the keywords of the model on the way to the layers of DINOv2
PASSES_SETTINGS = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.24"), reason="DCAL on DINOv2 needs transformers 5.24"
)
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
ATTRIBUTES = {"colour": ["red", "blue"], "shape": ["round", "square", "long"], "heel height": ["flat", "high"]}


def tiny_backbone(name: str) -> PreTrainedConfig:
    match name:
        case "vit":
            return ViTConfig(**TINY)
        case "deit":
            return DeiTConfig(**TINY)
        case "dinov2":
            shape = {key: value for key, value in TINY.items() if key != "intermediate_size"}
            return Dinov2Config(**shape, mlp_ratio=2)
        case "siglip":
            return SiglipVisionConfig(**TINY)
        case "swin":
            return SwinConfig(
                image_size=64, patch_size=4, embed_dim=16, depths=[1, 1, 1], num_heads=[2, 2, 2], window_size=4
            )
        case "convnext":
            return ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=64)
        case "mobilenet_v2":
            return MobileNetV2Config(depth_multiplier=0.35, image_size=64)
    raise ValueError(name)


MODELS: dict[str, type[CCAPreTrainedModel]] = {
    "cca": CCAModel,
    "csn": CSNModel,
    "asen": ASENModel,
    "separate": SeparateModel,
}


def build(name: str, backbone: PreTrainedConfig, **options: Any) -> CCAPreTrainedModel:
    """One of `MODELS`, or ADDE, with random weights and three attributes, in eval mode."""
    torch.manual_seed(0)
    if name == "adde":
        return ADDEModel.from_backbone(backbone, ATTRIBUTES, **options)
    if name == "separate":
        networks = [CCAModel.from_backbone(backbone, {key: value}, **options) for key, value in ATTRIBUTES.items()]
        return SeparateModel.join(networks)
    return MODELS[name].from_backbone(backbone, ATTRIBUTES, **options).eval()


BACKBONES = ["vit", "deit", "dinov2", "siglip", "swin", "convnext", "mobilenet_v2"]


@pytest.fixture(params=BACKBONES)
def backbone_config(request: pytest.FixtureRequest) -> PreTrainedConfig:
    """All backbones, one after the other."""
    return tiny_backbone(request.param)


@pytest.fixture
def vit_config() -> ViTConfig:
    return ViTConfig(**TINY)


@pytest.fixture
def attributes() -> dict[str, list[str]]:
    return ATTRIBUTES


@pytest.fixture
def model(vit_config: ViTConfig) -> CCAModel:
    """A tiny ViT under CCA with three attributes, in eval mode."""
    torch.manual_seed(0)
    return CCAModel.from_backbone(vit_config, ATTRIBUTES).eval()


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (40, 30, 3), dtype=np.uint8)) for _ in range(5)]
