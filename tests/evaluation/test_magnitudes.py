"""Vectors of any length: every figure depends on directions alone, up to the limits of the number format."""

import numpy as np
import pytest
import torch

from cca_hf import evaluate_embeddings
from cca_hf.evaluation import retrieval_metrics, triplet_accuracy
from cca_hf.evaluation.arrays import normalised
from cca_hf.evaluation.entanglement.disentanglement import disentanglement
from cca_hf.evaluation.entanglement.evaluator import entanglement
from cca_hf.evaluation.entanglement.readers import make_folds, read_neighbours

# Whole numbers up to 8 times a power of two are exact in each format, also where it is subnormal.
LENGTHS = [
    *((np.float32, 2.0**power) for power in (124, 70, 61, -70, -85, -126, -149)),
    *((np.float64, 2.0**power) for power in (1020, 512, 126, -160, -540, -1074)),
    *((np.float16, 2.0**power) for power in (12, -24)),
]


@pytest.fixture(scope="module")
def drawn():
    """(80, 6) whole numbers in four clusters, which overlap, and the labels of the clusters."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 80)
    return generator.integers(-4, 5, (80, 6)) + 4 * np.eye(6, dtype=int)[labels], labels


@pytest.mark.parametrize(("kind", "length"), LENGTHS)
def test_retrieval_does_not_depend_on_the_length(kind, length, drawn):
    vectors, labels = drawn
    expected = retrieval_metrics(vectors.astype(np.float32), labels)
    assert 0.4 < expected.map < 0.9 and expected.chance_map < 0.3
    given = (vectors * length).astype(kind)
    assert np.isfinite(given).all() and given.any(axis=1).all()
    result = retrieval_metrics(given, labels)
    assert result.scores.average_precision.tolist() == expected.scores.average_precision.tolist()
    mixed = given.copy()  # short and long vectors side by side
    mixed[::2] = vectors[::2]
    assert retrieval_metrics(mixed, labels).map == expected.map
    assert retrieval_metrics(given[:9], labels[:9], vectors, labels).map == pytest.approx(
        retrieval_metrics(vectors[:9], labels[:9], vectors, labels).map, abs=1e-12
    )
    tensor = torch.from_numpy(given)
    assert retrieval_metrics(tensor, torch.from_numpy(labels)).map == expected.map


@pytest.mark.parametrize("length", [2.0**120, 2.0**-133])
def test_bfloat16_too(length, drawn):
    vectors, labels = drawn
    given = (torch.from_numpy(vectors).double() * length).bfloat16()
    assert retrieval_metrics(given, labels).map == retrieval_metrics(vectors, labels).map


@pytest.mark.parametrize(("kind", "length"), LENGTHS)
def test_triplets_do_not_depend_on_the_length(kind, length, drawn):
    vectors, _ = drawn
    triplets = np.random.default_rng(1).integers(0, 80, (300, 3))
    conditions = np.zeros(300, dtype=int)
    expected = triplet_accuracy(vectors, triplets, conditions, ["shape"])
    assert triplet_accuracy((vectors * length).astype(kind), triplets, conditions, ["shape"]) == expected


@pytest.mark.parametrize("length", [2.0**100, 2.0**-120])
def test_readers_do_not_depend_on_the_length(length, drawn):
    vectors, labels = drawn
    folds = make_folds(np.full(80, -1), seed=0)
    expected = read_neighbours(vectors, labels, folds)
    assert (expected == labels).mean() > 0.5
    assert read_neighbours((vectors * length).astype(np.float32), labels, folds).tolist() == expected.tolist()


@pytest.mark.parametrize("length", [2.0**100, 2.0**-120])
def test_entanglement_does_not_depend_on_the_length(length, plant):
    planted = plant(240, (2, 2), dim=4)
    names = ["first", "second"]

    def measure(factor):
        embeddings, features = (
            (part.astype(np.float32) * np.float32(factor)) for part in (planted.entangled, planted.features)
        )
        return entanglement(embeddings, planted.labels, names, features).metrics()

    assert measure(length) == pytest.approx(measure(1.0), abs=1e-6)


def test_disentanglement_does_not_depend_on_the_length(plant):
    """The trees of scikit-learn take numbers that differ by less than 1e-7 for equal."""
    planted = plant(120, (3, 2), dim=4)
    ours, short = (
        disentanglement(planted.disentangled.astype(np.float32) * np.float32(length), planted.labels, ["a", "b"])
        for length in (1.0, 2.0**-60)
    )
    assert ours.dimensions == short.dimensions and ours.subspaces == short.subspaces


def test_lengths_are_one_and_zero_stays_zero():
    rows = np.array([[3e38, -3e38], [1e-45, 0], [0, 0], [-3, 4]], dtype=np.float32)
    result = normalised(rows, np.float32)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, [[0.5**0.5, -(0.5**0.5)], [1, 0], [0, 0], [-0.6, 0.8]], rtol=1e-6)
    assert normalised(np.zeros((0, 4), dtype=np.float32), np.float32).shape == (0, 4)
    counts = np.array([[0, 255], [3, 4]], dtype=np.uint8)
    np.testing.assert_allclose(normalised(counts, np.float64), [[0, 1], [0.6, 0.8]], rtol=1e-15)
    assert rows[0, 0] == np.float32(3e38)  # a copy


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_stay_an_error(wrong, drawn):
    vectors, labels = drawn
    given = vectors.astype(np.float64)
    given[5, 2] = wrong
    with pytest.raises(ValueError, match="1 of 80 query embeddings are not finite, the first is 5"):
        retrieval_metrics(given, labels)
    with pytest.raises(ValueError, match="1 of 80 query embeddings are not finite"):
        evaluate_embeddings(given, labels[:, None], {"shape": list("abcd")})
