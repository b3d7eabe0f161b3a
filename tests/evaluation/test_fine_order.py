"""The order within a value, on embeddings of which it is known."""

import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from cca_hf.evaluation import fine_order


def on_a_curve(grades, values, dim=8):
    """Each value has an arc of its own, along which the grade moves the embedding."""
    random = np.random.default_rng(0)
    planes = np.linalg.qr(random.normal(size=(values.max() + 1, dim, 2)))[0]
    return planes[values, :, 0] * np.cos(grades)[:, None] + planes[values, :, 1] * np.sin(grades)[:, None]


@pytest.fixture
def graded():
    random = np.random.default_rng(1)
    return random.random(240), random.integers(0, 3, 240)


def test_embeddings_along_the_grade_have_the_order(graded):
    grades, values = graded
    embeddings = on_a_curve(grades, values)
    assert fine_order(embeddings, values, grades) == pytest.approx(1, abs=1e-3)
    # the angles are the differences, whatever the unit of the grades and the length of the vectors
    assert fine_order(torch.from_numpy(7 * embeddings), values.tolist(), 100 - 30 * grades) == pytest.approx(
        1, abs=1e-3
    )


def test_one_hot_vectors_with_noise_have_none(graded):
    grades, values = graded
    one_hot = np.eye(8)[values]
    noisy = one_hot + 0.1 * np.random.default_rng(2).normal(size=one_hot.shape)
    assert abs(fine_order(noisy, values, grades)) < 0.05
    assert fine_order(one_hot, values, grades) == 0


def test_the_mean_over_the_values_is_weighted_by_their_pairs():
    random = np.random.default_rng(3)
    values = np.array([0] * 4 + [1] * 6 + [2] * 2 + [3] * 3 + [-1] * 5)
    grades, embeddings = random.random(20), random.normal(size=(20, 3))
    grades[12:15] = 0.5  # value 3 has one grade, and value 2 one pair
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    expected = []
    for value in (0, 1):
        rows = np.flatnonzero(values == value)
        pairs = [(i, j) for i in rows for j in rows if i < j]
        similarities = [embeddings[i] @ embeddings[j] for i, j in pairs]
        expected.append(spearmanr(similarities, [-abs(grades[i] - grades[j]) for i, j in pairs]).statistic)
    assert fine_order(embeddings, values, grades) == pytest.approx((6 * expected[0] + 15 * expected[1]) / 21)


def test_random_pairs_stand_for_all(graded):
    grades, values = graded
    embeddings = on_a_curve(grades, values) + 0.1 * np.random.default_rng(4).normal(size=(240, 8))
    whole = fine_order(embeddings, values, grades)
    part = fine_order(embeddings, values, grades, max_pairs=1500, seed=5)
    assert 0.3 < whole < 0.95 and part != whole and part == pytest.approx(whole, abs=0.05)
    assert part == fine_order(embeddings, values, grades, max_pairs=1500, seed=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.ones((4, 2, 3))}, r"embeddings must have shape \(images, dim\), got \(4, 2, 3\)"),
        ({"values": [0, 0, 1]}, r"values must have shape \(4,\) = \(images,\), got \(3,\)"),
        ({"grades": [[0.1], [0.2], [0.3], [0.4]]}, r"grades must have shape \(4,\) = \(images,\), got \(4, 1\)"),
        ({"grades": [0.1, np.nan, 0.3, 0.4]}, "1 of 4 grades are not finite, the first is 1"),
        ({"grades": ["a", "b", "c", "d"]}, "grades must be real numbers"),
        ({"max_pairs": 0}, "max_pairs must be an integer of at least 1, got 0"),
        ({"values": [0, 1, 2, 3]}, "no value has images of two grades"),
    ],
)
def test_what_is_refused(change, message):
    given = {"embeddings": np.eye(4), "values": [0, 0, 0, 0], "grades": [0.1, 0.2, 0.3, 0.4]}
    with pytest.raises(ValueError, match=message):
        fine_order(**(given | change))


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"the fine order needs scipy: pip install \"cca_hf\[analysis\]\""):
        fine_order(np.eye(2), [0, 0], [0.1, 0.2])
