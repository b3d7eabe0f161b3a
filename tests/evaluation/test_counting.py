"""Counting by histogram against counting by comparison, where similarities tie, cluster, or are hardly apart."""

import numpy as np
import pytest

from cca_hf.evaluation import counting
from cca_hf.evaluation.counting import count_ranks


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "relevant"), [(3000, 1), (3000, 40), (5000, 2500), (20_000, 300), (4000, 4000)])
def test_equals_comparison(kind, count, relevant, monkeypatch):
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
    by_sorting = count_ranks(candidates, asked)
    np.testing.assert_array_equal(above, by_sorting[0])
    np.testing.assert_array_equal(through, by_sorting[1])
