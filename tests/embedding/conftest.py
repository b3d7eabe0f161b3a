"""A tiny model, saved, and a folder of pictures of several kinds for it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig

from cca_hf import CCAModel


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    backbone = ViTConfig(**shape, image_size=32, patch_size=8)
    folder = tmp_path_factory.mktemp("model")
    CCAModel.from_backbone(backbone, ["colour", "heel height"], embedding_dim=16).save_pretrained(folder)
    return folder


@pytest.fixture
def model(model_folder) -> CCAModel:
    return CCAModel.from_pretrained(model_folder).eval()


@pytest.fixture
def pictures(tmp_path) -> Path:
    """42 of them in two folders."""
    root = tmp_path / "pictures"
    for number in range(42):
        noise = np.random.default_rng(number).integers(0, 256, (24 + number, 40, 3), dtype=np.uint8)
        path = root / ("left", "right")[number % 2] / f"{number:03}.{('jpg', 'png')[number % 3 == 0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(path)
    return root
