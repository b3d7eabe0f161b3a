"""`cca evaluate --manipulation`: what it prints and writes, with its own queries and with those of the data set."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import ViTConfig

from cca_hf.cli.main import main
from cca_hf.evaluation.manipulation_result import ManipulationResult
from cca_hf.models.modeling_cca import CCAModel

VALUES = {"colour": ["blue", "green", "red"], "shape": ["round", "square"]}
CARD = """---
configs:
- {"config_name": "default", "data_files": [{"split": "test", "path": "data/test.parquet"}], "default": true}
- {"config_name": "changes", "data_files": [{"split": "test", "path": "changes/test.parquet"}]}
---
"""


@pytest.fixture(scope="module")
def shoes(tmp_path_factory) -> Path:
    """24 images with the values of VALUES, and two published changes of their colour."""
    folder = tmp_path_factory.mktemp("data") / "shoes"
    (folder / "data").mkdir(parents=True)
    (folder / "changes").mkdir()
    (folder / "README.md").write_text(CARD)
    pixels = np.random.default_rng(0).integers(256, size=(24, 32, 32, 3), dtype=np.uint8)
    rows = {
        "image": [PILImage.fromarray(each) for each in pixels],
        "colour": [row % 3 for row in range(24)],
        "shape": [row % 2 for row in range(24)],
        "file_name": [f"{row}.jpg" for row in range(24)],
    }
    labels = {name: ClassLabel(names=values) for name, values in VALUES.items()}
    features = Features(image=Image(), **labels, file_name=Value("string"))
    Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / "test.parquet")
    changes = {"reference": ["0.jpg", "4.jpg"], "colour": ["red", "blue"], "shape": [None, None]}
    text = Features({name: Value("string") for name in changes})
    Dataset.from_dict(changes, features=text).to_parquet(folder / "changes" / "test.parquet")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    backbone = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    folder = tmp_path_factory.mktemp("model") / "out"
    CCAModel.from_backbone(backbone, VALUES).save_pretrained(folder)
    return folder


@pytest.fixture
def evaluate(shoes, checkpoint, capsys):
    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["evaluate", "--model", str(checkpoint), "--dataset", str(shoes), *map(str, words)])
        return status, *capsys.readouterr()

    return run


def test_tables_files_and_report(evaluate, tmp_path):
    status, printed, _ = evaluate("--manipulation", "--output_dir", tmp_path, "--report")
    assert status == 0
    result = ManipulationResult.load_json(tmp_path / "manipulation.json")
    assert printed.endswith(f"\n\n{result.table()}\n") and printed.startswith("% (chance)")
    # every image has one other value of its shape, and two of its colour; three changes need three attributes
    assert {number: part.queries for number, part in result.by_changes.items()} == {1: 72, 2: 48}
    assert result.images == 24 and result.overall.scores["top_50"] == 1
    assert json.loads((tmp_path / "manipulation.json").read_text())["card"]["title"] == "Attribute manipulation"
    assert "<h2>Changed attributes</h2>" in (tmp_path / "report.html").read_text()
    status, printed, _ = evaluate("--manipulation", "--json", "--num_changes", 1, "--max_queries", 10, "--keep", 0.5)
    metrics = json.loads(printed)
    assert status == 0 and {"map", "top_10", "chance_ndcg", "ndcg_target_colour", "leakage"} <= metrics.keys()
    assert "top_10_1_change" in metrics and "top_10_2_changes" not in metrics


def test_the_queries_of_the_data_set(evaluate, tmp_path):
    status, printed, _ = evaluate("--manipulation", "--config_name", "changes", "--output_dir", tmp_path)
    assert status == 0 and "one change" in printed
    result = ManipulationResult.load_json(tmp_path / "manipulation.json")
    assert result.overall.queries == 2 and list(result.by_attribute) == ["colour"]


def test_wrong_words(evaluate):
    status, _, error = evaluate("--keep", 0.5)
    assert status == 2 and "--keep needs --manipulation" in error
    status, _, error = evaluate("--config_name", "changes")
    assert status == 1 and "contains changes: add --manipulation" in error
    status, _, error = evaluate("--manipulation", "--num_changes", 3)
    assert status == 1 and "num_changes must be numbers from 1 to 2, the attributes; got [3]" in error
