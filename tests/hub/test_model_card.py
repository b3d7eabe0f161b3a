"""The card of a run: what it says is what was measured, its code runs, and what is missing is left out."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, ViTConfig

from cca_hf.cli.main import main
from cca_hf.evaluation.entanglement.evaluator import entanglement
from cca_hf.evaluation.entanglement.result import EntanglementResult, ReaderEntanglement
from cca_hf.evaluation.results import ResultCard, save_result
from cca_hf.evaluation.retrieval.embeddings import Confusion
from cca_hf.evaluation.retrieval.result import EvaluationResult
from cca_hf.hub.model_card import TEMPLATE, write_model_card
from cca_hf.models.modeling_asen import ASENModel
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.models.modeling_csn import CSNModel
from cca_hf.training.run_record import RunRecord
from cca_hf.visualization import plot_entanglement

from ..rendered import render
from .conftest import VIT


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
    assert "157 images in train" in text and "![Training loss" in text and (folder / "training.png").exists()
    assert "entanglement.png" not in text and "report.png" not in text  # nobody made them
    assert str(folder.parent) not in text


def test_its_metadata_is_what_the_hub_reads(folder):
    write_model_card(folder, model_id="me/cca-shapes", license="apache-2.0")
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
    """As a reader of the card would: the checkpoint by its name, two images of their own."""
    write_model_card(folder)
    random = np.random.default_rng(0)
    for name in ("image.jpg", "other.jpg"):
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
    np.testing.assert_allclose(found[1], found[0][:, 0], atol=2e-5)  # by sentence-transformers, of the first attribute


def test_what_was_measured_later_is_taken_in(folder, capsys):
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, (200, 2))
    features = np.eye(3)[labels].reshape(200, -1)
    found = entanglement(np.stack([features, features], 1), labels, ["shape", "colour"], features)
    found.save_json(folder / "entanglement.json")
    Image.new("RGB", (8, 8)).save(folder / "entanglement.png")
    Image.new("RGB", (8, 8)).save(folder / "report.png")
    replace(found, images=99).save_json(folder / "test_entanglement.json")  # of the training: not shown any more
    other = folder.parent / "one-space"
    other.mkdir()
    shutil.copy(folder / "test_evaluation.json", other)
    assert main(["card", "--model", str(folder), "--name", "me/x", "--compare", f"one space={other}"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "README.md")
    text = (folder / "README.md").read_text()
    assert f"the entanglement is {found.score:.3f} " in text and "(training.png)" in text
    assert "(entanglement.png)" in text and "(report.png)" in text and "On 99 test images" not in text
    assert "| one space |" in text and 'from_pretrained("me/x"' in text


def test_the_entanglement_of_the_training(folder):
    matrix = np.array([[1.0, 0.25], [0.75, 1.0]])
    reader = ReaderEntanglement(matrix, matrix, matrix, matrix, matrix, 0.01)
    result = EntanglementResult(("shape", "colour"), {"linear": reader}, 250, {"shape": 3, "colour": 3})
    result.save_json(folder / "test_entanglement.json")
    plot_entanglement(result).savefig(folder / "test_entanglement.png")
    text = write_model_card(folder).read_text()
    assert "On 250 test images, the entanglement is 0.500 and the informativeness is 1.00 (linear reader)." in text
    assert "| shape | 1.00 | 0.25 |\n| colour | 0.75 | 1.00 |" in text and "(test_entanglement.png)" in text


def test_what_was_not_measured_is_not_told(folder, capsys):
    result = EvaluationResult.load_json(folder / "test_evaluation.json")
    for name in ("run.json", "test_evaluation.json", "trainer_state.json"):
        (folder / name).unlink()
    text = write_model_card(folder).read_text()
    headings = re.findall("^## (.*)$", text, flags=re.MULTILINE)
    assert headings == ["Use", "Attributes", "Limitations", "Citation"]
    assert "| shape |" in text and "No evaluation result is stored with this model." in text
    with pytest.raises(ValueError, match="nothing to compare with"):
        write_model_card(folder, baselines={"other": result})


def test_results_of_version_0_1_have_the_same_card(folder):
    text = write_model_card(folder).read_text()
    path = folder / "test_evaluation.json"
    content = json.loads(path.read_text())
    assert content.pop("card")["title"] in text
    path.write_text(json.dumps(content))  # as 0.1 wrote it
    assert write_model_card(folder).read_text() == text


def test_the_result_of_another_split_is_not_shown(folder):
    """`cca evaluate --output_dir` writes `evaluation.json`, which may be of any data set."""
    text = write_model_card(folder).read_text()
    shutil.copy(folder / "test_evaluation.json", folder / "evaluation.json")
    assert write_model_card(folder).read_text() == text


def test_baselines_must_be_of_the_same_images(folder):
    result = EvaluationResult.load_json(folder / "test_evaluation.json")
    other = EvaluationResult(tuple(replace(each, queries=each.queries + 1) for each in result.attributes))
    with pytest.raises(ValueError, match="cannot be compared"):
        write_model_card(folder, baselines={"other": other})


def test_words_of_others_stay_words(folder):
    """Names and values from a data set, and the names of other trainings."""
    plain = render(write_model_card(folder).read_text().split("---\n", 2)[2])
    odd = ["a|b\nc", "*x* [y](z) ![](.env) <b> `q` _r_ ~~s~~ https://evil.example"]
    seen = [" ".join(words.split()) for words in odd]
    run = RunRecord.load(folder)
    counts, pairs = run.value_counts["shape"], run.confusions["shape"]
    values = {seen_value: 3 for seen_value in odd} | counts
    confused = [Confusion(value=odd[0], taken_for=odd[1], share=0.5, queries=8), *pairs]
    replace(run, dataset=odd[1], value_counts={odd[0]: values, odd[1]: counts}, confusions={odd[0]: confused}).save(
        folder
    )
    result = EvaluationResult.load_json(folder / "test_evaluation.json")
    named = EvaluationResult(
        tuple(replace(each, name=name) for each, name in zip(result.attributes, odd, strict=True))
    )
    save_result(named, folder / "test_evaluation.json")
    found = render(write_model_card(folder, baselines={odd[1]: named}).read_text().split("---\n", 2)[2])
    attributes, measured, settings = found.tables
    assert [row[0] for row in attributes[1:]] == seen and measured[0][1:3] == seen
    assert {len(row) for row in attributes} == {3} and {len(row) for row in measured} == {6}
    assert [row[0] for row in measured[1:]] == ["chance", seen[1], "this model"]
    assert {len(row) for row in settings} == {2}
    assert f"{seen[0]} taken for {seen[1]} (50.0 % of 8)" in found.text
    assert f"{seen[0]} (3), {seen[1]} (3)" in found.text and f"Training data: {seen[1]}" in found.text
    assert found.marks == plain.marks


class ToyConfig(PreTrainedConfig):
    model_type = "toy_classifier"
    backbone_name = "google/vit-base-patch16-224"
    backbone_config = None


class ToyModel(PreTrainedModel):
    """A model without attributes."""

    config_class = ToyConfig
    method = "a toy classifier"
    paper_url = "https://example.com/toy"

    @classmethod
    def usage_example(cls, model_id, config):
        return f"Load {model_id} with `AutoModel`."


class Accuracy:
    def to_dict(self):
        return {"accuracy": 0.875}

    def card(self):
        return ResultCard("Accuracy", "image classification", "87.5 % are correct.", (("accuracy", "top-1", 87.5),))


def test_a_model_without_attributes(folder, tmp_path):
    """Its class writes the head, and its result the rest: a family needs no edit in hub/."""
    AutoConfig.register("toy_classifier", ToyConfig, exist_ok=True)
    AutoModel.register(ToyConfig, ToyModel, exist_ok=True)
    toy = tmp_path / "toy"
    ToyConfig().save_pretrained(toy)
    replace(RunRecord.load(folder), value_counts={}, confusions={}, dataset="me/toys", dataset_on_hub=True).save(toy)
    save_result(Accuracy(), toy / "test_evaluation.json")
    save_result(Accuracy(), toy / "robustness.json")
    Image.new("RGB", (8, 8)).save(toy / "robustness.png")
    text = write_model_card(toy, model_id="me/toy").read_text()
    assert "- **Method**: a toy classifier ([paper](https://example.com/toy))" in text
    assert "- **Backbone**: [google/vit-base-patch16-224]" in text and "Load me/toy with" in text
    assert re.findall("^## (.*)$", text, flags=re.MULTILINE) == ["Use", "Accuracy", "Accuracy", "Training", "Citation"]
    assert text.count("87.5 % are correct.") == 2 and "![Accuracy](robustness.png)" in text
    assert "attribute" not in text and "Please cite [the paper](https://example.com/toy)." in text
    data = ModelCard(text).data
    assert [(each.task_name, each.metric_type, each.metric_value) for each in data.eval_results] == [
        ("image classification", "accuracy", 87.5)
    ] * 2
    assert data.tags == ["cca_hf", "toy_classifier"] and data.base_model == "google/vit-base-patch16-224"


def test_the_method_is_that_of_the_model(tmp_path):
    """The baselines of CCA name their own method and paper, and none borrows the citation of CCA."""
    told = {}
    for name in ("cca", "one_space", "csn", "asen"):
        classes = {"csn": CSNModel, "asen": ASENModel}
        settings = {"condition_embedding": "none"} if name == "one_space" else {}
        model = classes.get(name, CCAModel).from_backbone(ViTConfig(**VIT), ["shape", "colour"], **settings)
        model.save_pretrained(tmp_path / name)
        text = write_model_card(tmp_path / name).read_text()
        told[name] = (re.search(r"\*\*Method\*\*: (.*)", text)[1], "song2023conditional" in text)
    cca, csn, asen = (
        f"([paper](https://arxiv.org/abs/{number}))" for number in ("2307.13254", "1603.07810", "2002.02814")
    )
    assert told == {
        "cca": (f"conditional cross-attention (CCA) {cca}", True),
        "one_space": (f"a single space for all attributes (the baseline of CCA) {cca}", True),
        "csn": (f"a conditional similarity network (CSN) {csn}", False),
        "asen": (f"an attribute-specific embedding network (ASEN) {asen}", False),
    }


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
