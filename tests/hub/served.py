"""A checkpoint to serve, and files of pictures as clients have them."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig

from cca_hf import CCAModel

ATTRIBUTES = {"colour": ["red", "blue"], "shape": ["round", "long"], "heel height": ["flat", "high"]}


def save_checkpoint(folder: Path) -> CCAModel:
    """A tiny ViT under CCA, random, with prototypes of three values, saved to `folder`; in eval mode."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = ViTConfig(**shape, image_size=32, patch_size=8)
    model = CCAModel.from_backbone(config, ATTRIBUTES, embedding_dim=16).eval()
    model.set_prototypes(torch.randn(3, 2, 16), torch.tensor([[True, True], [True, False], [False, False]]))
    model.save_pretrained(folder)
    return model


def picture_file(number: int, form: str = "JPEG", size: tuple[int, int] = (60, 48)) -> bytes:
    """The bytes of a file, another one for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size).save(file, form)
    return file.getvalue()


def bomb(side: int = 6000) -> bytes:
    """A PNG of a few kilobytes that would be `side` x `side` pixels."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()
