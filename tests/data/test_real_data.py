"""The real sets, counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from torch.utils.data import DataLoader
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.sampler import AttributeBatchSampler
from cca_hf.data.torch_dataset import AttributeCollator, AttributeImages, TrainingTransform

FASHION = ["article_type", "sub_category", "master_category", "base_colour", "gender", "season", "usage"]


@pytest.fixture(scope="module")
def fashion(shared_data):
    return load_attribute_dataset(shared_data / "fashion_products", FASHION)


def test_fashion_products(fashion):
    assert {split: len(fashion[split]) for split in fashion.splits} == {
        "train": 6749,
        "validation": 970,
        "test": 1864,
    }
    assert {name: len(values) for name, values in fashion.attributes.items()} == {
        "article_type": 75,
        "sub_category": 30,
        "master_category": 6,
        "base_colour": 44,
        "gender": 5,
        "season": 4,
        "usage": 7,
    }
    assert fashion.attributes["gender"] == ["Boys", "Girls", "Men", "Unisex", "Women"]
    summary = fashion.summary()
    assert summary.splits["train"].attributes["article_type"].single_image_values == (
        "Bracelet",
        "Footballs",
        "Rucksacks",
        "Sarees",
        "Shrug",
    )
    single = {
        split: [len(found.single_image_values) for found in summary.splits[split].attributes.values()]
        for split in fashion.splits
    }
    assert single == {
        "train": [5, 2, 1, 5, 0, 0, 1],
        "validation": [11, 3, 0, 7, 0, 0, 2],
        "test": [10, 1, 0, 3, 0, 0, 1],
    }
    # every label against the rows as they are
    source = fashion["test"]
    raw = source.with_format("arrow")[:]
    for index, name in enumerate(FASHION):
        values = np.array(fashion.attributes[name])
        assert values[fashion.labels("test")[:, index]].tolist() == [
            source.features[name].int2str(label) for label in raw.column(name).to_pylist()
        ]


def test_an_epoch_of_fashion_products(fashion):
    """Every value of every attribute is reached, and every picture decodes."""
    images = AttributeImages(fashion, "train", TrainingTransform())
    labels = images.labels.numpy()
    sampler = AttributeBatchSampler(labels, batch_size=64, images_per_value=4)
    assert len(sampler) == 106
    batches = [[key.index for key in batch] for batch in sampler]
    for index, values in enumerate(fashion.attributes.values()):
        reached = set(labels[np.concatenate(batches), index].tolist())
        assert reached == set(labels[:, index].tolist()) and len(reached) >= len(values) - 2
    seen = len(set(np.concatenate(batches).tolist()))
    assert seen > 0.45 * len(images)
    collator = AttributeCollator(ViTImageProcessorPil(size={"height": 64, "width": 64}))
    batch = next(iter(DataLoader(images, batch_sampler=sampler, collate_fn=collator)))
    assert batch["pixel_values"].shape == (64, 3, 64, 64) and torch.isfinite(batch["pixel_values"]).all()


def test_set_cards(shared_data):
    data = load_attribute_dataset(
        shared_data / "set_cards", ["number", "colour", "shading", "shape"], group_column="photo"
    )
    assert {split: len(data[split]) for split in data.splits} == {"train": 5211, "validation": 648, "test": 1485}
    assert data.attributes["number"] == ["1", "2", "3"]
    assert data.attributes["colour"] == ["green", "purple", "red"]
    assert all(len(values) == 3 for values in data.attributes.values())
    groups = {split: set(data.groups(split).tolist()) for split in data.splits}
    assert {split: len(own) for split, own in groups.items()} == {"train": 193, "validation": 24, "test": 55}
    assert not groups["train"] & groups["test"] and not groups["train"] & groups["validation"]
    assert len(np.unique(data.labels("train"), axis=0)) == 81
    test = replace(data, splits=DatasetDict(test=data["test"]))
    assert test.check_images() is test
