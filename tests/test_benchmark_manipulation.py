"""Runs `scripts/benchmark_manipulation.py` on drawn shapes: one table, and no training is repeated."""

import importlib.util
import json

import pytest
import yaml
from transformers import AutoModel, ViTConfig

from cca_hf import generate_shapes_dataset

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def script(repository):
    path = repository / "scripts" / "benchmark_manipulation.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_methods_in_one_table(script, tmp_path, monkeypatch, capsys):
    (tmp_path / "shapes").mkdir()
    for split, dataset in generate_shapes_dataset(num_images=120, image_size=32, seed=0).items():
        dataset.to_parquet(tmp_path / "shapes" / f"{split}-00000-of-00001.parquet")
    AutoModel.from_config(ViTConfig(image_size=32, patch_size=8, **VIT)).save_pretrained(tmp_path / "vit")
    settings = {"dataset": str(tmp_path / "shapes"), "attributes": ["size", "background"], "use_cpu": True}
    settings |= {"backbone": str(tmp_path / "vit"), "freeze_backbone": True, "cache_tokens": str(tmp_path / "cache")}
    settings |= {"num_train_epochs": 2, "per_device_train_batch_size": 16, "images_per_value": 2, "bf16": False}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings | {"disable_tqdm": True, "eval_strategy": "no"}))
    words = ["--config", str(tmp_path / "settings.yaml"), "--output", str(tmp_path / "out")]
    script.main(words)
    methods = json.loads((tmp_path / "out" / "manipulation.json").read_text())["methods"]
    assert list(methods) == list(script.METHODS)
    assert all(0 < figures["ndcg_target_1_change"]["mean"] <= 1 for figures in methods.values())
    assert {name for name, figures in methods.items() if "off_block_mass" in figures} == {
        "adde-mlp",
        "adde-cross-attention",
    }
    with_prototypes = {name for name, figures in methods.items() if "prototype_cosine" in figures}
    assert with_prototypes == {"cca-proxies", "adde-mlp", "adde-cross-attention"}
    assert methods["cca-centroids"]["ndcg"] != methods["cca-proxies"]["ndcg"]
    printed = capsys.readouterr().out
    assert "chance" in printed and "ADDE, cross-attention" in printed
    assert not list((tmp_path / "out" / "work").iterdir())

    monkeypatch.setattr(script.CCATrainer, "train", lambda *_, **__: pytest.fail("trained again"))
    script.main([*words, "--methods", "cca-centroids"])
    with pytest.raises(ValueError, match=r"cca-seed0\.json was made with the settings .*Give another --output"):
        script.main([*words, "--split", "validation"])
