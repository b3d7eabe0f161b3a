"""Fill-in-the-blank accuracy, compatibility AUC and recall, on items whose right answers are known."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from sklearn.metrics import roc_auc_score

from cca_hf.data.outfits import LabelledOutfit, OutfitDataset, Question
from cca_hf.evaluation.outfit_result import Figure, OutfitResult
from cca_hf.evaluation.outfits import (
    auc,
    category_frequency,
    chance,
    evaluate_outfits,
    outfit_distance,
    pair_distance,
    similarity,
)

# style of an item: its letter; category: its number
IDS = ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2", "d2"]
FEATURES = np.array(["abcd".index(item[0]) for item in IDS])[:, None] == np.arange(4)


@pytest.fixture(scope="module")
def data() -> OutfitDataset:
    features = Features(
        id=Value("string"), image=Image(decode=False), category=ClassLabel(names=["bag", "hat", "shoe"])
    )
    columns = {"id": IDS, "image": [None] * len(IDS), "category": [int(item[1]) for item in IDS]}
    questions = {
        "same_category": [
            Question(("a0", "a1"), ("a2", "b2", "c2"), answer=0),
            Question(("b1",), ("c0", "a0", "b0"), answer=2),
        ],
        "random": [Question(("a0", "a1"), ("a2", "b2"), answer=0), Question(("c0", "c1"), ("a2", "c2"), answer=0)],
    }
    labelled = [
        LabelledOutfit(("a0", "a1", "a2"), True),
        LabelledOutfit(("b0", "b1"), True),
        LabelledOutfit(("a0", "b1"), False),
        LabelledOutfit(("c0", "b1"), False),
    ]
    outfits = {
        "train": [("a0", "a1"), ("b0", "b1"), ("c0", "c2")],
        "test": [("a0", "a1", "a2"), ("b0", "b1", "b2"), ("c0", "c1", "c2"), ("c0", "d2")],
    }
    return OutfitDataset(
        Dataset.from_dict(columns, features=features), outfits, {"test": questions}, {"test": labelled}
    )


def test_the_measures_by_hand(data):
    result = evaluate_outfits(data, "test", similarity(FEATURES), tops=(1, 2))
    metrics = result.metrics()
    assert metrics["fill_in_the_blank_same_category"] == 1.0
    assert metrics["fill_in_the_blank_random"] == 0.5  # the answer of the last question is of another style
    assert metrics["fill_in_the_blank"] == 0.75
    assert metrics["compatibility_auc"] == 1.0
    # blanks: a2 and b0 are nearest; a2 beside c0 and c1 is as far as b2 and d2, behind c2: 0 of 1, and 1/3 of 2
    assert metrics["recall_at_1"] == pytest.approx(2 / 3)
    assert metrics["recall_at_2"] == pytest.approx((2 + 1 / 3) / 3)
    assert metrics["chance_recall_at_1"] == pytest.approx((1 / 4 + 1 / 3 + 1 / 4) / 3)
    assert [figure.count for figure in result.figures.values()] == [2, 2, 4, 3, 3]


def test_without_knowledge_every_measure_is_its_chance(data):
    result = evaluate_outfits(data, "test", chance, tops=(1, 3))
    for name, figure in result.figures.items():
        assert figure.value == pytest.approx(figure.chance), name
    assert result.figures["fill_in_the_blank_same_category"].chance == pytest.approx(1 / 3)


def test_the_frequency_of_categories_by_hand(data):
    distance = category_frequency(data)
    bag, hat, shoe = (data.rows([item]) for item in ("a0", "a1", "a2"))
    candidates = data.rows(["c0", "c1", "c2"])
    # of three outfits with a bag, two have a hat and one has a shoe; none has two bags
    assert distance(bag, candidates).tolist() == pytest.approx([0, -2 / 3, -1 / 3])
    assert distance(np.concatenate([bag, shoe]), candidates).tolist() == pytest.approx([-1 / 2, -1 / 3, -1 / 6])
    assert distance(hat, candidates).tolist() == [-1, 0, 0]


def test_auc_equals_that_of_scikit_learn():
    random = np.random.default_rng(0)
    for decimals in (1, 8):  # with ties, and without
        scores = random.normal(size=500).round(decimals)
        labels = random.random(500) < 0.4
        assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
        counts = random.integers(0, 3, 500)
        expected = roc_auc_score(labels, scores, sample_weight=counts)
        assert auc(scores, labels, counts) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="needs compatible and incompatible outfits; got only one of them"):
        auc(scores, np.ones(500))


def test_pair_distance_by_loops(data):
    random = np.random.default_rng(1)
    features, weights = random.normal(size=(10, 5)).astype(np.float32), random.normal(size=(3, 3, 5))
    outfit, candidates = data.rows(["a0", "b2"]), data.rows(["c1", "d2", "c0"])
    expected = [
        np.mean(
            [
                sum((weights[data.category_ids[i], data.category_ids[s]] * (features[i] - features[s])) ** 2)
                for i in outfit
            ]
        )
        for s in candidates
    ]
    found = pair_distance(features, data.category_ids, weights)(outfit, candidates)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_intervals_draw_the_questions_of_an_outfit_together(data):
    right, wrong = Question(("a0",), ("a1", "b1"), 0), Question(("b0",), ("a1", "b1"), 0)
    alike = OutfitDataset(data.items, data.outfits, {"test": {"random": [right] * 50 + [wrong] * 50}})
    figure = evaluate_outfits(alike, "test", similarity(FEATURES)).figures["fill_in_the_blank_random"]
    assert (figure.value, figure.low, figure.high) == (0.5, 0, 1)  # two outfits, not a hundred questions


def test_a_result_is_kept_as_json_and_shown_as_a_table(data, tmp_path):
    result = evaluate_outfits(data, "test", similarity(FEATURES), tops=(1,))
    assert OutfitResult.load_json(result.save_json(tmp_path / "result.json")) == result
    lines = OutfitResult("test", {"compatibility_auc": Figure(0.9, 0.8, 0.95, 0.5, 1200)}).table().splitlines()
    assert lines[2].split() == ["compatibility", "AUC", "90.0", "80.0", "-", "95.0", "50.0", "1,200"]
    assert result.card().metrics[0] == (
        "fill_in_the_blank_same_category",
        "fill in the blank, wrong: same category",
        100.0,
    )
    assert set(result.intervals()) == {f"{name}_interval_{end}" for name in result.figures for end in ("low", "high")}


def test_recall_within_another_column(data):
    finer = OutfitDataset(
        data.items.add_column("kind", [item[0] in "ab" for item in IDS]), data.outfits, data.questions
    )
    assert evaluate_outfits(finer, "test", chance, within="kind", tops=(1,)).metrics()["recall_at_1"] == pytest.approx(
        (1 / 4 + 1 / 5 + 1 / 6) / 3
    )
    with pytest.raises(ValueError, match=r"no column 'kinds' \(did you mean 'kind'\?\)"):
        evaluate_outfits(finer, "test", chance, within="kinds")


def test_what_cannot_be_measured_is_refused(data):
    with pytest.raises(ValueError, match=r"an outfit of 1 item\(s\) has no distance: it needs two items"):
        outfit_distance(data.rows(["a0"]), chance)
    with pytest.raises(ValueError, match="the split 'train' has no fill-in-the-blank questions"):
        evaluate_outfits(data, "train", chance)
    with pytest.raises(ValueError, match=r"no split 'tests' \(did you mean 'test'\?\)"):
        evaluate_outfits(data, "tests", chance)
    with pytest.raises(ValueError, match="3 of 3 distances are not finite"):
        evaluate_outfits(data, "test", lambda outfit, candidates: np.full(len(candidates), np.nan))
    with pytest.raises(ValueError, match=r"a distance is a number for each of 3 candidates; got the shape \(1,\)"):
        evaluate_outfits(data, "test", lambda outfit, candidates: np.zeros(1))
