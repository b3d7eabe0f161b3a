"""The configuration: names by id, and what it refuses."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, CLIPConfig, ViTConfig

from cca_hf import CCAConfig, CCAModel
from cca_hf.models.configuration_baselines import ASENConfig, CSNConfig
from cca_hf.models.loading import load_model
from cca_hf.models.modeling_csn import CSNModel

from .conftest import TINY


def test_defaults_are_a_vit_base_without_its_last_layer():
    config = CCAConfig()
    assert config.backbone_config.model_type == "vit" and config.backbone_config.num_hidden_layers == 11
    assert config.attributes == [] and config.replaces_last_layer


def test_names_keep_their_order_on_disk(tmp_path):
    values = {"zip": ["b", "a"], "arm": ["x", "y"]}
    CCAConfig(attributes=list(values), attribute_values=values, known_values={"arm": ["y"]}).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, CCAConfig)
    assert loaded.attributes == ["zip", "arm"] and loaded.attribute_values == values
    assert loaded.known_values == loaded.restricted_to(["arm"]).known_values == {"arm": ["y"]}
    assert loaded.restricted_to(["zip"]).known_values == {} and CCAConfig().known_values is None
    assert (
        loaded.attribute_ids() == [0, 1] and loaded.attribute_ids(["arm"]) == [1] and loaded.attribute_id("zip") == 0
    )


def test_there_are_no_classes(tmp_path):
    """Version 0.1 saved LABEL_0 and LABEL_1, or the 1,000 classes of ImageNet, with the backbone."""
    config = CCAConfig(attributes=["colour", "shape", "heel height"], **TINY)
    config.backbone_config.id2label = {0: "tench", 1: "goldfish", 2: "shark"}
    config.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "label" not in text
    settings = json.loads(text)
    labels = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    settings |= labels | {"backbone_config": settings["backbone_config"] | labels}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert (loaded.id2label, loaded.label2id, loaded.num_labels) == (None, None, None)
    assert loaded.attributes == ["colour", "shape", "heel height"]


def test_unknown_attribute_names_the_closest():
    config = CCAConfig(attributes=["colour", "heel height"])
    with pytest.raises(ValueError, match=r"unknown attribute 'heelheight'\. Did you mean 'heel height'\?"):
        config.attribute_id("heelheight")
    with pytest.raises(ValueError, match=r"unknown attribute 'zzz'\. This model knows \['colour', 'heel height'\]"):
        config.attribute_id("zzz")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attributes": ["a", "a"]}, "unique"),
        ({"attributes": ["a"], "attribute_values": {"b": ["x"]}}, r"names \['b'\]"),
        ({"attributes": ["a"], "known_values": {"b": ["x"]}}, r"known_values names \['b'\]"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "multiple of num_attention_heads; got 30 and 4"),
        ({"feature_levels": [1, 2]}, "one number for each of the 2 feature_levels"),
        ({"condition_embedding": "onehot"}, "condition_embedding"),
        ({"residual": "cls"}, "residual"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(Exception, match=message):
        CCAConfig(**fields)


def test_fields_of_vit_reach_the_default_backbone(tmp_path):
    config = CCAConfig(attributes=["colour"], hidden_act="relu", **TINY)
    same = CCAModel.from_backbone(ViTConfig(hidden_act="relu", **TINY), ["colour"]).config
    for field in ViTConfig().to_dict():
        assert vars(config.backbone_config).get(field) == vars(same.backbone_config).get(field), field
    model = CCAModel(config).eval()
    pixel_values, ids = torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.long)
    expected = model(pixel_values, attribute_ids=ids).embeddings
    assert expected.shape == (2, 32)
    model.save_pretrained(tmp_path)
    found = AutoModel.from_pretrained(tmp_path)(pixel_values, attribute_ids=ids).embeddings
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (CCAConfig, {"patchsize": 8}, "CCAConfig has no field 'patchsize'. Did you mean 'patch_size'?"),
        (CCAConfig, {"atributes": ["a"]}, "CCAConfig has no field 'atributes'. Did you mean 'attributes'?"),
        (CCAConfig, {"backbone_config": {"model_type": "vit"}, "patch_size": 8}, "has no field 'patch_size'"),
        (ASENConfig, {"residual": "image"}, "ASENConfig has no field 'residual'"),
        (CSNConfig, {"text_encoder": "x"}, "CSNConfig has no field 'text_encoder'"),
    ],
)
def test_unknown_fields_are_refused(config_class, fields, message):
    with pytest.raises(TypeError) as error:
        config_class(**fields)
    assert message in str(error.value)


def test_files_of_other_versions_load(tmp_path):
    """A saved configuration may have fields of another transformers, or, for a baseline, all fields of CCA."""
    for config in (CCAConfig(attributes=["a"]), ASENConfig(attributes=["a"]), CSNConfig(attributes=["a"])):
        config.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        written = saved | {"use_bfloat16": False, "residual": "condition", "text_encoder": None, "torchscript": False}
        (tmp_path / "config.json").write_text(json.dumps(written))
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert type(loaded) is type(config) and loaded.attributes == ["a"]
        assert set(json.loads(loaded.to_json_string())) == set(saved) | {"use_bfloat16", "torchscript"}


@pytest.mark.parametrize("config", [ViTConfig(**TINY), CLIPConfig(), CSNConfig(attributes=["a"])])
def test_checkpoints_of_another_type_are_refused(config, tmp_path):
    config.save_pretrained(tmp_path)
    message = rf"checkpoint of type '{config.model_type}', and CCAModel loads .* 'cca'.*CCAModel.from_backbone"
    with pytest.raises(ValueError, match=message):
        CCAModel.from_pretrained(tmp_path)


def test_a_checkpoint_of_cca_is_refused_by_a_baseline(tmp_path):
    CCAConfig(attributes=["a"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="checkpoint of type 'cca', and CSNModel loads"):
        CSNModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", 10**12, "hidden_size of a 'cca' model must be at most 100,000; got 1000000000000"),
        ("embedding_dim", 10**12, "embedding_dim of a 'cca' model must be at most 100,000; got 1000000000000"),
        ("image_size", [32, 10**9], "image_size of a 'cca' model must be at most 16,384; got 1000000000"),
        ("backbone.image_size", 10**9, "image_size of a 'vit' model must be at most 16,384; got 1000000000"),
        (
            "backbone.num_hidden_layers",
            10**7,
            "num_hidden_layers of a 'vit' model must be at most 1,000; got 10000000",
        ),
        ("backbone.intermediate_size", 90_000, "a 'vit' model with 900 layers up to 90,000 wide is too large"),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_allocated(model, tmp_path, field, value, message):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    backbone, _, name = field.rpartition(".")
    (config["backbone_config"] if backbone else config)[name] = value
    if message.endswith("large"):
        config["backbone_config"]["num_hidden_layers"] = 900
    (tmp_path / "config.json").write_text(json.dumps(config))
    for load in (CCAModel.from_pretrained, AutoModel.from_pretrained, load_model):
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


def test_a_backbone_of_absurd_size_is_refused(tmp_path):
    backbone = ViTConfig(hidden_size=10**12)
    with pytest.raises(ValueError, match="hidden_size of a 'vit' model must be at most 100,000"):
        CCAModel.from_backbone(backbone, ["colour"])
    backbone.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="hidden_size of a 'vit' model must be at most 100,000"):
        CCAModel.from_backbone(tmp_path, ["colour"])
