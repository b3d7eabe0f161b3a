"""Triplets drawn from labels and measures: what is close and far, and how evenly."""

import numpy as np
import pytest

from cca_hf.data.benchmarks.zappos50k import sample_by_distance, sample_by_value


def test_two_of_a_value_and_one_of_another():
    labels = np.array([2, 0, -1, 0, 2, 1, 2, -1])  # the one image of value 1 is no anchor
    drawn = sample_by_value(labels, 20_000, np.random.default_rng(0))
    anchor, far, close = labels[drawn].T
    assert drawn.shape == (20_000, 3) and drawn.dtype == np.int64
    assert (anchor == close).all() and (anchor != far).all() and (labels[drawn] >= 0).all()
    assert (drawn[:, 0] != drawn[:, 2]).all()
    # each of the five anchors alike, and for each of them all of the close and all of the far ones alike
    found, counts = np.unique(drawn[:, 0], return_counts=True)
    assert found.tolist() == [0, 1, 3, 4, 6] and abs(counts / 4000 - 1).max() < 0.06
    of_zero = drawn[drawn[:, 0] == 0]
    for column, expected in ((1, [1, 3, 5]), (2, [4, 6])):
        found, counts = np.unique(of_zero[:, column], return_counts=True)
        assert found.tolist() == expected and abs(counts / counts.mean() - 1).max() < 0.1


def test_the_nearer_one_is_close():
    measures = np.array([0.0, np.nan, 0.5, 0.5, 3.0, 5.0])
    drawn = sample_by_distance(measures, 5000, np.random.default_rng(0))
    anchor, far, close = measures[drawn].T
    assert (np.abs(anchor - close) < np.abs(anchor - far)).all()
    assert drawn.shape == (5000, 3) and not (drawn == 1).any()
    assert (drawn[:, 0] != drawn[:, 1]).all() and (drawn[:, 0] != drawn[:, 2]).all()
    # every triple of distinct images that is no tie is drawn
    possible = {
        (a, f, c)
        for a in (0, 2, 3, 4, 5)
        for f in (0, 2, 3, 4, 5)
        for c in (0, 2, 3, 4, 5)
        if len({a, f, c}) == 3 and abs(measures[a] - measures[c]) < abs(measures[a] - measures[f])
    }
    assert set(map(tuple, drawn.tolist())) == possible


def test_seeded():
    labels = np.arange(40) % 3
    for sample, given in ((sample_by_value, labels), (sample_by_distance, labels.astype(float))):
        first, again, other = (sample(given, 50, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert (first == again).all() and (first != other).any()


def test_what_cannot_be_drawn():
    generator = np.random.default_rng(0)
    for labels in ([0, 0, 0], [0, 1, 2], [-1, -1], [0, 0, -1]):
        with pytest.raises(ValueError, match="triplets need two values"):
            sample_by_value(np.array(labels), 5, generator)
    for measures in ([1.0, 1.0, 1.0], [1.0, 2.0], [1.0, np.nan, 2.0]):
        with pytest.raises(ValueError, match="triplets need three images of two measures"):
            sample_by_distance(np.array(measures), 5, generator)
