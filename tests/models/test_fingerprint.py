"""The fingerprint: equal for the same model, different where any embedding differs, and that of version 0.1 counts."""

import hashlib
import json
import re

import pytest
import torch
from transformers import AutoModel, ViTConfig
from transformers.core_model_loading import Concatenate, WeightConverter

from cca_hf import CCAModel

from .conftest import ATTRIBUTES, MODELS, TINY, build, tiny_backbone


@pytest.mark.parametrize("name", MODELS)
def test_saving_and_settings_of_training_do_not_change_it(name, vit_config, tmp_path):
    model = build(name, vit_config)
    before = model.fingerprint()
    model.save_pretrained(tmp_path)
    assert model.fingerprint() == before == AutoModel.from_pretrained(tmp_path).fingerprint()
    model.config.freeze_batch_norm = not model.config.freeze_batch_norm
    model.config.attribute_values = {}
    model.config.known_values = {name: values[:1] for name, values in ATTRIBUTES.items()}
    assert model.fingerprint() == before


@pytest.mark.parametrize(
    ("backbone", "field", "value", "other"),
    [
        ("vit", "residual", "image", "condition"),
        ("vit", "num_attention_heads", 4, 2),
        ("swin", "feature_levels", [0], [1]),
        ("swin", "feature_grid", 7, 4),
    ],
)
def test_the_architecture_changes_it(backbone, field, value, other):
    """With equal weights."""
    models = [CCAModel.from_backbone(tiny_backbone(backbone), ATTRIBUTES, **{field: value}) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    assert models[0].fingerprint() == models[1].fingerprint()
    setattr(models[1].config, field, other)
    assert models[0].fingerprint() != models[1].fingerprint()


def test_the_architecture_of_the_backbone_changes_it():
    models = [CCAModel.from_backbone(ViTConfig(hidden_act=act, **TINY), ["colour"]) for act in ("gelu", "relu")]
    models[1].load_state_dict(models[0].state_dict())
    models[1].config.hidden_act = models[0].config.hidden_act
    assert models[0].fingerprint() != models[1].fingerprint()


def test_weights_attributes_and_preprocessing_change_it(model):
    seen = {model.fingerprint()}
    model.image_processor.do_normalize = False
    seen.add(model.fingerprint())
    model.config.attributes = model.config.attributes[::-1]
    seen.add(model.fingerprint())
    torch.nn.init.ones_(model.condition_embedding.bias)
    seen.add(model.fingerprint())
    torch.nn.init.ones_(model.backbone.embeddings.cls_token)
    seen.add(model.fingerprint())
    assert len(seen) == 5


def test_names_of_the_backbones_weights_do_not_change_it(model):
    """transformers renames them between versions."""
    before = model.fingerprint()
    model.backbone.renamed_layers = model.backbone.layers
    del model.backbone.layers
    assert "backbone.renamed_layers.0.attention.k_proj.weight" in model.state_dict()
    assert model.fingerprint() == before


def test_weights_that_are_fused_do_not_change_it(model):
    """As a later version of transformers may, with the conversion from which it loads and saves the same files."""
    before = model.fingerprint()
    single = [f"attention.{name}_proj.weight" for name in "qkv"]
    model._weight_conversions = [WeightConverter(single, "attention.qkv.weight", [Concatenate(dim=0)])]
    for layer in model.backbone.layers:
        parts = [layer.attention.__dict__["_modules"].pop(f"{name}_proj") for name in "qkv"]
        layer.attention.qkv = torch.nn.Linear(32, 96, bias=False)
        layer.attention.qkv.weight.data = torch.cat([part.weight for part in parts])
        for name, part in zip("qkv", parts, strict=True):
            layer.attention.register_parameter(f"{name}_bias", part.bias)
    assert "backbone.layers.0.attention.qkv.weight" in model.state_dict()
    assert model.fingerprint() == before


def test_networks_in_another_order_change_it(vit_config):
    model = build("separate", vit_config)
    before = model.fingerprint()
    model.networks = torch.nn.ModuleList(reversed(model.networks))
    assert model.fingerprint() != before


def fingerprint_of_version_0_1(model, names):
    digest = hashlib.sha256()
    for name, tensor in zip(names, model.state_dict().values(), strict=True):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    described = {"attributes": model.config.attributes, "image_processor": model.image_processor.to_dict()}
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def test_that_of_version_0_1_is_accepted(model):
    old = fingerprint_of_version_0_1(model, model.state_dict())
    assert old != model.fingerprint()
    assert model.has_fingerprint(old) and model.has_fingerprint(model.fingerprint())
    torch.nn.init.ones_(model.condition_embedding.bias)
    assert not model.has_fingerprint(old)


def test_that_of_version_0_1_is_accepted_after_modules_were_renamed():
    """It hashed the names of the modules, and those of DINOv2 changed between transformers 5.17 and 5.24."""
    model = CCAModel.from_backbone(tiny_backbone("dinov2"), ATTRIBUTES)
    earlier = {"q": "attention.query", "k": "attention.key", "v": "attention.value", "o": "output.dense"}
    names = [
        re.sub(r"(layer\.\d\.attention)\.(\w)_proj", lambda match: f"{match[1]}.{earlier[match[2]]}", name)
        for name in model.state_dict()
    ]
    assert "backbone.encoder.layer.0.attention.attention.query.weight" in names
    assert model.has_fingerprint(fingerprint_of_version_0_1(model, names))
    assert not model.has_fingerprint(fingerprint_of_version_0_1(model, [name.upper() for name in names]))
