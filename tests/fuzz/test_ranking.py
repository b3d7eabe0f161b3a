"""Scores of random rankings with ties, against exact fractions over every order of the equal candidates."""

import itertools
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cca_hf.evaluation import retrieval_metrics

# The cosines of these vectors are multiples of 1/4, also in floating point: equal similarities are exactly equal.
VECTORS = [*np.eye(4, dtype=int).tolist(), *(-np.eye(4, dtype=int)).tolist(), *itertools.product((-1, 1), repeat=4)]
KS = (1, 2, 3, 10)
items = st.tuples(st.sampled_from(VECTORS), st.integers(-1, 2), st.integers(-1, 1))  # vector, label, group


def cosine(first: tuple[int, ...], second: tuple[int, ...]) -> Fraction:
    lengths = [1 if sum(map(abs, vector)) == 1 else 2 for vector in (first, second)]
    return Fraction(sum(a * b for a, b in zip(first, second, strict=True)), lengths[0] * lengths[1])


def orders(candidates: list[tuple[Fraction, bool]]) -> Iterator[list[bool]]:
    """Every order by falling similarity, as a list of which candidates are relevant."""
    ties = [
        [is_relevant for other, is_relevant in candidates if other == similarity]
        for similarity in sorted({similarity for similarity, _ in candidates}, reverse=True)
    ]
    for chosen in itertools.product(*(list(itertools.permutations(tie)) for tie in ties)):
        yield list(itertools.chain(*chosen))


def expected(candidates: list[tuple[Fraction, bool]]) -> dict[str, Fraction]:
    """Means over all orders."""
    total = sum(is_relevant for _, is_relevant in candidates)
    sums = dict.fromkeys(("average_precision", "r_precision", *map(str, KS)), Fraction(0))
    count = 0
    for order in orders(candidates):
        count += 1
        for rank, is_relevant in enumerate(order, start=1):
            if is_relevant:
                sums["average_precision"] += Fraction(sum(order[:rank]), rank * total)
        if total:
            sums["r_precision"] += Fraction(sum(order[:total]), total)
        for k in KS:
            sums[str(k)] += any(order[:k])
    return {name: value / count for name, value in sums.items()}


@settings(max_examples=150)
@given(st.lists(items, min_size=1, max_size=4), st.none() | st.lists(items, min_size=1, max_size=6))
def test_scores_are_means_over_the_orders_of_equal_candidates(queries, gallery):
    assume(any(label >= 0 for _, label, _ in queries))
    sides = [queries] if gallery is None else [queries, gallery]
    given_arrays = []
    for side in sides:
        vectors, labels, groups = zip(*side, strict=True)
        given_arrays.append((np.array(vectors, dtype=np.float32), np.array(labels), np.array(groups)))
    groups = {"query_groups": given_arrays[0][2]} | ({} if gallery is None else {"gallery_groups": given_arrays[1][2]})
    arrays = [array for vectors, labels, _ in given_arrays for array in (vectors, labels)]
    result = retrieval_metrics(*arrays, **groups, ks=KS)
    labelled = [row for row, (_, label, _) in enumerate(queries) if label >= 0]
    assert result.queries.tolist() == labelled
    for place, row in enumerate(labelled):
        vector, label, group = queries[row]
        candidates = [
            (cosine(vector, other), other_label == label)
            for column, (other, other_label, other_group) in enumerate(sides[-1])
            if other_label >= 0
            and not (group >= 0 and other_group == group)
            and not (gallery is None and column == row)
        ]
        assert result.num_candidates[place] == len(candidates)
        wanted = expected(candidates)
        assert result.scores.average_precision[place] == pytest.approx(float(wanted["average_precision"]), abs=1e-12)
        assert result.scores.r_precision[place] == pytest.approx(float(wanted["r_precision"]), abs=1e-12)
        for k in KS:
            assert result.scores.recall[k][place] == pytest.approx(float(wanted[str(k)]), abs=1e-12)
