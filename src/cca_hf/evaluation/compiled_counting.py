"""Counting and scoring as machine-code loops: the same figures, a few times sooner. Needs numba, the extra [fast].

numpy walks over the candidates a dozen times and holds Python's lock while it makes a histogram. Here they are read
twice, once for the histogram and once for those that share a bin with a relevant one, and threads run side by side.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .ranking import FloatArray, IntArray, QueryScores

_BINS = 2**16  # a bin fits 16 bits, and their histogram the cache beside a core
_LEAST_SPAN = np.float32(1e-30)  # of similarities: cut into bins it would still be a number


def count_ranks(candidates: NDArray[np.float32], relevant: NDArray[np.float32]) -> tuple[IntArray, IntArray]:
    """As `counting.count_ranks`."""
    above, through = np.empty((2, len(relevant)), dtype=np.int64)
    _count(np.ascontiguousarray(candidates), np.ascontiguousarray(relevant), candidates.max(), above, through)
    return above, through


def score(candidates: NDArray[np.float32], relevant: NDArray[np.float32], harmonic: FloatArray) -> QueryScores:
    """As `count_ranks` and `ranking.score_ranks` after it; R >= 1."""
    return QueryScores(*_score(np.ascontiguousarray(candidates), relevant, candidates.max(), harmonic))


@njit("i8(f4[::1], f4, b1)", nogil=True, cache=True)
def _first(ascending, value, above):  # type: ignore[no-untyped-def]
    """Place of the first that is not below the value, or that is above it."""
    low, high = 0, len(ascending)
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < value or (above and ascending[middle] == value):
            low = middle + 1
        else:
            high = middle
    return low


@njit("void(f4[::1], f4[::1], f4, i8[::1], i8[::1])", nogil=True, cache=True)
def _count(candidates, relevant, top, above, through):  # type: ignore[no-untyped-def]
    bottom, span, zero, one = relevant[0], top - relevant[0], np.float32(0), np.float32(1)
    factor = np.float32(_BINS - 2) / span if span > _LEAST_SPAN else one
    bins = np.empty(len(candidates), dtype=np.uint16)
    for i in range(len(candidates)):
        # each step keeps the order, rounding included; bin 0 is for what is below every relevant one
        scaled = (candidates[i] - bottom) * factor + one
        bins[i] = np.int32(scaled if scaled > zero else zero)
    histogram = np.zeros(_BINS, dtype=np.uint32)
    for i in range(len(candidates)):
        histogram[bins[i]] += 1

    # From the top bin down: what lies in higher bins is above. Relevant ones that share a bin are a run of it.
    runs = np.zeros(_BINS, dtype=np.uint8)  # 0: nothing else is in the bin; 1: its run is one relevant one; 2: several
    starts = np.empty(_BINS, dtype=np.int32)  # of the runs, by bin
    stops = np.empty(len(relevant), dtype=np.int32)  # by start
    higher, place, stop = 0, _BINS - 1, len(relevant)
    while stop > 0:
        own = np.int32((relevant[stop - 1] - bottom) * factor + one)
        start = stop - 1
        while start > 0 and np.int32((relevant[start - 1] - bottom) * factor + one) == own:
            start -= 1
        while place > own:
            higher += histogram[place]
            place -= 1
        above[start:stop], through[start:stop] = higher, higher
        if histogram[own] == 1:
            through[start] += 1
        else:
            runs[own], starts[own], stops[start] = min(stop - start, 2), start, stop
        stop = start

    # A candidate in the bin of a run is above a part of it, up to some place: counted there, and summed up below.
    above_up_to, through_up_to = np.zeros((2, len(relevant)), dtype=np.int64)
    for i in range(len(candidates)):
        run = runs[bins[i]]
        if run == 0:
            continue
        value, start = candidates[i], starts[bins[i]]
        if run == 1:
            above_up_to[start] += value > relevant[start]
            through_up_to[start] += value >= relevant[start]
            continue
        run_of_bin = relevant[start : stops[start]]
        below = _first(run_of_bin, value, False)
        if below > 0:
            above_up_to[start + below - 1] += 1
        if below < len(run_of_bin) and run_of_bin[below] == value:
            below = _first(run_of_bin, value, True)
        if below > 0:
            through_up_to[start + below - 1] += 1
    start = 0
    while start < len(relevant):
        own = np.int32((relevant[start] - bottom) * factor + one)
        if runs[own] == 0:
            start += 1
            continue
        sum_above, sum_through = 0, 0
        for i in range(stops[start] - 1, start - 1, -1):
            sum_above += above_up_to[i]
            sum_through += through_up_to[i]
            above[i] += sum_above
            through[i] += sum_through
        start = stops[start]


@njit("Tuple((f8, f8, i8, i8, i8, i8))(f4[::1], f4[::1], f4, f8[::1])", nogil=True, cache=True)
def _score(candidates, relevant, top, harmonic):  # type: ignore[no-untyped-def]
    above, through = np.empty(len(relevant), dtype=np.int64), np.empty(len(relevant), dtype=np.int64)
    _count(candidates, relevant, top, above, through)
    precision, r_precision, tied, stop = 0.0, 0.0, 0, len(relevant)
    while stop > 0:  # relevant ones that are equal, from the best on; the names are those of the head of ranking.py
        start = stop - 1
        while start > 0 and relevant[start - 1] == relevant[stop - 1]:
            start -= 1
        b, r = len(relevant) - stop, stop - start
        big_b, m = above[start], through[start] - above[start]
        if m == 1:
            precision += (b + 1) / (big_b + 1)
        else:
            inverse_ranks = harmonic[big_b + m] - harmonic[big_b]
            places = m - (big_b + 1) * inverse_ranks
            precision += r * ((b + 1) * inverse_ranks + (r - 1) / (m - 1) * places) / m
        r_precision += r * min(max((len(relevant) - big_b) / m, 0.0), 1.0)
        if b == 0:
            tied = r
        stop = start
    mean = 1 / len(relevant)
    return precision * mean, r_precision * mean, len(relevant), above[-1], through[-1] - above[-1], tied
