"""Counting by histogram against counting by comparison, where similarities tie, cluster, or are hardly apart."""

import importlib
import sys

import numpy as np
import pytest

from cca_hf import retrieval_metrics
from cca_hf.evaluation import counting
from cca_hf.evaluation.ranking import harmonic_numbers, score_ranks


def similarities(kind: str, count: int) -> np.ndarray:
    generator = np.random.default_rng(count)
    values = {
        "spread": lambda: generator.normal(0, 0.1, count),
        "clustered": lambda: np.where(generator.random(count) < 0.3, 1 - generator.random(count) * 1e-6, 0.1),
        "copies": lambda: generator.integers(-5, 5, count) / 10,
        "all alike": lambda: np.full(count, 0.25),
        "next to each other": lambda: np.nextafter(
            np.float32(0.5), np.float32(1), dtype=np.float32
        ) + generator.integers(-40, 40, count).astype(np.float32) * np.float32(2**-24),
        "tiny": lambda: generator.normal(0, 1e-30, count),
        "two far apart": lambda: generator.choice([-1.0, 1.0], count) * (1 - generator.random(count) * 1e-7),
    }[kind]()  # fmt: skip
    return values.astype(np.float32)


KINDS = ["spread", "clustered", "copies", "all alike", "next to each other", "tiny", "two far apart"]


@pytest.fixture(params=["counting", "compiled_counting"])
def count_ranks(request):
    if request.param == "compiled_counting":
        pytest.importorskip("numba", reason="the extra [fast] is not installed")
    return importlib.import_module(f"cca_hf.evaluation.{request.param}").count_ranks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "relevant"), [(3000, 1), (3000, 40), (5000, 2500), (20_000, 300), (4000, 4000)])
def test_equals_comparison(count_ranks, kind, count, relevant, monkeypatch):
    monkeypatch.setattr(counting, "_MANY", 1)
    candidates = similarities(kind, count)
    generator = np.random.default_rng(0)
    chosen = generator.permutation(count)[:relevant]
    missing = np.setdiff1d(generator.permutation(count)[: count // 10], chosen)
    candidates[missing] = -np.inf
    asked = np.sort(candidates[chosen])
    above, through = count_ranks(candidates, asked)
    for place in generator.permutation(relevant)[:60]:
        assert above[place] == (candidates > asked[place]).sum()
        assert through[place] == (candidates >= asked[place]).sum()
    monkeypatch.setattr(counting, "_FEW", count)  # all of them, by sorting
    by_sorting = counting.count_ranks(candidates, asked)
    np.testing.assert_array_equal(above, by_sorting[0])
    np.testing.assert_array_equal(through, by_sorting[1])


def test_without_numba_the_figures_are_the_same(monkeypatch):
    pytest.importorskip("numba", reason="the extra [fast] is not installed")
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(3000, 4)), generator.integers(0, 30, 3000)
    compiled = retrieval_metrics(*inputs)
    monkeypatch.setitem(sys.modules, "cca_hf.evaluation.compiled_counting", None)
    plain = retrieval_metrics(*inputs)
    np.testing.assert_allclose(compiled.scores.average_precision, plain.scores.average_precision, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("relevant", [1, 40, 2500])
def test_scores_by_machine_code(kind, relevant):
    compiled = pytest.importorskip("cca_hf.evaluation.compiled_counting", exc_type=ImportError)
    candidates, harmonic = similarities(kind, 5000), harmonic_numbers(5000)
    asked = np.sort(np.random.default_rng(0).permutation(candidates)[:relevant])
    want = score_ranks(asked, *counting.count_ranks(candidates, asked), harmonic)
    assert compiled.score(candidates, asked, harmonic) == pytest.approx(want, abs=1e-12)


def test_many_copies_are_counted_in_time():
    """As many in one bin as there are, all equal to all relevant ones: no product of the two."""
    numba_counting = pytest.importorskip("cca_hf.evaluation.compiled_counting", exc_type=ImportError)
    alike = np.full(400_000, 0.5, dtype=np.float32)
    above, through = numba_counting.count_ranks(alike, alike[:200_000])  # 8e10 comparisons if it were
    assert not above.any() and (through == 400_000).all()
