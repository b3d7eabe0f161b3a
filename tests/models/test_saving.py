"""Saving over a good checkpoint: whole, or not at all."""

import errno
import importlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from cca_hf import CCAConfig, CCAModel


def test_full_disk_leaves_the_earlier_checkpoint_as_it_was(model, mount_disk):
    small_disk = mount_disk(1)
    model.save_pretrained(small_disk / "model")
    before = {path.name: path.read_bytes() for path in (small_disk / "model").iterdir()}
    torch.nn.init.zeros_(model.layernorm.weight)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    with pytest.raises(
        OSError, match=r"saving to .*model failed, what was there before is untouched: .*No space left"
    ):
        model.save_pretrained(small_disk / "model")
    assert {path.name: path.read_bytes() for path in (small_disk / "model").iterdir()} == before
    CCAModel.from_pretrained(small_disk / "model")
    filler.unlink()
    model.save_pretrained(small_disk / "model")
    assert not load_file(small_disk / "model" / "model.safetensors")["layernorm.weight"].any()


def test_failure_in_the_middle_of_writing(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def write_half(self, save_directory, **kwargs):
        (save_directory / "config.json").write_text("{")
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", write_half)
    with pytest.raises(OSError, match="untouched: .*Input/output error"):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_the_way(model, tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(OSError, match="it is a file, and must be a folder"):
        model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


def test_checkpoint_of_another_shape_is_refused(model, vit_config, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch|mismatch"):
        CCAModel.from_pretrained(tmp_path, attributes=["one"], attribute_values={})


def weights_in(folder):
    return sorted(path.name for path in folder.iterdir() if "safetensors" in path.name)


def test_a_save_leaves_exactly_its_weight_files(model, tmp_path):
    """Whole over sharded, sharded over whole, and over another number of shards; a variant stays as it is."""
    model.save_pretrained(tmp_path, variant="half")
    for step, size in enumerate(("50GB", "60KB", "100KB", "50GB")):
        torch.nn.init.constant_(model.layernorm.weight, step)
        model.save_pretrained(tmp_path, max_shard_size=size)
        loaded = CCAModel.from_pretrained(tmp_path)
        assert torch.equal(loaded.layernorm.weight, model.layernorm.weight)
        found = weights_in(tmp_path)
        assert found.pop(found.index("model.half.safetensors"))
        if size == "50GB":
            assert found == ["model.safetensors"]
        else:
            count = len(found) - 1
            names = [f"model-{shard:05}-of-{count:05}.safetensors" for shard in range(1, count + 1)]
            assert count > 1 and found == [*names, "model.safetensors.index.json"]
    torch.nn.init.ones_(model.layernorm.weight)
    model.save_pretrained(tmp_path, variant="half", max_shard_size="60KB")
    assert "model.half.safetensors" not in weights_in(tmp_path) and "model.safetensors" in weights_in(tmp_path)
    assert CCAModel.from_pretrained(tmp_path, variant="half").layernorm.weight.eq(1).all()


def test_the_image_processor_is_read_with_the_weights(model, pictures, tmp_path, monkeypatch):
    """Not at its first use, when the folder may have moved, or hold another checkpoint."""
    model.image_processor.image_mean = [0.1, 0.2, 0.3]
    model.save_pretrained(tmp_path / "here" / "model")
    expected = model.encode(pictures)
    monkeypatch.chdir(tmp_path / "here")
    loaded = CCAModel.from_pretrained("model")
    again = CCAModel.from_pretrained("model")
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(loaded.encode(pictures), expected)
    loaded.save_pretrained(tmp_path / "copy")
    assert list(CCAModel.from_pretrained(tmp_path / "copy").image_processor.image_mean) == [0.1, 0.2, 0.3]
    model.image_processor.image_mean = [0.5, 0.5, 0.5]
    model.save_pretrained(tmp_path / "here" / "model")
    np.testing.assert_array_equal(again.encode(pictures), expected)


def test_a_model_made_from_a_configuration_has_the_default_processor(model, tmp_path):
    model.image_processor.image_mean = [0.1, 0.2, 0.3]
    model.save_pretrained(tmp_path)
    config = CCAConfig.from_pretrained(tmp_path)
    assert list(CCAModel(config).image_processor.image_mean) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("module", ["shop.models.mine", "__main__"])
def test_a_subclass_is_saved_with_the_code_of_its_base(module, model, pictures, tmp_path, monkeypatch):
    """Its own module may import files that cannot travel, or be a notebook. Registered, it is saved itself."""
    (tmp_path / "shop/models").mkdir(parents=True)
    (tmp_path / "shop/names.py").write_text("NAME = 'shoes'")
    source = "from ..names import NAME\nfrom cca_hf import CCAConfig, CCAModel\n"
    source += "class ShopConfig(CCAConfig):\n    pass\nclass Shop(CCAModel):\n    config_class = ShopConfig\n"
    (tmp_path / "shop/models/mine.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    shop = importlib.import_module("shop.models.mine")
    monkeypatch.setattr(shop.Shop, "__module__", module)
    monkeypatch.setattr(shop.ShopConfig, "__module__", module)
    made = shop.Shop(shop.ShopConfig(**model.config.to_dict())).eval()
    made.load_state_dict(model.state_dict())
    made.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "plain")
    names = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("saved", "plain")]
    assert names[0] == names[1] and "modeling_cca.py" in names[0]
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("saved", "plain")]
    assert configs[0]["auto_map"] == configs[1]["auto_map"]
    loaded = AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    np.testing.assert_array_equal(loaded.encode(pictures), model.encode(pictures))
    assert shop.Shop.from_pretrained(tmp_path / "saved").encode(pictures).shape == (5, 3, 32)


def test_a_registered_subclass_is_saved_with_its_code(model, tmp_path, monkeypatch):
    (tmp_path / "registered_shop.py").write_text("from cca_hf import CCAModel\nclass Shop(CCAModel):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    shop = importlib.import_module("registered_shop")
    shop.Shop.register_for_auto_class("AutoModel")
    shop.Shop(model.config).save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "registered_shop.Shop"
    assert (tmp_path / "saved/registered_shop.py").is_file()
