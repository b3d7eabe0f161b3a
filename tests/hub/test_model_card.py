"""The card of a run: what it says is what was measured, its code runs, and what is missing is left out."""

import re
import shutil

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from cca_hf.cli.main import main
from cca_hf.evaluation.entanglement.measure import entanglement
from cca_hf.evaluation.retrieval.result import EvaluationResult
from cca_hf.hub.model_card import TEMPLATE, write_model_card
from cca_hf.training.run_record import RunRecord


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "cca-shapes")


def test_the_record_of_the_run(folder):
    record = RunRecord.load(folder)
    assert record.dataset == "my-shapes" and not record.dataset_on_hub
    assert record.splits == {"train": 157, "validation": 22, "test": 45}
    assert sum(record.value_counts["shape"].values()) == 157
    assert record.settings["num_train_epochs"] == 2 and record.settings["temperature"] == 0.1
    assert "cache_tokens" not in record.settings and "output_dir" not in record.settings
    assert record.seconds > 0 and "thread" in record.hardware
    for pairs in record.confusions.values():
        assert all(0 < each.share <= 1 and each.value != each.taken_for for each in pairs)
    record.save(folder)
    assert RunRecord.load(folder) == record


def test_every_figure_is_the_measured_one(folder):
    path = write_model_card(folder, licence="apache-2.0")
    result = EvaluationResult.load_json(folder / "test_evaluation.json")
    text = path.read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    (header,) = [row for row in rows if row[:2] == ["", "shape"]]
    (own,) = [row for row in rows if row[0] == "**this model**"]
    (chance,) = [row for row in rows if row[0] == "chance"]
    for name, scores, levels in [
        *((each.name, each.scores["map"], each.chance["map"]) for each in result.attributes),
        ("mean", result.overall["map"], result.chance_overall["map"]),
        ("macro over values", result.overall["map_macro"], result.chance_overall["map_macro"]),
    ]:
        place = header.index(name)
        assert (own[place], chance[place]) == (f"{100 * scores:.1f}", f"{100 * levels:.1f}")
    assert "157 pictures in train" in text and "![Training loss" in text and (folder / "training.png").exists()
    assert "entanglement.png" not in text and "report.png" not in text  # nobody made them
    assert str(folder.parent) not in text


def test_its_metadata_is_what_the_hub_reads(folder):
    write_model_card(folder, model_id="me/cca-shapes", licence="apache-2.0")
    data = ModelCard.load(folder / "README.md").data
    result = EvaluationResult.load_json(folder / "test_evaluation.json")
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "transformers",
        "image-feature-extraction",
        "apache-2.0",
    )
    assert data.base_model is None and data.datasets is None  # a ViT from scratch, and a folder: no ids
    assert data.model_name == "cca-shapes"
    figures = {each.metric_type: each.metric_value for each in data.eval_results}
    assert figures["map"] == pytest.approx(100 * result.overall["map"], abs=0.005)
    assert set(figures) == {"map", "map_macro", "map_shape", "map_colour"}
    assert {each.dataset_split for each in data.eval_results} == {"test"}


def test_its_code_runs(folder, tmp_path, monkeypatch):
    """As a reader of the card would: the checkpoint by its name, two pictures of their own."""
    write_model_card(folder)
    random = np.random.default_rng(0)
    for name in ("picture.jpg", "other.jpg"):
        Image.fromarray(random.integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    assert [len([line for line in block.splitlines() if line.strip()]) for block in blocks] == [5, 4]
    found = []
    for block in blocks:
        names: dict = {}
        exec(compile(block, "README.md", "exec"), names)
        found.append(names["embeddings"])
    assert found[0].shape == (2, 2, 32)
    np.testing.assert_allclose(found[1], found[0][:, 0], atol=1e-6)  # by sentence-transformers, of the first attribute


def test_what_was_measured_later_is_taken_in(folder, capsys):
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, (150, 2))
    features = np.eye(3)[labels].reshape(150, -1)
    found = entanglement(np.stack([features, features], 1), labels, ["shape", "colour"], features)
    found.save_json(folder / "entanglement.json")
    Image.new("RGB", (8, 8)).save(folder / "entanglement.png")
    Image.new("RGB", (8, 8)).save(folder / "report.png")
    other = folder.parent / "one-space"
    other.mkdir()
    shutil.copy(folder / "test_evaluation.json", other)
    assert main(["card", "--model", str(folder), "--name", "me/x", "--compare", f"one space={other}"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "README.md")
    text = (folder / "README.md").read_text()
    assert f"finds {found.score:.3f} of what" in text
    assert "(entanglement.png)" in text and "(report.png)" in text
    assert "| one space |" in text and 'from_pretrained("me/x"' in text


def test_what_was_not_measured_is_not_told(folder, capsys):
    result = EvaluationResult.load_json(folder / "test_evaluation.json")
    for name in ("run.json", "test_evaluation.json", "trainer_state.json"):
        (folder / name).unlink()
    text = write_model_card(folder).read_text()
    for heading in ("How well it finds", "How it was trained", "Citation", "Limits", "What it knows"):
        assert (f"## {heading}" in text) == (heading not in ("How well it finds", "How it was trained"))
    assert "| shape |" in text and "Nothing of it has been measured" in text
    with pytest.raises(ValueError, match="nothing to compare with"):
        write_model_card(folder, baselines={"other": result})


def test_single_queries_are_its_examples(folder):
    (folder / "examples").mkdir()
    for name in ("1.jpg", "1-neighbours.png"):
        Image.new("RGB", (8, 8)).save(folder / "examples" / name)
    (example,) = ModelCard.load(write_model_card(folder)).data.to_dict()["widget"]
    assert example == {
        "src": "examples/1.jpg",
        "example_title": "Query 1",
        "output": {"url": "examples/1-neighbours.png"},
    }


def test_what_is_no_checkpoint(tmp_path, folder, capsys):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json: a model card is written beside a checkpoint"):
        write_model_card(tmp_path)
    assert main(["card", "--model", str(folder), "--compare", "nothing"]) == 2
    assert "NAME=FOLDER" in capsys.readouterr().err


def test_the_template_is_shipped(repository):
    assert (repository / "model_cards" / "template.md").read_text() == TEMPLATE.read_text()
