"""transformers' example script `run_image_classification.py`, byte for byte, trains and evaluates our classifiers.

Only transformers is imported there: the code of the models comes from their checkpoints.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, PreTrainedModel, ViTConfig, pipeline

from cca_hf.models import backbones, conversion_crossvit
from cca_hf.models.configuration_crossvit import CrossViTConfig
from cca_hf.models.modeling_crossvit import CrossViTForImageClassification
from cca_hf.models.modeling_dcal import DCALConfig, DCALForImageClassification

from .archive import EXAMPLE_SHA256, NoArchiveError, example_script

# The script loads it by this name. On the Hub it is a wrapper of scikit-learn; a folder of this name comes first.
ACCURACY = """
import datasets, evaluate

class Accuracy(evaluate.Metric):
    def _info(self):
        features = datasets.Features({name: datasets.Value("int32") for name in ("predictions", "references")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"accuracy": sum(map(int.__eq__, map(int, predictions), map(int, references))) / len(references)}
"""
COLOURS = {"blue": (40, 60, 200), "red": (200, 40, 40)}


@pytest.fixture(scope="module")
def script() -> Path:
    try:
        path = example_script()
    except NoArchiveError as error:
        pytest.skip(str(error))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == EXAMPLE_SHA256
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images of two colours with noise in `train` and `validation`, and the metric."""
    root = tmp_path_factory.mktemp("example")
    generator = np.random.default_rng(0)
    for split, count in {"train": 16, "validation": 8}.items():
        for colour, levels in COLOURS.items():
            (root / split / colour).mkdir(parents=True)
            for number in range(count):
                noisy = np.clip(generator.normal(levels, 40, (60, 70, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(root / split / colour / f"{number}.png")
    (root / "accuracy").mkdir()
    (root / "accuracy" / "accuracy.py").write_text(ACCURACY)
    return root


def crossvit(folder: Path) -> CrossViTForImageClassification:
    config = CrossViTConfig(
        image_size=48, hidden_sizes=[16, 24], num_attention_heads=[2, 2], num_layers=[1, 2], num_blocks=2, num_labels=5
    )
    conversion_crossvit.make_image_processor(config).save_pretrained(folder)
    return CrossViTForImageClassification(config)


def dcal(folder: Path) -> DCALForImageClassification:
    backbone = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    backbones.make_image_processor(32).save_pretrained(folder)
    return DCALForImageClassification(DCALConfig(backbone_config=backbone, num_labels=5))


@pytest.mark.parametrize("make_model", [crossvit, dcal])
def test_the_script_trains_and_evaluates(make_model, script, folder, tmp_path):
    """It replaces the heads of 5 classes by heads of 2 classes; the stock pipeline runs the result."""
    torch.manual_seed(0)
    model: PreTrainedModel = make_model(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    flags = {
        "model_name_or_path": tmp_path / "model",
        "train_dir": folder / "train",
        "validation_dir": folder / "validation",
        "output_dir": tmp_path / "out",
        "remove_unused_columns": False,
        "learning_rate": 3e-3,
        "num_train_epochs": 8,
        "per_device_train_batch_size": 8,
        "save_strategy": "no",
        "report_to": "none",
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    words += ["--trust_remote_code", "--ignore_mismatched_sizes", "--do_train", "--do_eval", "--use_cpu"]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run_example.py")), str(script), *words],
        cwd=folder,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["eval_accuracy"] == 1 and results["train_loss"] < 0.7
    trained = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert type(trained) is type(model) and trained.config.id2label == {0: "blue", 1: "red"}
    classify = pipeline("image-classification", model=str(tmp_path / "out"))
    for colour, levels in COLOURS.items():
        assert classify(Image.new("RGB", (60, 70), levels))[0]["label"] == colour
