"""The configuration: names by id, and what it refuses."""

import pytest
from transformers import AutoConfig

from cca_hf import CCAConfig


def test_defaults_are_a_vit_base_without_its_last_layer():
    config = CCAConfig()
    assert config.backbone_config.model_type == "vit" and config.backbone_config.num_hidden_layers == 11
    assert config.attributes == [] and config.replaces_last_layer


def test_names_keep_their_order_on_disk(tmp_path):
    values = {"zip": ["b", "a"], "arm": ["x", "y"]}
    CCAConfig(attributes=list(values), attribute_values=values).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, CCAConfig)
    assert loaded.attributes == ["zip", "arm"] and loaded.attribute_values == values
    assert (
        loaded.attribute_ids() == [0, 1] and loaded.attribute_ids(["arm"]) == [1] and loaded.attribute_id("zip") == 0
    )


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
        ({"hidden_size": 30, "num_attention_heads": 4}, "multiple of num_attention_heads; got 30 and 4"),
        ({"feature_levels": [1, 2]}, "one number for each of the 2 feature_levels"),
        ({"condition_embedding": "onehot"}, "condition_embedding"),
        ({"residual": "cls"}, "residual"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(Exception, match=message):
        CCAConfig(**fields)
