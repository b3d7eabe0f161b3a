"""Counting and scoring in compiled loops: the same figures, several times faster. Needs numba, the extra [fast].

The place of a similarity is the number of relevant similarities of its query that are below it. The counts of
candidates per place determine all scores of a ranking. Bins of similarity give almost every candidate its place by one
look-up; only candidates that share a bin with a relevant one are compared with it. The loops release Python's lock.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cca_hf.evaluation.arrays import FloatArray, IntArray

_BINS_PER_RELEVANT = 32  # measured on 100,000 candidates: fewer bins leave more to compare, more bins exceed the cache
_FEWEST_BINS, _MOST_BINS = 2**12, 2**16  # a bin fits 16 bits
_LEAST_SPAN = np.float32(1e-30)  # of similarities: a smaller one would overflow when divided into bins

_NUM_SCORES = 9  # the fields of `ranking.QueryScores`, in their order

_one, _two = np.uintp(1), np.uintp(2)  # indices are unsigned here, because a signed one may count from the end


@njit("Tuple((f4, f4, i8))(f4[::1])", nogil=True, cache=True)
def _scale(relevant):  # type: ignore[no-untyped-def]
    """`bottom`, `factor` and `num_bins` for `_bin_of`."""
    num_bins = _FEWEST_BINS
    while num_bins < min(_BINS_PER_RELEVANT * len(relevant), _MOST_BINS):
        num_bins *= 2
    bottom = top = relevant[0]
    for value in relevant:
        bottom, top = min(bottom, value), max(top, value)
    span = top - bottom
    return bottom, np.float32(num_bins - 3) / span if span > _LEAST_SPAN else np.float32(1), num_bins


@njit("u2(f4, f4, f4, i8)", nogil=True, cache=True)
def _bin_of(value, bottom, factor, num_bins):  # type: ignore[no-untyped-def]
    """The first bin is for similarities below all relevant ones. No step changes the order, not even by rounding."""
    zero, last = np.float32(0), np.float32(num_bins - 1)
    scaled = (value - bottom) * factor + np.float32(1)
    scaled = scaled if scaled > zero else zero
    return np.uint16(np.int32(scaled if scaled < last else last))


@njit("void(f4[::1], f4[::1], f4, f4, i8, u4[::1], u4[::1])", nogil=True, cache=True)
def _sort_into_bins(relevant, in_order, bottom, factor, num_bins, codes, taken):  # type: ignore[no-untyped-def]
    """A bin's code: twice the place of its lowest similarity, and one more if relevant ones are in it.

    `taken` is scratch memory, (2 R + 1,).
    """
    codes[: num_bins + 1] = 0
    for value in relevant:
        codes[np.uintp(_bin_of(value, bottom, factor, num_bins))] += np.uint32(1)
    below = np.uint32(0)
    for i in range(num_bins + 1):
        inside = codes[i]
        codes[i] = np.uint32(2) * below + np.uint32(inside > 0)
        below += inside
    taken[: 2 * len(relevant) + 1] = 0
    for value in relevant:
        code = np.uintp(codes[np.uintp(_bin_of(value, bottom, factor, num_bins))])
        in_order[(code >> _one) + np.uintp(taken[code])] = value
        taken[code] += np.uint32(1)
    start = np.int64(0)
    while start < len(relevant):
        bin_of_it = np.uintp(_bin_of(in_order[start], bottom, factor, num_bins))
        stop = np.int64(codes[bin_of_it + _one] >> np.uint32(1))
        if stop - start > 16:  # only if nearly all similarities are alike
            in_order[start:stop].sort()
        else:
            for i in range(start + 1, stop):
                value, at = in_order[i], i
                while at > start and in_order[at - 1] > value:
                    in_order[at] = in_order[at - 1]
                    at -= 1
                in_order[at] = value
        start = stop


@njit("void(f4[::1], f4[::1], f4, f4, i8, u4[::1], u2[::1], u4[::1], u4[::1])", nogil=True, cache=True)
def _count(candidates, in_order, bottom, factor, num_bins, codes, bins, shared, counts):  # type: ignore[no-untyped-def]
    """Afterwards counts[2 p] are the candidates at place p, and counts[2 p + 1] those equal to in_order[p]."""
    for i in range(len(candidates)):
        bins[i] = _bin_of(candidates[i], bottom, factor, num_bins)
    counts[:] = 0
    num_shared = np.uintp(0)
    for i in range(len(candidates)):
        code = np.uintp(codes[np.uintp(bins[i])])
        counts[code] += np.uint32(1)
        shared[num_shared] = i  # overwritten by the next one if the code is even: a branch would be unpredictable
        num_shared += code & _one
    counts[1::2] = 0
    for i in shared[:num_shared]:
        value, bin_of_it = candidates[np.uintp(i)], np.uintp(bins[np.uintp(i)])
        place = np.uintp(codes[bin_of_it]) >> _one
        place += np.uintp(value > in_order[place])
        place += np.uintp(value > in_order[place])
        if value > in_order[place]:
            place += _one
            stop = np.uintp(codes[bin_of_it + _one]) >> _one
            while place < stop:
                middle = (place + stop) >> _one
                if in_order[middle] < value:
                    place = middle + _one
                else:
                    stop = middle
        counts[_two * place + np.uintp(value == in_order[place])] += np.uint32(1)


@njit("void(f4[::1], u4[::1], f8[::1], f8[::1])", nogil=True, cache=True)
def _score(relevant, counts, harmonic, scores):  # type: ignore[no-untyped-def]
    """As `ranking.score_ranks`; the names are those of the head of ranking.py."""
    count = len(relevant)
    precision, r_precision, stop, big_b = 0.0, 0.0, count, np.int64(counts[2 * count])
    while stop > 0:  # equal relevant ones together, from the best on
        start = stop - 1
        while start > 0 and relevant[start - 1] == relevant[stop - 1]:
            start -= 1
        b, r, m = count - stop, stop - start, np.int64(counts[2 * start + 1])
        if m == 1:
            precision += (b + 1) / (big_b + 1)
        else:
            inverse_ranks = harmonic[big_b + m] - harmonic[big_b]
            places = m - (big_b + 1) * inverse_ranks
            precision += r * ((b + 1) * inverse_ranks + (r - 1) / (m - 1) * places) / m
        r_precision += r * min(max((count - big_b) / m, 0.0), 1.0)
        if b == 0:
            scores[3], scores[4], scores[5] = big_b, m, r
        if start == 0:
            scores[6], scores[7], scores[8] = big_b, m, r
        big_b += m + np.int64(counts[2 * start])
        stop = start
    scores[0], scores[1], scores[2] = precision / count, r_precision / count, count


@njit("void(f4[:,::1], f4[::1], i8[::1], f8[::1], f8[:,::1])", nogil=True, cache=True)
def _score_rows(similarities, relevant, stops, harmonic, scores):  # type: ignore[no-untyped-def]
    num_candidates = similarities.shape[1]
    in_order = np.empty(num_candidates + 2, dtype=np.float32)
    counts = np.empty(2 * num_candidates + 2, dtype=np.uint32)
    bins = np.empty(num_candidates, dtype=np.uint16)
    shared = np.empty(num_candidates + 1, dtype=np.uint32)
    codes = np.empty(_MOST_BINS + 1, dtype=np.uint32)
    first = 0
    for query in range(len(stops)):
        of_query = relevant[first : stops[query]]
        first, count = stops[query], len(of_query)
        if count > 0:
            bottom, factor, num_bins = _scale(of_query)
            _sort_into_bins(of_query, in_order, bottom, factor, num_bins, codes, counts)
            in_order[count : count + 2] = np.inf  # no candidate is above these
            of_place = counts[: 2 * count + 2]
            _count(similarities[query], in_order, bottom, factor, num_bins, codes, bins, shared, of_place)
            _score(in_order[:count], of_place, harmonic, scores[query])


def score_rows(
    similarities: NDArray[np.float32], relevant: NDArray[np.float32], stops: IntArray, harmonic: FloatArray
) -> FloatArray:
    """As `ranking.score_queries`.

    Args:
        similarities: (Q, N), -inf for candidates that are taken out.
        relevant: similarities of the relevant candidates, one query after the other, without -inf.
        stops: (Q,) where the relevant ones of each query end.
        harmonic: H_0 ... H_N at least.
    """
    scores = np.zeros((len(similarities), _NUM_SCORES))
    _score_rows(np.ascontiguousarray(similarities), relevant, stops, harmonic, scores)
    return scores
