"""How many candidates stand above each relevant one: exact, and without sorting the candidates.

Sorting 100,000 similarities takes several times as long as computing them. All that a ranking is scored by are counts,
and most of these follow from a histogram over fine bins: whatever lies in a higher bin is above, whatever lies in a
lower one is not. Only candidates that share a bin with a relevant one are compared with it, after sorting these few.
"""

import numpy as np
from numpy.typing import NDArray

from .ranking import IntArray, count_above, count_at_least

_MOST_BINS = 2**16  # of 8 bytes each: as many as the cache beside a core holds
_FEW = 2048  # candidates that are sorted sooner than a histogram is made of them


def count_ranks(candidates: NDArray[np.float32], relevant: NDArray[np.float32]) -> tuple[IntArray, IntArray]:
    """Of one query.

    Args:
        candidates: (N,) similarities in any order, the relevant ones among them; -inf stands for none.
        relevant: (R,) ascending, finite, R >= 1.

    Returns:
        `above` (R,), the candidates strictly above each relevant one, and `through` (R,), those not below it.
    """
    if len(candidates) <= _FEW:
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
    """Bins that rise with the similarity: 0 for what is below every relevant one, 1 for the lowest of these."""

    def __init__(self, candidates: NDArray[np.float32], relevant: NDArray[np.float32]) -> None:
        self.count = min(_MOST_BINS, 1 << len(candidates).bit_length())
        self.lowest = relevant[0]
        span = candidates.max() - self.lowest
        self.factor = np.float32(self.count - 2) / span if span > 0 else np.float32(0)

    def of(self, similarities: NDArray[np.float32]) -> IntArray:
        scaled = np.maximum(similarities, self.lowest - 1)  # -inf has no bin
        scaled -= self.lowest
        scaled *= self.factor
        scaled += 1
        # each step keeps the order, rounding included, so no similarity falls into a lower bin than a smaller one
        return np.clip(scaled, 0, self.count - 1, out=scaled).astype(np.int64)


def _runs(values: NDArray) -> tuple[IntArray, IntArray]:
    """For each of ascending values, where the equal ones begin and where they end."""
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    ends = np.append(starts[1:], len(values))
    return np.repeat(starts, ends - starts), np.repeat(ends, ends - starts)
