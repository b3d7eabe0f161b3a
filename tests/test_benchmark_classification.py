"""Runs `scripts/benchmark_classification.py` on drawn shapes: one table, and no training is repeated."""

import json

import benchmark_classification as script
import pytest
import torch
from transformers import AutoModelForImageClassification

from cca_hf import AttributeDataset, generate_shapes_dataset
from cca_hf.data.benchmarks.annotations import Annotations, to_splits
from cca_hf.models.configuration_crossvit import CrossViTConfig
from cca_hf.recipes.backbone_config import read_backbone_config


def test_crossvit_and_vit_have_as_many_parameters():
    sizes = {}
    for method in ("vit", "crossvit"):
        config = read_backbone_config(script.METHODS[method].flags[1])
        config.num_labels = 50
        with torch.device("meta"):
            sizes[method] = AutoModelForImageClassification.from_config(config).num_parameters()
    assert isinstance(config, CrossViTConfig)
    assert abs(sizes["crossvit"] / sizes["vit"] - 1) < 0.02


def test_one_table_and_no_run_twice(tmp_path, monkeypatch, capsys):
    (tmp_path / "shapes").mkdir()
    for split, dataset in generate_shapes_dataset(num_images=40, image_size=32, seed=0).items():
        dataset.to_parquet(tmp_path / "shapes" / f"{split}-00000-of-00001.parquet")
    words = ["--dataset", str(tmp_path / "shapes"), "--label_column", "shape", "--backbone", "none", "--output"]
    words += [str(tmp_path / "out"), "--seeds", "3", "--use_cpu", "--disable_tqdm", "true", "--eval_strategy", "no"]
    words += ["--max_steps", "1", "--methods", "vit", "glca"]
    script.main(words)
    content = json.loads((tmp_path / "out" / "classification.json").read_text())
    assert content["baselines"]["chance"]["accuracy"] == 1 / 6  # shapes
    vit, glca = content["methods"]["vit"], content["methods"]["glca"]
    assert 0 <= vit["metrics"]["accuracy"]["mean"] <= 1
    layer = 12 * 96**2 + 13 * 96  # with norms and biases, as a layer of the ViT
    assert glca["parameters"] - vit["parameters"] > layer
    lines = (tmp_path / "out" / "classification.md").read_text().splitlines()
    titles = ["chance", "most frequent class", "ViT", "ViT + GLCA"]
    assert [line.split("|")[1].strip() for line in lines[2:]] == titles
    assert "most frequent class" in capsys.readouterr().out
    assert not list((tmp_path / "out" / "work").iterdir())
    monkeypatch.setattr(script, "run_training", lambda _: pytest.fail("trained again"))
    script.main(words)
    with pytest.raises(ValueError, match=r"vit-seed3\.json was made with the settings .*Give another --output"):
        script.main([*words, "--head_learning_rate", "1e-2"])


def test_the_most_frequent_class_of_the_training_images_is_predicted(tmp_path):
    labels = {"train": [0, 1, 1, 2], "validation": [0], "test": [1, 2, 2, 0]}
    rows = {split: Annotations([""] * len(ids), [[(0, each)] for each in ids]) for split, ids in labels.items()}
    classes = ["a", "b", "c", "d", "e", "f", "g", "h"]
    data = AttributeDataset(to_splits(rows, {"label": classes}, tmp_path), {"label": classes})
    baselines = script.rows_without_training(data)
    assert baselines["chance"] == {"accuracy": 1 / 8, "top_5_accuracy": 5 / 8, "macro_recall": 1 / 8}
    assert baselines["most frequent class"] == {"accuracy": 1 / 4, "top_5_accuracy": 1, "macro_recall": 1 / 3}
