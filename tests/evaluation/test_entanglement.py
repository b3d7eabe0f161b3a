"""Entanglement where it is known: planted embeddings give 0 and 1, correlated labels and gaps notwithstanding."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from concept_erasure import LeaceEraser

from cca_hf.evaluation.entanglement.evaluator import LEAST_IMAGES, LEAST_LABELLED, entanglement, why_not_measured
from cca_hf.evaluation.entanglement.result import EntanglementResult, mean_off_diagonal

NAMES = ["colour", "shape", "size"]
PLANTS = {
    "independent": {"count": 1000, "values": (3, 3, 4)},
    "correlated": {"count": 1000, "values": (3, 3, 4), "correlation": 0.4},
    "correlated, imbalanced, half labelled": {
        "count": 1000,
        "values": (3, 6, 4),
        "correlation": 0.4,
        "imbalance": 1.0,
        "missing": 0.3,
    },
}


@pytest.mark.parametrize("kind", PLANTS)
def test_planted_embeddings_give_zero_and_one(kind, plant):
    planted = plant(**PLANTS[kind])
    entangled = entanglement(planted.entangled, planted.labels, NAMES, planted.features)
    disentangled = entanglement(planted.disentangled, planted.labels, NAMES, planted.features)
    for reader in ("linear", "neighbours"):
        assert entangled.readers[reader].score == pytest.approx(1, abs=0.02)
        assert disentangled.readers[reader].score == pytest.approx(0, abs=0.02)
    assert entangled.informativeness == pytest.approx(1, abs=0.02)
    assert disentangled.informativeness == pytest.approx(1, abs=0.02)
    assert not entangled.undefined


def test_only_the_network_reads_what_is_not_linear(plant):
    """Under the colour, the shape is whether two numbers have the same sign; under the shape, there is no colour."""
    planted = plant(800, (3, 2))
    random = np.random.default_rng(1)
    sign, shape = random.choice([-1.0, 1.0], 800), 2 * planted.labels[:, 1] - 1
    embeddings = np.zeros((800, 2, 18))
    embeddings[:, :, :16] = planted.disentangled
    embeddings[:, 0, 16:] = np.stack([sign, sign * shape], axis=1) + 0.1 * random.standard_normal((800, 2))
    result = entanglement(embeddings, planted.labels, NAMES[:2], planted.features, readers=("mlp", "linear"))
    assert list(result.readers) == ["linear", "mlp"]
    linear, network = (reader.matrix for reader in result.readers.values())
    assert np.array([linear[0, 1], linear[1, 0], network[1, 0]]) == pytest.approx(0, abs=0.08)  # three deviations
    assert network[0, 1] == pytest.approx(1, abs=0.05)
    assert np.array([linear.diagonal(), network.diagonal()]) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", ["independent", "correlated"])
def test_nothing_is_read_where_another_library_erased_it(kind, plant):
    """LEACE (Belrose et al. 2023) proves that no linear reader is better than the labels: the ruler must agree.

    All embeddings contain everything. From those under an attribute, the other attributes are erased within each of
    its values, because the reader knows the value.
    """
    planted = plant(**{**PLANTS[kind], "count": 1000, "values": (3, 4)})
    erased = planted.entangled.copy()
    for attribute in range(2):
        own, other = planted.labels[:, attribute], np.eye(4)[planted.labels[:, 1 - attribute]]
        for value in np.unique(own):
            rows = np.flatnonzero(own == value)
            vectors = torch.tensor(erased[rows, attribute])
            eraser = LeaceEraser.fit(vectors, torch.tensor(other[rows]))
            erased[rows, attribute] = eraser(vectors).numpy()
    given, left = (
        entanglement(each, planted.labels, NAMES[:2], planted.features, readers=["linear"])
        for each in (planted.entangled, erased)
    )
    off_diagonal = ~np.eye(2, dtype=bool)
    assert given.readers["linear"].matrix[off_diagonal] == pytest.approx(1, abs=0.02)
    assert left.readers["linear"].matrix[off_diagonal] == pytest.approx(0, abs=0.05)  # 0 in theory, within the spread
    assert left.informativeness == pytest.approx(1, abs=0.02)  # the own values stay


def test_half_entangled_lies_between(plant):
    """The other attributes are predicted correctly on half of the images, and at random on the rest."""
    planted = plant(1500, (3, 3, 3))
    mixed = planted.entangled.copy()
    random = np.random.default_rng(1)
    for attribute in range(3):
        stranger = random.random(1500) < 0.5  # gets the other attributes of another picture, keeps its own
        own = planted.labels[:, attribute]
        for value in range(3):
            rows = np.flatnonzero(stranger & (own == value))
            mixed[rows, attribute] = mixed[random.permutation(rows), attribute]
    result = entanglement(mixed, planted.labels, NAMES, planted.features)
    assert result.score == pytest.approx(0.5, abs=0.05)
    assert result.informativeness == pytest.approx(1, abs=0.02)


def test_matrix_is_the_formula_on_its_accuracies(plant):
    planted = plant(400, (3, 3, 4), correlation=0.6)
    result = entanglement(planted.disentangled, planted.labels, NAMES, planted.features)
    for reader in result.readers.values():
        for row in range(3):
            for column in range(3):
                low, high = reader.floor[row, column], reader.ceiling[row, column]
                expected = (reader.accuracy[row, column] - low) / (high - low)
                assert reader.matrix[row, column] == pytest.approx(expected, abs=1e-12)
        others = [reader.matrix[row, column] for row in range(3) for column in range(3) if row != column]
        assert reader.score == pytest.approx(sum(others) / 6, abs=1e-12)
        assert reader.informativeness == pytest.approx(np.trace(reader.matrix) / 3, abs=1e-12)


def test_floor_is_what_the_label_tells_and_chance_on_the_diagonal(plant):
    planted = plant(1500, (3, 3, 4), correlation=0.6)
    linear = entanglement(planted.disentangled, planted.labels, NAMES, planted.features).readers["linear"]
    assert np.diagonal(linear.floor) == pytest.approx([1 / 3, 1 / 3, 1 / 4])
    # shape follows colour on 0.6 of the pictures, and by chance on a third of the others
    assert linear.floor[0, 1] == pytest.approx(0.6 + 0.4 / 3, abs=0.04)
    assert linear.floor[0, 2] < linear.floor[1, 2]  # size follows shape, and colour only through it


def test_undefined_where_the_features_tell_nothing(caplog, plant):
    planted = plant(500, (3, 3, 3))
    blind = planted.features.copy()
    blind[:, :] = plant(500, (3, 3, 3), seed=9).features  # of other pictures
    told = np.eye(3)[planted.labels[:, 1]]  # but the shape
    result = entanglement(planted.disentangled, planted.labels, NAMES, np.concatenate([blind, 3 * told], axis=1))
    defined = np.isfinite(result.readers["linear"].matrix)
    assert defined[:, 1].all() and not defined[:, [0, 2]].any()
    assert ("colour", "size") in result.undefined and ("colour", "shape") not in result.undefined
    assert "Undefined" in result.table() and "size from colour" in result.table()
    assert math.isfinite(result.score)


def test_undefined_where_the_label_tells_all(plant):
    """A category tells its group: nothing is left to be entangled with."""
    planted = plant(500, (4, 4, 3))
    labels = planted.labels.copy()
    labels[:, 1] = labels[:, 0] // 2
    result = entanglement(planted.disentangled, labels, NAMES, planted.features)
    assert ("colour", "shape") in result.undefined
    assert ("shape", "colour") not in result.undefined


def test_rare_values_and_unlabelled_attributes_are_left_out(caplog, plant):
    planted = plant(500, (3, 3, 3))
    labels = planted.labels.copy()
    labels[:, 2] = -1
    labels[: LEAST_IMAGES - 1, 1] = 3  # a value too rare to be read
    result = entanglement(planted.disentangled, labels, NAMES, planted.features)
    assert result.values == {"colour": 3, "shape": 3, "size": 0}
    assert "'size' has 0 values" in caplog.text
    assert result.score == pytest.approx(0, abs=0.05)  # of the two that are left
    assert np.isnan(result.readers["linear"].accuracy[2]).all()


def test_groups_stay_together():
    """Near copies with labels of their own: a reader that has seen the copy knows it; one that has not, cannot."""
    random = np.random.default_rng(0)
    groups = np.arange(600) // 15  # more than the neighbours that are asked
    labels = random.integers(0, 3, (40, 2))[groups]
    vectors = random.standard_normal((40, 8))[groups] + 0.01 * random.standard_normal((600, 8))
    leaking = entanglement(vectors, labels, NAMES[:2], np.eye(3)[labels].reshape(600, -1))
    kept = entanglement(vectors, labels, NAMES[:2], np.eye(3)[labels].reshape(600, -1), groups=groups)
    assert leaking.readers["neighbours"].informativeness > 0.9
    assert kept.readers["neighbours"].informativeness < 0.4


def test_of_many_pictures_some_are_drawn(plant):
    planted = plant(900, (3, 3))
    groups = np.arange(900) // 2
    first, again = (
        entanglement(
            planted.disentangled, planted.labels, NAMES[:2], planted.features, groups=groups, max_images=401, seed=seed
        )
        for seed in (3, 3)
    )
    assert first.images == 400  # whole groups
    assert first.to_dict() == again.to_dict()


def test_the_spread_is_that_of_a_repetition(plant):
    """The bootstrap's standard deviation against the one over fresh draws of the pictures."""
    repeated = []
    for seed in range(10):
        planted = plant(400, (3, 3), seed=seed)
        vectors = planted.disentangled, planted.labels, NAMES[:2], planted.features
        repeated.append(entanglement(*vectors, readers=["linear"]))
    scores = np.array([each.score for each in repeated])
    spread = np.mean([each.readers["linear"].score_spread for each in repeated])
    assert 0.4 * scores.std() < spread < 2.5 * scores.std()


def test_json_and_metrics(tmp_path, plant):
    planted = plant(300, (3, 3, 3))
    labels = planted.labels.copy()
    labels[:, 2] = -1
    result = entanglement(torch.tensor(planted.disentangled), torch.tensor(labels), NAMES, planted.features)
    path = result.save_json(tmp_path / "new" / "entanglement.json")
    again = EntanglementResult.load_json(path)
    np.testing.assert_equal(again.to_dict(), result.to_dict())
    np.testing.assert_array_equal(again.readers["linear"].matrix, result.readers["linear"].matrix)
    content = json.loads(path.read_text())
    assert content["readers"]["linear"]["matrix"][2][2] is None  # not NaN, which is no JSON
    assert again.metrics()["entanglement"] == result.score
    assert set(result.metrics()) >= {"informativeness", "entanglement_spread", "entanglement_neighbours"}


def test_mean_off_diagonal():
    assert mean_off_diagonal(np.array([[9.0, 1.0], [3.0, 9.0]])) == 2.0
    assert mean_off_diagonal(np.array([[9.0, math.nan], [3.0, 9.0]])) == 3.0
    assert math.isnan(mean_off_diagonal(np.array([[9.0, math.nan], [math.nan, 9.0]])))


def test_pairs_with_few_images_are_undefined(plant):
    """Their figures would be chance. The other pairs stay as they are."""
    planted = plant(400, (3, 3, 3))
    labels = planted.labels.copy()
    labels[199:, 2] = -1
    result = entanglement(planted.entangled, labels, NAMES, planted.features, readers=["linear"])
    missing = np.isnan(result.readers["linear"].matrix)
    assert missing.tolist() == [[False, False, True], [False, False, True], [True, True, True]]
    assert result.score == pytest.approx(1, abs=0.05)
    assert "or too few images have both labels (linear reader): " in result.table()
    labels[199, 2] = planted.labels[199, 2]
    assert not entanglement(planted.entangled, labels, NAMES, planted.features, readers=["linear"]).undefined


def test_why_it_cannot_be_measured(plant, monkeypatch):
    labels = plant(LEAST_LABELLED, (3, 3)).labels
    assert why_not_measured(labels) is None
    needs = "it needs 200 images that are labelled with two attributes, with at least 10 of a value, and there are "
    assert why_not_measured(labels[1:]) == f"{needs}199"
    same = labels * [1, 0]  # all have one value of the second attribute: only the first one can be read
    assert why_not_measured(same) is None and why_not_measured(same * 0) == f"{needs}0"
    halves = np.where(np.arange(200)[:, None] // 100 == [0, 1], labels, -1)  # no image has both labels
    assert why_not_measured(halves) == f"{needs}0"
    assert why_not_measured(labels[:, :1]) == "it is between attributes, and there is only one"
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert why_not_measured(labels) == 'scikit-learn is missing: pip install "cca_hf[analysis]"'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": ["colour"]}, "at least two, got 1"),
        (
            {"labels": np.zeros((10, 2), dtype=int)},
            r"labels must have shape \(10, 3\) = \(images, attributes\), got \(10, 2\)",
        ),
        ({"embeddings": np.zeros((10, 4, 8))}, r"embeddings must have shape \(images, 3, dim\)"),
        ({"features": np.zeros((9, 8))}, r"features must have shape \(10, dim\), got \(9, 8\)"),
        ({"features": np.full((10, 8), np.nan)}, "features are not finite"),
        ({"groups": np.zeros(3, dtype=int)}, r"groups must have shape \(10,\), got \(3,\)"),
        ({"groups": [None] * 10}, "groups must be integers .* got object"),
        ({"labels": np.full((10, 3), np.nan)}, "labels must be integers .* got float64"),
        ({"labels": np.full((10, 3), 0.5)}, "labels must be integers .* got float64"),
        ({"embeddings": None}, "embeddings must be real numbers, got object"),
        ({"embeddings": np.zeros((0, 3, 8))}, r"embeddings must have shape .* got \(0, 3, 8\)"),
        ({"max_images": 0}, "max_images must be an integer of at least 1, got 0"),
        ({"max_images": None}, "max_images must be an integer of at least 1, got None"),
        ({"readers": ["linear", "mpl"]}, r"unknown reader 'mpl'\. Did you mean 'mlp'\? The readers are \['linear', "),
        ({"readers": ["mlp"]}, r"the readers must include 'linear', whose figure is the entanglement; got \['mlp'\]"),
        ({"max_images": 2.5}, "max_images must be an integer of at least 1, got 2.5"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    given = {
        "embeddings": np.zeros((10, 3, 8)),
        "labels": np.zeros((10, 3), dtype=int),
        "attributes": NAMES,
        "features": np.zeros((10, 8)),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        entanglement(**given)
