"""The `evaluate` modules: loaded by path as a user does, equal to the package, and whole as a Space of the Hub."""

import importlib.util
import re
from pathlib import Path

import evaluate
import numpy as np
import pytest
import yaml

from cca_hf import evaluate_embeddings
from cca_hf.evaluation import triplet_accuracy

METRICS = Path(__file__).resolve().parent.parent / "metrics"
NAMES = sorted(path.name for path in METRICS.iterdir() if path.is_dir())
VALUES = {"colour": list("012345"), "shape": list("012")}


@pytest.fixture(scope="module")
def attribute_map() -> evaluate.EvaluationModule:
    return evaluate.load(str(METRICS / "attribute_map"))


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    labels = np.stack([generator.integers(-1, 6, 60), generator.integers(-1, 3, 60)], axis=1)
    return generator.normal(size=(60, 2, 5)).astype(np.float32), labels, generator.integers(-1, 20, 60)


def test_attribute_map_equals_the_package(attribute_map, arrays):
    embeddings, labels, groups = arrays
    result = attribute_map.compute(predictions=embeddings, references=labels, attributes=list(VALUES), groups=groups)
    expected = evaluate_embeddings(embeddings, labels, VALUES, groups=groups).metrics()
    assert result == pytest.approx(expected, abs=1e-12)
    assert {"map", "map_weighted", "chance_map", "map_colour", "chance_recall@5_shape"} < set(result)


def test_in_batches_and_without_names(attribute_map, arrays):
    embeddings, labels, _ = arrays
    for start in range(0, 60, 25):
        attribute_map.add_batch(predictions=embeddings[start : start + 25], references=labels[start : start + 25])
    expected = evaluate_embeddings(embeddings, labels, dict(zip("01", VALUES.values(), strict=True))).metrics()
    assert attribute_map.compute() == pytest.approx(expected, abs=1e-12)


def test_one_attribute_and_a_gallery(attribute_map, arrays):
    embeddings, labels, groups = arrays
    result = attribute_map.compute(
        predictions=embeddings[:20, 0],
        references=labels[:20, 0],
        attributes=["colour"],
        groups=groups[:20],
        gallery_predictions=embeddings[20:, 0],
        gallery_references=labels[20:, 0],
        gallery_groups=groups[20:],
    )
    gallery = (embeddings[20:, :1], labels[20:, :1], groups[20:])
    expected = evaluate_embeddings(
        embeddings[:20, :1], labels[:20, :1], {"colour": VALUES["colour"]}, groups=groups[:20], gallery=gallery
    )
    assert result == pytest.approx(expected.metrics(), abs=1e-12)


def test_triplet_accuracy_equals_the_package():
    module = evaluate.load(str(METRICS / "triplet_accuracy"))
    generator = np.random.default_rng(1)
    embeddings = generator.normal(size=(50, 3, 4)).astype(np.float32)
    embeddings[7, 1] = embeddings[7, 2]  # a tie
    conditions = generator.integers(0, 2, 50)
    result = module.compute(predictions=embeddings, references=[["closure", "heel"][each] for each in conditions])
    rows = np.arange(150).reshape(50, 3)
    assert result == triplet_accuracy(embeddings.reshape(150, 4), rows, conditions, ["closure", "heel"]).metrics()
    assert result["triplet_ties"] == 1 / 50


def test_bad_input_says_what_was_given(attribute_map, arrays):
    with pytest.raises(ValueError, match=r"references are of 2 attributes, but attributes names 1: \['colour'\]"):
        attribute_map.compute(predictions=arrays[0], references=arrays[1], attributes=["colour"])
    module = evaluate.load(str(METRICS / "triplet_accuracy"))
    with pytest.raises(ValueError, match=r"anchor, close, far; got \(1, 2, 2\)"):
        module.compute(predictions=[[[1.0, 0], [0, 1]]], references=["heel"])


@pytest.mark.parametrize("name", NAMES)
def test_the_card_shows_what_happens(name, monkeypatch, capsys):
    """Its snippet, run where the name is a folder; and the results that the module's own example prints."""
    monkeypatch.chdir(METRICS)
    (snippet,) = re.findall(r"```python\n(.*?)```", (METRICS / name / "README.md").read_text(), re.DOTALL)
    exec(compile(snippet, f"{name}/README.md", "exec"), {})
    first, second = map(float, capsys.readouterr().out.split())
    assert (first, second) == {"attribute_map": (1.0, pytest.approx(11 / 18)), "triplet_accuracy": (0.5, 1.0)}[name]
    documented = evaluate.load(name).inputs_description
    lines = [line.strip() for line in documented.partition("Examples:")[2].splitlines() if line.strip()]
    *code, printed = [line.removeprefix(">>> ") for line in lines]
    names: dict[str, object] = {"evaluate": evaluate}
    exec("\n".join(code[:-1]), names)
    assert repr(eval(code[-1], names)) == printed


@pytest.mark.parametrize("name", NAMES)
def test_whole_as_a_space(name):
    folder = METRICS / name
    _, metadata, _ = (folder / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(metadata)
    assert fields["sdk"] == "gradio" and set(fields["tags"]) == {"evaluate", "metric"}
    assert (folder / fields["app_file"]).is_file() and (folder / f"{name}.py").is_file()
    assert len(fields["title"]) > 3 and len(fields["description"]) < 200
    assert {"cca_hf", "evaluate>=0.4.6"} == set((folder / "requirements.txt").read_text().split())


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_the_space_computes(name):
    gradio = pytest.importorskip("gradio")
    spec = importlib.util.spec_from_file_location(f"{name}_app", METRICS / name / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    predictions, references = (field.value for field in app.interface.input_components)
    assert {"attribute_map": "map", "triplet_accuracy": "triplet_accuracy"}[name] in app.compute(
        predictions, references
    )
    with pytest.raises(gradio.Error, match="Expecting"):
        app.compute("[[", references)
