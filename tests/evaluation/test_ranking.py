"""The formulas for ties and chance against every order of small rankings, and on very long ones."""

from fractions import Fraction
from itertools import permutations
from math import comb

import numpy as np
import pytest

from cca_hf.evaluation.retrieval.ranking import (
    chance_average_precision,
    chance_r_precision,
    count_above,
    count_at_least,
    expected_average_precision,
    expected_r_precision,
    harmonic_numbers,
    hit_probability,
)


def scores_of_order(relevance: tuple[bool, ...], k: int) -> tuple[Fraction, Fraction, Fraction]:
    """Average precision, R-precision and hit within k of one order, best first, by definition."""
    found, precisions = 0, []
    for rank, relevant in enumerate(relevance, start=1):
        if relevant:
            found += 1
            precisions.append(Fraction(found, rank))
    total = sum(relevance)
    return (
        sum(precisions, Fraction(0)) / total,
        Fraction(sum(relevance[:total]), total),
        Fraction(int(any(relevance[:k]))),
    )


def mean_over_all_orders(similarities: list[float], relevance: list[bool], k: int) -> list[float]:
    """The mean of the three scores over every order that keeps the similarities descending."""
    valid = [
        tuple(relevance[place] for place in order)
        for order in permutations(range(len(similarities)))
        if all(similarities[a] >= similarities[b] for a, b in zip(order, order[1:], strict=False))
    ]
    scores = [scores_of_order(order, k) for order in valid]
    return [float(sum(column, Fraction(0)) / len(scores)) for column in zip(*scores, strict=True)]


def computed(similarities: list[float], relevance: list[bool], k: int) -> list[float]:
    candidates = np.sort(np.array(similarities))
    relevant = np.sort(np.array(similarities)[np.array(relevance)])
    above, through = count_above(candidates, relevant), count_at_least(candidates, relevant)
    best = np.array([(above[-1], through[-1] - above[-1], (relevant == relevant[-1]).sum())])
    harmonic = harmonic_numbers(len(candidates))
    return [
        expected_average_precision(relevant, above, through, harmonic),
        expected_r_precision(above, through),
        float(hit_probability(k, best[:, 0], best[:, 1], best[:, 2])[0]),
    ]


@pytest.mark.parametrize("seed", range(40))
def test_ties_are_the_mean_over_all_orders(seed):
    generator = np.random.default_rng(seed)
    size = int(generator.integers(1, 8))
    levels = int(generator.integers(1, 5))
    similarities = generator.integers(0, levels, size).astype(float).tolist()
    relevance = generator.random(size) < 0.5
    relevance[generator.integers(size)] = True
    k = int(generator.integers(1, size + 2))
    expected = mean_over_all_orders(similarities, relevance.tolist(), k)
    np.testing.assert_allclose(computed(similarities, relevance.tolist(), k), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("size", "relevant"), [(1, 1), (2, 1), (5, 5), (6, 2), (7, 3), (8, 1)])
def test_chance_is_the_mean_over_all_orders(size, relevant):
    relevance = [place < relevant for place in range(size)]
    average_precision, r_precision, hit = mean_over_all_orders([0.0] * size, relevance, k=3)
    sizes, counts = np.array([size]), np.array([relevant])
    np.testing.assert_allclose(chance_average_precision(sizes, counts), [average_precision], atol=1e-12)
    np.testing.assert_allclose(chance_r_precision(sizes, counts), [r_precision], atol=1e-12)
    np.testing.assert_allclose(hit_probability(3, np.array([0]), sizes, counts), [hit], atol=1e-12)


def test_nothing_relevant_and_no_candidates_give_zero():
    sizes, counts = np.array([0, 7]), np.array([0, 0])
    assert chance_average_precision(sizes, counts).tolist() == [0.0, 0.0]
    assert chance_r_precision(sizes, counts).tolist() == [0.0, 0.0]
    assert hit_probability(5, np.array([0, 0]), sizes, counts).tolist() == [0.0, 0.0]


def test_one_tie_of_a_whole_long_ranking_is_chance():
    size, count = 100_000, 1_234
    relevant, above, through = np.zeros(count), np.zeros(count, int), np.full(count, size)
    tied = expected_average_precision(relevant, above, through, harmonic_numbers(size))
    chance = chance_average_precision(np.array([size]), np.array([count]))[0]
    assert tied == pytest.approx(chance, abs=1e-13)


def test_a_pair_tied_deep_in_a_long_ranking_keeps_its_precision():
    """By hand 1 / (B + 1) and 2 / (B + 2): the difference of two large harmonic numbers must not spoil it."""
    size, depth = 1_000_000, 900_000
    relevant, above, through = np.zeros(2), np.full(2, depth), np.full(2, depth + 2)
    value = expected_average_precision(relevant, above, through, harmonic_numbers(size))
    assert value == pytest.approx((1 / (depth + 1) + 2 / (depth + 2)) / 2, rel=1e-4, abs=1e-9)


def test_hit_probability_is_hypergeometric():
    value = hit_probability(10, np.array([4]), np.array([50]), np.array([7]))
    assert value[0] == pytest.approx(1 - comb(43, 6) / comb(50, 6), abs=1e-12)
