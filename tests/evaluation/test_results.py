"""The protocol of results: metrics, table, notebook table, card, and one file for each."""

import json
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest

from cca_hf.data.coverage import Coverage
from cca_hf.evaluation import EvaluationResult, TripletResult, evaluate_embeddings, triplet_accuracy
from cca_hf.evaluation.entanglement.result import EntanglementResult, ReaderEntanglement
from cca_hf.evaluation.results import Result, load_result, save_result
from cca_hf.evaluation.retrieval.result import MEASURE_NAMES

# as version 0.1 wrote it
OLD_TRIPLETS = {
    "conditions": [{"name": "heel", "triplets": 4, "correct": 3, "ties": 1}],
    "left_out": 0,
    "metrics": {"triplet_accuracy": 0.75},
}
OLD_EVALUATION = {
    "attributes": [
        {
            "name": "colour",
            "queries": 2,
            "candidates": 1.0,
            "queries_without_relevant": 0,
            "scores": {"map": 1.0, "map_macro": 1.0, "recall@1": 1.0, "r_precision": 1.0},
            "chance": {"map": 1.0, "map_macro": 1.0, "recall@1": 1.0, "r_precision": 1.0},
            "values": [{"name": "red", "queries": 2, "map": 1.0, "chance_map": 1.0}],
        }
    ],
    "unlabelled": [],
    "metrics": {"map": 1.0},
}
_OLD_MATRIX = [[0.9, None], [0.25, 0.8]]
OLD_ENTANGLEMENT = {
    "attributes": ["colour", "shape"],
    "images": 100,
    "values": {"colour": 3, "shape": 2},
    "readers": {
        name: {
            "accuracy": _OLD_MATRIX,
            "floor": _OLD_MATRIX,
            "ceiling": _OLD_MATRIX,
            "matrix": _OLD_MATRIX,
            "spread": _OLD_MATRIX,
            "score_spread": 0.01,
        }
        for name in ("linear", "neighbours")
    },
    "metrics": {"entanglement": 0.25},
}


def retrieval(noise: float = 0.5, seed: int = 0) -> EvaluationResult:
    generator = np.random.default_rng(seed)
    labels = np.stack([np.arange(60) % 3, np.arange(60) % 2], axis=1)
    exact = np.stack([np.eye(3)[labels[:, 0]], np.eye(3)[labels[:, 1]]], axis=1)
    attributes = {"colour": ["red", "green", "blue"], "<shape>": ["circle", "square"]}
    return evaluate_embeddings(exact + noise * generator.normal(size=exact.shape), labels, attributes)


def triplets() -> TripletResult:
    return triplet_accuracy([[1, 0], [1, 0.1], [0, 1]], [[0, 1, 2], [0, 2, 1], [2, 1, 1]], [0, 0, 1], ["heel", "sole"])


def entangled() -> EntanglementResult:
    matrix = np.array([[0.9, np.nan], [0.25, 0.8]])
    reader = ReaderEntanglement(matrix, matrix, matrix, matrix, matrix, 0.01)
    return EntanglementResult(("colour", "shape"), {"linear": reader, "neighbours": reader}, 1234, {"colour": 3})


RESULTS = {"retrieval": retrieval, "triplets": triplets, "entanglement": entangled}


@pytest.mark.parametrize("kind", RESULTS)
def test_every_result_has_the_protocol(kind, tmp_path):
    result: Result = RESULTS[kind]()
    assert result.primary_metric in result.metrics()
    path = save_result(result, tmp_path / "new" / "result.json")
    content = json.loads(path.read_text())
    card = result.card()
    assert content["card"] == {
        "title": card.title,
        "task": card.task,
        "markdown": card.markdown,
        "metrics": [list(each) for each in card.metrics],
    }
    again = load_result(path, type(result))
    assert again.to_dict() == result.to_dict() and again.card() == card
    assert again.table() == result.table()
    np.testing.assert_equal(type(result).load_json(result.save_json(path)).to_dict(), result.to_dict())


@pytest.mark.parametrize("kind", RESULTS)
def test_the_notebook_table_has_the_cells_of_the_table(kind):
    result = RESULTS[kind]()
    html, table = result._repr_html_(), result.as_table(2)
    cells = re.findall(r"<t[hd] [^>]*>(.*?)</t[hd]>", html)
    assert list(map(unescape, cells)) == [
        *table.header,
        *(cell for part in table.sections for row in part for cell in row),
    ]
    assert "<shape>" not in html and "<script" not in html
    assert [unescape(note) for note in re.findall(r"<p>(.*?)</p>", html)] == list(table.notes)
    assert repr(result) == f"{type(result).__name__}\n{result.table()}"


def test_the_best_attribute_is_bold_in_a_notebook():
    result = retrieval()
    bold = re.findall(r"font-weight: bold[^>]*>(.*?)<", result._repr_html_())
    table = result.as_table(2)
    expected = []
    for place, row in enumerate(table.sections[0]):
        for measure in result[row[0]].scores:
            column = table.header.index(MEASURE_NAMES.get(measure, measure))
            others = [each.scores[measure] for each in result.attributes]
            if others.index(max(others)) == place:
                expected.append(row[column])
    assert bold == expected and len(bold) == len(result["colour"].scores)
    single = replace(result, attributes=result.attributes[:1])
    assert "bold" not in single._repr_html_()


def test_entanglement_is_a_heat_map_in_a_notebook():
    cells = re.findall(
        r'<td style="text-align: right(?:; background-color: (.*?))?">(.*?)</td>', entangled()._repr_html_()
    )
    expected = [("rgba(70, 130, 220, 0.63)", "0.90"), ("", "-"), ("rgba(240, 140, 40, 0.17)", "0.25")]
    expected.append(("rgba(70, 130, 220, 0.56)", "0.80"))
    assert cells == expected * 2


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (EvaluationResult, OLD_EVALUATION),
        (TripletResult, OLD_TRIPLETS),
        (EntanglementResult, OLD_ENTANGLEMENT),
    ],
)
def test_files_of_version_0_1_load(kind, content, tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(content))
    result = kind.load_json(path)
    name, value = next(iter(content["metrics"].items()))
    assert result.metrics()[name] == pytest.approx(value)
    assert result.card().title
    written = [key for key in result.to_dict() if key in content]
    assert written == list(content)  # the keys stay in this order


def test_the_card_of_a_retrieval():
    result, baseline = retrieval(0.3), retrieval(2.0)
    lines = result.card({"one space": baseline}).markdown.splitlines()
    assert lines[0].startswith(
        "The model was evaluated once on the 60-image test split, which was not used for model selection."
    )
    header, rule, chance, other, own = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:7])
    assert header == ["", "colour", "&#60;shape&#62;", "mean", "query-weighted", "macro over values"]
    assert rule == ["---"] * 6
    for row, figures, each in (
        (chance, result.chance_overall, [attribute.chance for attribute in result.attributes]),
        (other, baseline.overall, [attribute.scores for attribute in baseline.attributes]),
        (own, result.overall, [attribute.scores for attribute in result.attributes]),
    ):
        expected = [*(scores["map"] for scores in each), *(figures[n] for n in ("map", "map_weighted", "map_macro"))]
        assert row[1:] == [f"{100 * figure:.1f}" for figure in expected]
    assert [row[0] for row in (chance, other, own)] == ["chance", "one space", "**this model**"]
    _, weakest = min((each.scores["map"] - each.chance["map"], each.name) for each in result.attributes)
    assert weakest == "<shape>"
    assert lines[8].startswith("The attribute least above chance is &#60;shape&#62;, with a mAP of ")
    metrics = {metric: (title, value) for metric, title, value in result.card().metrics}
    assert list(metrics) == ["map", "map_macro", "map_colour", "map_<shape>"]
    assert metrics["map"] == ("mAP, mean of the attributes", round(100 * result.overall["map"], 2))
    assert "Subset" not in result.card().markdown
    subset = replace(result, coverage=Coverage(60, 80)).card().markdown
    assert "**Subset**: 60 of 80 images found" in subset


def test_the_other_cards():
    card = triplets().card()
    assert "3 test triplets" in card.markdown and "| heel | 2 | 50.0 | 0 |" in card.markdown
    assert card.metrics[0] == ("triplet_accuracy", "triplet accuracy, all triplets", 33.33)
    assert "**A subset: 7 of 10 triplets" in replace(triplets(), left_out=7).card().markdown
    text = entangled().card().markdown
    assert "| colour | 0.90 | &#45; |\n| shape | 0.25 | 0.80 |" in text
    assert "The entanglement by reader: linear reader 0.250, nearest neighbours 0.250." in text
    assert (
        "On 1,234 test images" in text
        and "the entanglement is 0.250 " in text
        and "the informativeness is 0.85 " in text
    )
