"""Scores of a ranking in which equal similarities have a random order: exact expectations, without sampling.

A query has N candidates, R of them relevant. Where m candidates share one similarity, B candidates are above them,
b of these relevant, and r of the m are relevant, every order of the m is equally likely. Number j of the m is then
relevant with probability r/m, after (j-1)(r-1)/(m-1) relevant ones of the m on average, and

    expected precision there, summed over j:  (r/m) sum_j (b + 1 + (j-1)(r-1)/(m-1)) / (B + j)

With H_n the harmonic numbers the sums are H_{B+m} - H_B and m - (B+1)(H_{B+m} - H_B), so a tie costs two look-ups.
If all candidates tie (a constant embedding, or a random ranking), B = b = 0, m = N and r = R: the chance level.

So a ranking is scored by B and B + m of each relevant candidate. Sorting the similarities of a query gives both, on
any device. If numba is installed, compiled loops count them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cca_hf.evaluation.arrays import FloatArray, IntArray

_FEW = 2048  # candidates: up to this number, sorting is as fast as the compiled loops


class QueryScores(NamedTuple):
    """Scores of one query; its recall follows from the fields of the best relevant candidate."""

    average_precision: float
    r_precision: float
    num_relevant: int
    best_above: int  # candidates strictly above the best relevant one
    best_tied: int  # candidates as similar as that, itself included
    best_relevant: int  # how many of these are relevant
    worst_above: int  # as the three above, for the worst relevant one
    worst_tied: int
    worst_relevant: int


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
        return QueryScores(0.0, 0.0, 0, 0, 0, 0, 0, 0, 0)
    return QueryScores(
        expected_average_precision(relevant, above, through, harmonic),
        expected_r_precision(above, through),
        len(relevant),
        int(above[-1]),
        int(through[-1] - above[-1]),
        int(count_at_least(relevant, relevant[-1:])[0]),
        int(above[0]),
        int(through[0] - above[0]),
        int(len(relevant) - count_above(relevant, relevant[:1])[0]),
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


def expected_inverse_rank(above: IntArray, tied: IntArray, relevant: IntArray) -> FloatArray:
    """Expected 1 / rank of the last relevant candidate of each query, (Q,); 0 if nothing is relevant.

    The last of r relevant candidates among m tied ones is number j with probability C(j-1, r-1) / C(m, r).

    Args:
        above: (Q,) candidates strictly above the worst relevant one.
        tied: (Q,) candidates as similar as the worst relevant one, itself included.
        relevant: (Q,) how many of these are relevant.
    """
    cases, case_of = np.unique(np.stack([above, tied, relevant], axis=1), axis=0, return_inverse=True)
    return np.array([_inverse_rank_of_last(*case) for case in cases.tolist()])[case_of.reshape(-1)]


def _inverse_rank_of_last(above: int, tied: int, relevant: int) -> float:
    if relevant == 0:
        return 0.0
    if tied == relevant:
        return 1 / (above + tied)
    places = np.arange(tied, relevant - 1, -1)  # from the last place on
    ratios = (places[:-1] - relevant) / (places[:-1] - 1)  # of the probabilities of two neighbouring places
    probabilities = np.cumprod(np.concatenate([[relevant / tied], ratios]))
    return float((probabilities / (above + places)).sum())


def chance_average_precision(num_candidates: IntArray, num_relevant: IntArray) -> FloatArray:
    """E[AP] of a random ranking, (1/N)(H_N + (R-1)/(N-1) (N - H_N)); 0 if nothing is relevant. Shape (Q,)."""
    harmonic = harmonic_numbers(int(num_candidates.max(initial=0)))[num_candidates]
    size = np.maximum(num_candidates, 1)
    spread = (num_relevant - 1) / np.maximum(num_candidates - 1, 1)
    return np.where(num_relevant > 0, (harmonic + spread * (size - harmonic)) / size, 0.0)


def chance_r_precision(num_candidates: IntArray, num_relevant: IntArray) -> FloatArray:
    """Expected R-precision of a random ranking, R / N. Shape (Q,)."""
    return num_relevant / np.maximum(num_candidates, 1)


def score_queries(
    similarities: NDArray[np.float32] | torch.Tensor, columns: Sequence[slice | IntArray], harmonic: FloatArray
) -> FloatArray:
    """The fields of `QueryScores` for each query, shape (Q, 9).

    Args:
        similarities: (Q, N), a tensor if an accelerator computed them; -inf = the candidate is left out. An array is
            sorted in place.
        columns: the columns of the relevant candidates of each query, including those that are left out.
        harmonic: H_0 ... H_N at least.
    """
    relevant: list[Any] = [row[which] for row, which in zip(similarities, columns, strict=True)]
    relevant = [values[values > -np.inf] for values in relevant]
    if isinstance(similarities, np.ndarray):
        score_rows = _compiled() if similarities.shape[1] > _FEW else None
        if score_rows is not None:
            stops = np.cumsum([len(values) for values in relevant])
            return score_rows(similarities, np.concatenate(relevant), stops, harmonic)
        search: Callable[..., Any] = np.searchsorted
        similarities.sort(axis=1)
        for values in relevant:
            values.sort()
    else:
        search = torch.searchsorted
        similarities = similarities.sort(dim=1).values
        relevant = [values.sort().values for values in relevant]
    below = [search(row, values, side="left") for row, values in zip(similarities, relevant, strict=True)]
    not_above = [search(row, values, side="right") for row, values in zip(similarities, relevant, strict=True)]
    count = similarities.shape[1]
    counts = zip(*map(_on_cpu, (relevant, not_above, below)), strict=True)
    return np.array([score_ranks(values, count - last, count - first, harmonic) for values, last, first in counts])


def _compiled() -> Callable[[NDArray, NDArray, IntArray, FloatArray], FloatArray] | None:
    try:
        from .compiled_counting import score_rows
    except (ImportError, RuntimeError):  # numba is an extra, and it needs a folder where it can cache compiled code
        return None
    return score_rows


def _on_cpu(rows: list[Any]) -> Sequence[NDArray]:
    """Tensors of any device as arrays, with a single copy; arrays unchanged."""
    if isinstance(rows[0], np.ndarray):
        return rows
    return [part.numpy() for part in torch.cat(rows).cpu().split([len(row) for row in rows])]
