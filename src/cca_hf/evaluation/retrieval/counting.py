"""How many candidates stand above each relevant one: exact, and without sorting the candidates.

Sorting 100,000 similarities takes several times as long as computing them. All that a ranking is scored by are counts,
and most of these follow from a histogram over fine bins: whatever lies in a higher bin is above, whatever lies in a
lower one is not. Only candidates that share a bin with a relevant one are compared with it, after sorting these few.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .ranking import (
    NOTHING_RELEVANT,
    FloatArray,
    IntArray,
    count_above,
    count_at_least,
    score_ranks,
)

# measured on 100,000 candidates: fewer bins leave more to compare, more bins do not fit into the cache beside a core
_BINS_PER_RELEVANT = 64
_FEWEST_BINS, _MOST_BINS = 2**14, 2**18
_FEW = 2048  # candidates that are sorted sooner than a histogram is made of them
_LEAST_SPAN = 1e-30  # of similarities: cut into bins it would still be a number
_MANY = 0.2  # share of relevant ones from which on there are so many to compare that sorting all is faster


def score_by_counting(
    similarities: NDArray[np.float32], columns: Sequence[slice | IntArray], harmonic: FloatArray
) -> FloatArray:
    """What each query achieved: (Q, 6), the fields of `QueryScores`.

    Args:
        similarities: (Q, N); -inf for candidates that are taken out.
        columns: for each query, those of the relevant candidates, taken out or not.
        harmonic: H_0 ... H_N at least.
    """
    relevant = [row[which] for row, which in zip(similarities, columns, strict=True)]
    relevant = [values[values > -np.inf] for values in relevant]
    score_rows = _compiled() if similarities.shape[1] > _FEW else None
    if score_rows is not None:
        stops = np.cumsum([len(values) for values in relevant])
        return score_rows(similarities, np.concatenate(relevant), stops, harmonic)
    scores = []
    for row, values in zip(similarities, relevant, strict=True):
        values.sort()
        scores.append(score_ranks(values, *count_ranks(row, values), harmonic) if len(values) else NOTHING_RELEVANT)
    return np.array(scores)


def _compiled() -> Callable[[NDArray, NDArray, IntArray, FloatArray], FloatArray] | None:
    try:
        from .compiled_counting import score_rows
    except (ImportError, RuntimeError):  # numba is an extra, and wants a place to keep what it has compiled
        return None
    return score_rows


def count_ranks(candidates: NDArray[np.float32], relevant: NDArray[np.float32]) -> tuple[IntArray, IntArray]:
    """Of one query.

    Args:
        candidates: (N,) similarities in any order, the relevant ones among them; -inf stands for none.
        relevant: (R,) ascending, finite, R >= 1.

    Returns:
        `above` (R,), the candidates strictly above each relevant one, and `through` (R,), those not below it.
    """
    if len(candidates) <= _FEW or len(relevant) > _MANY * len(candidates):
        in_order = np.sort(candidates)
        return count_above(in_order, relevant), count_at_least(in_order, relevant)
    scale = _Bins(candidates, relevant)
    bins = scale.of(candidates)
    histogram = np.bincount(bins, minlength=scale.count)
    higher = len(candidates) - np.cumsum(histogram)  # (bins,) candidates in the bins above each

    own = scale.of(relevant)  # ascending, as `relevant` is
    start, stop = _runs(own)  # of each relevant one, the relevant ones that share its bin
    first, last = _runs(relevant)  # ... and its value
    above, through = higher[own] + stop - last, higher[own] + stop - first

    mixed = histogram[own] > stop - start  # others lie in the bin too
    if mixed.any():
        in_mixed_bin = np.zeros(scale.count, dtype=bool)
        in_mixed_bin[own[mixed]] = True
        members = np.sort(candidates[in_mixed_bin[bins]])
        # members in the bins above are counted in `higher` already: none of them twice
        places = np.flatnonzero(in_mixed_bin)
        members_through = np.cumsum(histogram[places][::-1])[::-1]  # from each mixed bin on upwards
        place = np.searchsorted(places, own[mixed])
        counted = higher[own[mixed]] - (members_through[place] - histogram[own[mixed]])
        above[mixed] = counted + count_above(members, relevant[mixed])
        through[mixed] = counted + count_at_least(members, relevant[mixed])
    return above, through


class _Bins:
    """Bins that rise with the similarity; bin 0 is for what is below every relevant one."""

    def __init__(self, candidates: NDArray[np.float32], relevant: NDArray[np.float32]) -> None:
        wanted = min(max(_BINS_PER_RELEVANT * len(relevant), _FEWEST_BINS), _MOST_BINS)
        self.count = 1 << (wanted - 1).bit_length()
        span = candidates.max() - relevant[0]
        self.bottom = relevant[0] - span / np.float32(self.count)
        self.factor = np.float32(self.count - 3) / span if span > _LEAST_SPAN else np.float32(1)
        self.last = np.float32(self.count - 1)

    def of(self, similarities: NDArray[np.float32]) -> IntArray:
        # each step keeps the order, rounding included, so no similarity falls into a lower bin than a smaller one
        scaled = similarities - self.bottom
        scaled *= self.factor
        return np.clip(scaled, np.float32(0), self.last, out=scaled).astype(np.int64)  # maximum alone is slower


def _runs(values: NDArray) -> tuple[IntArray, IntArray]:
    """For each of ascending values, where the equal ones begin and where they end."""
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    ends = np.append(starts[1:], len(values))
    return np.repeat(starts, ends - starts), np.repeat(ends, ends - starts)
