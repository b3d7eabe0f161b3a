"""The readers by loops, and against each other where they must agree."""

import sys

import numpy as np
import pytest

from cca_hf.evaluation.entanglement.readers import (
    FOLDS,
    NEIGHBOURS,
    balanced_accuracy,
    guess_from_label,
    make_folds,
    read_linear,
    read_mlp,
    read_neighbours,
)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_balanced_accuracy_by_a_loop(random):
    labels, right = random.integers(-1, 4, 200), random.random(200)
    weights = random.integers(0, 3, (5, 200)).astype(float)
    for row, figure in zip(weights, balanced_accuracy(right, labels, weights), strict=True):
        shares = []
        for value in range(4):
            counted = [
                (weight, each) for weight, each, label in zip(row, right, labels, strict=True) if label == value
            ]
            shares.append(sum(weight * each for weight, each in counted) / sum(weight for weight, _ in counted))
        assert figure == pytest.approx(sum(shares) / 4, abs=1e-12)
    assert balanced_accuracy(right, labels)[0] == pytest.approx(balanced_accuracy(right, labels, np.ones((1, 200)))[0])


def test_a_value_that_a_sample_lacks_is_left_out():
    labels, right = np.array([0, 0, 1]), np.array([1.0, 0.0, 1.0])
    assert balanced_accuracy(right, labels, np.array([[1.0, 1.0, 0.0]])).tolist() == [0.5]


def test_folds_keep_groups_together(random):
    groups = random.integers(-1, 60, 400)
    folds = make_folds(groups, seed=0)
    for group in range(60):
        assert len(set(folds[groups == group])) <= 1
    assert len(set(folds[groups == -1])) > 1
    alone = np.bincount(make_folds(np.full(100, -1), seed=0))
    assert alone.tolist() == [100 / FOLDS] * FOLDS


def test_neighbours_by_a_loop(random):
    vectors, labels, known = random.standard_normal((120, 5)), random.integers(-1, 3, 120), random.integers(0, 2, 120)
    folds = make_folds(np.full(120, -1), seed=1)
    for told in (None, known):
        guesses = read_neighbours(vectors, labels, folds, told)
        for row in range(120):
            if labels[row] < 0:
                assert guesses[row] == -1
                continue
            train = [other for other in range(120) if folds[other] != folds[row] and labels[other] >= 0]
            frequency = {value: sum(labels[other] == value for other in train) for value in range(3)}
            if told is not None:
                train = [other for other in train if told[other] == told[row]]
            cosine = {
                other: vectors[row] @ vectors[other] / np.linalg.norm(vectors[row]) / np.linalg.norm(vectors[other])
                for other in train
            }
            nearest = sorted(train, key=lambda other: -cosine[other])[:NEIGHBOURS]
            votes = {value: sum(labels[other] == value for other in nearest) / frequency[value] for value in range(3)}
            assert votes[guesses[row]] == pytest.approx(max(votes.values()))


def test_fewer_neighbours_than_asked_for(random):
    """A known value that three others have: only they vote."""
    vectors, known = random.standard_normal((60, 4)), np.zeros(60, dtype=int)
    known[:4] = 1
    labels = np.arange(60) % 2
    labels[:4] = 1
    folds = np.arange(60) % FOLDS
    assert read_neighbours(vectors, labels, folds, known)[:4].tolist() == [1, 1, 1, 1]


def test_guess_from_label_by_a_loop(random):
    known, labels = random.integers(0, 3, 300), random.integers(-1, 4, 300)
    labels[known == 2] = np.where(labels[known == 2] >= 0, 3, -1)
    folds = make_folds(np.full(300, -1), seed=0)
    guesses = guess_from_label(labels, folds, known)
    assert (guesses[labels < 0] == -1).all()
    for row in np.flatnonzero(labels >= 0):
        train = (folds != folds[row]) & (labels >= 0)
        shares = [(known[train & (labels == value)] == known[row]).mean() for value in range(4)]
        assert shares[guesses[row]] == pytest.approx(max(shares))


def test_linear_reads_what_is_linear_and_not_what_is_not(random):
    vectors = random.uniform(-1, 1, (800, 6))
    folds = make_folds(np.full(800, -1), seed=0)
    third = np.digitize(vectors[:, 0] + vectors[:, 1], [-0.4, 0.4])  # three classes in a row: none may mask another
    assert balanced_accuracy(read_linear(vectors, third, folds) == third, third)[0] > 0.93
    checkers = (vectors[:, 0] * vectors[:, 1] > 0).astype(int)
    assert balanced_accuracy(read_linear(vectors, checkers, folds) == checkers, checkers)[0] < 0.6


def test_linear_reads_faint_traces(random):
    """A hundredth of the spread that another attribute makes: standardisation does not help, a weak penalty does."""
    labels = random.integers(0, 2, (1000, 2))
    vectors = np.stack([labels[:, 0] + 0.01 * labels[:, 1], labels[:, 0] + 0.0 * labels[:, 1]], axis=1)
    vectors += 0.001 * random.standard_normal(vectors.shape)
    folds = make_folds(np.full(1000, -1), seed=0)
    read = read_linear(vectors, labels[:, 1], folds) == labels[:, 1]
    told = read_linear(vectors, labels[:, 1], folds, labels[:, 0]) == labels[:, 1]
    assert balanced_accuracy(told, labels[:, 1])[0] >= balanced_accuracy(read, labels[:, 1])[0] > 0.8


def test_linear_uses_what_is_known(random):
    known = random.integers(0, 3, 500)
    labels = np.where(random.random(500) < 0.8, known, random.integers(0, 3, 500))
    folds = make_folds(np.full(500, -1), seed=0)
    noise = random.standard_normal((500, 8))
    told = balanced_accuracy(read_linear(noise, labels, folds, known) == labels, labels)[0]
    best = balanced_accuracy(guess_from_label(labels, folds, known) == labels, labels)[0]
    assert told == pytest.approx(best, abs=0.02)
    assert balanced_accuracy(read_linear(noise, labels, folds) == labels, labels)[0] < 0.45


def test_the_network_reads_and_knows_what_the_linear_reader_does(plant):
    planted = plant(400, (3, 4), correlation=0.5)
    known, labels = planted.labels.T
    folds = make_folds(np.full(400, -1), seed=0)
    for vectors in (planted.features, planted.disentangled[:, 0]):  # everything, and no more than is known
        network, linear = (
            balanced_accuracy(read(vectors, labels, folds, known) == labels, labels)[0]
            for read in (read_mlp, read_linear)
        )
        assert network == pytest.approx(linear, abs=0.03)
    assert (read_mlp(planted.features, np.where(labels > 1, labels, -1), folds)[labels < 2] == -1).all()


def test_frequent_values_do_not_win(random):
    """Nine pictures in ten are of one value: accuracy would be content with it, balanced accuracy is not."""
    labels = (random.random(600) < 0.1).astype(int)
    vectors = random.standard_normal((600, 4)) + 1.5 * labels[:, None]
    folds = make_folds(np.full(600, -1), seed=0)
    for read in (read_linear, read_neighbours, read_mlp):
        assert balanced_accuracy(read(vectors, labels, folds) == labels, labels)[0] > 0.85


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for read, name in ((read_linear, "linear"), (read_mlp, "mlp")):
        with pytest.raises(
            ImportError, match=rf'the {name} reader needs scikit-learn: pip install "cca_hf\[analysis\]"'
        ):
            read(np.eye(20), np.arange(20) % 2, np.arange(20) % 5)
