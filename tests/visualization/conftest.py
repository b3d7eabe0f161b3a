"""A tiny data set and a tiny untrained model, for everything that is drawn."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage
from transformers import ViTConfig

from cca_hf.data.schema import AttributeDataset
from cca_hf.models.modeling_cca import CCAModel

VALUES = {"colour": ["red", "green", "<b>blue</b> & 'navy'"], "shape": ["circle", "square"]}
PURE = [(220, 30, 30), (30, 200, 30), (30, 30, 220)]


def make_split(count: int, seed: int) -> Dataset:
    generator = np.random.default_rng(seed)
    colours, shapes = generator.integers(0, 3, count).tolist(), generator.integers(-1, 2, count).tolist()
    images = []
    for colour in colours:
        pixels = np.clip(np.array(PURE[colour]) + generator.normal(0, 20, (40, 30, 3)), 0, 255)
        images.append(PILImage.fromarray(pixels.astype(np.uint8)))
    features = Features(
        image=Image(),
        colour=ClassLabel(names=VALUES["colour"]),
        shape=ClassLabel(names=VALUES["shape"]),
        item=Value("string"),
    )
    items = [f"item {index // 3}" for index in range(count)]
    rows = {"image": images, "colour": colours, "shape": shapes, "item": items}
    return Dataset.from_dict(rows, features=features).cast_column("image", Image(decode=False))


@pytest.fixture(scope="session")
def dataset() -> AttributeDataset:
    splits = {"test": make_split(30, 0), "benchmark_query": make_split(5, 1), "benchmark_gallery": make_split(25, 2)}
    return AttributeDataset(DatasetDict(splits), VALUES, group_column="item")


@pytest.fixture(scope="session")
def model() -> CCAModel:
    torch.manual_seed(0)
    backbone = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    return CCAModel.from_backbone(backbone, VALUES)
