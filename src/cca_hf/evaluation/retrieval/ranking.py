"""Scores of a ranking in which equal similarities have a random order: exact expectations, without sampling.

A query has N candidates, R of them relevant. Where m candidates share one similarity, B candidates are above them,
b of these relevant, and r of the m are relevant, every order of the m is equally likely. Number j of the m is then
relevant with probability r/m, after (j-1)(r-1)/(m-1) relevant ones of the m on average, and

    expected precision there, summed over j:  (r/m) sum_j (b + 1 + (j-1)(r-1)/(m-1)) / (B + j)

With H_n the harmonic numbers the sums are H_{B+m} - H_B and m - (B+1)(H_{B+m} - H_B), so a tie costs two look-ups.
If all candidates tie (a constant embedding, or a random ranking), B = b = 0, m = N and r = R: the chance level.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cca_hf.evaluation.arrays import FloatArray, IntArray


class QueryScores(NamedTuple):
    """Scores of one query; its recall follows from the last three fields."""

    average_precision: float
    r_precision: float
    num_relevant: int
    best_above: int  # candidates strictly above the best relevant one
    best_tied: int  # candidates as similar as that, itself included
    best_relevant: int  # how many of these are relevant


def harmonic_numbers(count: int) -> FloatArray:
    """H_0 ... H_count, shape (count + 1,)."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, count + 1))])


def count_at_least(sorted_values: NDArray, values: NDArray) -> IntArray:
    """For each of `values`, how many of the ascending `sorted_values` are not below it."""
    return len(sorted_values) - np.searchsorted(sorted_values, values, side="left")


def count_above(sorted_values: NDArray, values: NDArray) -> IntArray:
    """For each of `values`, how many of the ascending `sorted_values` are strictly above it."""
    return len(sorted_values) - np.searchsorted(sorted_values, values, side="right")


def score_ranks(relevant: NDArray, above: IntArray, through: IntArray, harmonic: FloatArray) -> QueryScores:
    """Scores of one query.

    Args:
        relevant: (R,) similarities of the relevant candidates, ascending.
        above: (R,) the number of candidates strictly above each of them (B).
        through: (R,) the number of candidates not below each of them (B + m).
        harmonic: H_0 ... H_N at least.
    """
    if not len(relevant):
        return QueryScores(0.0, 0.0, 0, 0, 0, 0)
    return QueryScores(
        expected_average_precision(relevant, above, through, harmonic),
        expected_r_precision(above, through),
        len(relevant),
        int(above[-1]),
        int(through[-1] - above[-1]),
        int(count_at_least(relevant, relevant[-1:])[0]),
    )


def expected_average_precision(relevant: NDArray, above: IntArray, through: IntArray, harmonic: FloatArray) -> float:
    """Expected average precision of one query with R >= 1; the arguments are those of `score_ranks`."""
    precision = np.arange(len(relevant), 0, -1) / through  # exact wherever nothing is tied: rank among relevant / rank
    tied = np.flatnonzero(through - above > 1)
    if len(tied):
        values, top, bottom = relevant[tied], above[tied], through[tied]
        relevant_above = count_above(relevant, values)
        others_tied = count_at_least(relevant, values) - relevant_above - 1  # r - 1
        size = bottom - top
        inverse_ranks = harmonic[bottom] - harmonic[top]
        places = size - (top + 1) * inverse_ranks  # sum over j of (j-1)/(B+j)
        precision[tied] = ((relevant_above + 1) * inverse_ranks + others_tied / (size - 1) * places) / size
    return float(precision.mean())


def expected_r_precision(above: IntArray, through: IntArray) -> float:
    """Expected share of relevant candidates among the first R: each is there with probability (R - B) / m, clipped."""
    return float(np.clip((len(above) - above) / (through - above), 0.0, 1.0).mean())


def hit_probability(k: int, above: IntArray, tied: IntArray, relevant: IntArray) -> FloatArray:
    """Probability, for each query, that one of the first `k` candidates is relevant.

    Args:
        above: (Q,) candidates strictly above the best relevant one.
        tied: (Q,) candidates as similar as the best relevant one, itself included.
        relevant: (Q,) how many of these are relevant; 0 if the query has no relevant candidate at all.
    """
    draws = np.clip(k - above, 0, tied)
    miss = np.ones(len(above))
    for drawn in range(int(draws.max(initial=0))):
        factor = np.maximum(tied - relevant - drawn, 0) / np.maximum(tied - drawn, 1)
        miss = np.where(drawn < draws, miss * factor, miss)
    return 1.0 - miss


def chance_average_precision(num_candidates: IntArray, num_relevant: IntArray) -> FloatArray:
    """E[AP] of a random ranking, (1/N)(H_N + (R-1)/(N-1) (N - H_N)); 0 if nothing is relevant. Shape (Q,)."""
    harmonic = harmonic_numbers(int(num_candidates.max(initial=0)))[num_candidates]
    size = np.maximum(num_candidates, 1)
    spread = (num_relevant - 1) / np.maximum(num_candidates - 1, 1)
    return np.where(num_relevant > 0, (harmonic + spread * (size - harmonic)) / size, 0.0)


def chance_r_precision(num_candidates: IntArray, num_relevant: IntArray) -> FloatArray:
    """Expected R-precision of a random ranking, R / N. Shape (Q,)."""
    return num_relevant / np.maximum(num_candidates, 1)
