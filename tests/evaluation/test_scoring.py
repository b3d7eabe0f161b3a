"""Scores against counting by comparison, where similarities tie, cluster, or are hardly apart."""

import sys

import numpy as np
import pytest
import torch

from cca_hf import retrieval_metrics
from cca_hf.evaluation.retrieval import ranking
from cca_hf.evaluation.retrieval.ranking import harmonic_numbers, score_ranks

COMPILED = "cca_hf.evaluation.retrieval.compiled_counting"


@pytest.fixture
def without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, COMPILED, None)
    return monkeypatch


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


SIZES = [(3000, 1), (3000, 40), (5000, 2500), (20_000, 300), (4000, 4000)]


def some(kind: str, count: int, relevant: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates of which some are taken out, and the columns of the relevant ones, none of which is."""
    candidates = similarities(kind, count)
    generator = np.random.default_rng(0)
    columns = generator.permutation(count)[:relevant]
    candidates[np.setdiff1d(generator.permutation(count)[: count // 10], columns)] = -np.inf
    return candidates, columns


def by_comparison(candidates: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The relevant similarities, ascending, and by comparison the candidates above each and not below each."""
    relevant = np.sort(candidates[columns])
    values, place = np.unique(relevant, return_inverse=True)
    above = np.array([(candidates > value).sum() for value in values])[place]
    return relevant, above, np.array([(candidates >= value).sum() for value in values])[place]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "relevant"), [(3000, 1), (3000, 40), (5000, 300)])
def test_equals_comparison(kind, count, relevant, without_numba):
    """On the CPU, as an accelerator would, and (where numba is installed) in compiled loops."""
    candidates, columns = some(kind, count, relevant)
    harmonic = harmonic_numbers(count)
    expected = score_ranks(*by_comparison(candidates, columns), harmonic)
    ways = {"cpu": ranking.score_queries(candidates[None].copy(), [columns], harmonic)}
    ways["accelerator"] = ranking.score_queries(torch.from_numpy(candidates[None]), [columns], harmonic)
    without_numba.undo()
    ways["compiled"] = ranking.score_queries(candidates[None].copy(), [columns], harmonic)
    for way, scores in ways.items():
        np.testing.assert_allclose(scores[0, :2], expected[:2], rtol=1e-12, err_msg=way)
        assert scores[0, 2:].tolist() == list(expected[2:]), way


@pytest.mark.parametrize(("count", "relevant"), SIZES)
def test_machine_code_gives_the_same_scores(count, relevant, monkeypatch):
    """One query of each kind, the relevant ones taken out among them, and one without any."""
    pytest.importorskip("numba", reason="the extra [fast] is not installed")
    rows, columns = zip(*(some(kind, count, relevant) for kind in KINDS), strict=True)
    rows, columns = np.array([*rows, rows[0]]), [*columns, np.array([], dtype=int)]
    for row, of_row in zip(rows[:3], columns[:3], strict=True):
        row[of_row[: relevant // 3]] = -np.inf
    by_machine_code = ranking.score_queries(rows.copy(), columns, harmonic_numbers(count))
    monkeypatch.setitem(sys.modules, COMPILED, None)
    by_sorting = ranking.score_queries(rows, columns, harmonic_numbers(count))
    np.testing.assert_allclose(by_machine_code[:, :2], by_sorting[:, :2], rtol=1e-12)
    np.testing.assert_array_equal(by_machine_code[:, 2:], by_sorting[:, 2:])
    assert not by_sorting[-1].any()


def test_without_numba_the_figures_are_the_same(monkeypatch):
    pytest.importorskip("numba", reason="the extra [fast] is not installed")
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(3000, 4)), generator.integers(0, 30, 3000)
    compiled = retrieval_metrics(*inputs)
    monkeypatch.setitem(sys.modules, COMPILED, None)
    plain = retrieval_metrics(*inputs)
    np.testing.assert_allclose(compiled.scores.average_precision, plain.scores.average_precision, atol=1e-12)


def test_many_copies_are_counted_in_time():
    """As many in one bin as there are, all equal to all relevant ones: no product of the two."""
    pytest.importorskip("numba", reason="the extra [fast] is not installed")
    alike = np.full((1, 400_000), 0.5, dtype=np.float32)
    (scores,) = ranking.score_queries(alike, [slice(200_000)], harmonic_numbers(400_000))  # 8e10 if it were
    assert scores[2:].tolist() == [200_000, *[0, 400_000, 200_000] * 2]


def test_one_far_off_does_not_make_it_slow():
    """All but one of the relevant ones, no two alike, in one bin: neither compared nor sorted one by one."""
    pytest.importorskip("numba", reason="the extra [fast] is not installed")
    near = (0.5 + np.random.default_rng(0).permutation(400_000) * 2.0**-24).astype(np.float32)[None]
    near[0, 0] = -1e6
    (scores,) = ranking.score_queries(near, [slice(200_000)], harmonic_numbers(400_000))  # 1e10 if they were
    assert scores[2] == 200_000 and scores[0] == pytest.approx(0.5, abs=0.01)
