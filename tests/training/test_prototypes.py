"""The prototypes of the values that a training leaves with the model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from transformers import ViTConfig

from cca_hf import ADDEModel, CCAModel, CCATrainer
from cca_hf.models.value_prototypes import shape_of_prototypes

from .conftest import TINY_VIT


@pytest.mark.parametrize("model_class", [CCAModel, ADDEModel])
@pytest.mark.parametrize("attribute_map", ["none", "values"])
def test_they_are_the_mean_embeddings_of_the_training_images(model_class, attribute_map, shapes, make_args, tmp_path):
    """Those of the final model, for the values that a training image shows."""
    without_circles = shapes.splits["train"].filter(lambda row: row["shape"] != 0)
    data = replace(shapes, splits=DatasetDict({**shapes.splits, "train": without_circles}))
    model = model_class.from_backbone(ViTConfig(**TINY_VIT), data.attributes, embedding_dim=16)
    model.set_prototypes(torch.ones(shape_of_prototypes(model.config)), torch.ones(5, 7) > 2)
    trainer = CCATrainer(model, make_args(max_steps=2, attribute_map=attribute_map, eval_strategy="no"), data)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    saved = model_class.from_pretrained(tmp_path / "model")
    mapped = {name: saved.value_prototypes(name) for name in data.attributes}
    saved.set_attribute_map("none")
    embeddings, labels = saved.encode(data["train"]["image"]), data.labels("train")
    for place, (name, shown) in enumerate(data.values_in("train").items()):
        found, values = saved.value_prototypes(name), data.attributes[name]
        assert list(found) == list(mapped[name]) == shown
        for value, vector in found.items():
            mean = embeddings[labels[:, place] == values.index(value), place].mean(axis=0)
            assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert list(mapped["shape"]) == data.attributes["shape"][1:]
    assert all(p.requires_grad for p in model.parameters_without_effect())


def test_values_with_other_names_have_none(shapes, make_args):
    """The rows of the prototypes are in the order of the data."""
    model = CCAModel.from_backbone(ViTConfig(**TINY_VIT), list(shapes.attributes))
    CCATrainer(model, make_args(max_steps=1), shapes).train()
    assert not model.has_prototypes
