"""How far the mAP of few queries may be from that of many: intervals by the bootstrap (Efron, 1979).

The queries are drawn again and again with replacement, and each draw has its mAP. An interval contains 95 % of these
figures. Groups of near copies are drawn whole, because their average precisions are alike. The gallery does not
change, so an interval is about the choice of the queries.
"""

import numpy as np

from cca_hf.evaluation.arrays import FloatArray, IntArray, members

FEW_QUERIES = 1000  # images on the side of the queries: so many or more have no intervals
_DRAWS = 1000
_ENDS = (2.5, 97.5)  # percentiles

Interval = tuple[float, float]


def map_intervals(
    precisions: FloatArray, groups: IntArray, seed: int = 0
) -> tuple[list[Interval | None], Interval | None]:
    """The intervals of the mAP under each attribute, and of the mean over the attributes.

    An interval is None if the queries of its attribute, or of one of the attributes, are in fewer than two groups.

    Args:
        precisions: (N, A) average precisions, NaN where an image is no query under the attribute.
        groups: (N,) ids of near copies; -1 = none.
    """
    is_query = ~np.isnan(precisions)
    used = is_query.any(axis=1)
    precisions, is_query = precisions[used], is_query[used]
    member, sizes = members(groups[used])
    sums, counts = (np.zeros((len(sizes), precisions.shape[1])) for _ in range(2))  # (groups, attributes)
    np.add.at(sums, member, np.where(is_query, precisions, 0.0))
    np.add.at(counts, member, is_query)
    drawn = _draw(len(sizes), seed)
    queries = drawn @ counts  # (draws, attributes)
    maps = np.divide(drawn @ sums, queries, out=np.full_like(queries, np.nan), where=queries > 0)
    enough = (counts > 0).sum(axis=0) >= 2  # (attributes,)
    of_each = [interval_of(column) if several else None for column, several in zip(maps.T, enough, strict=True)]
    return of_each, interval_of(np.nanmean(maps, axis=1)) if enough.all() else None


def _draw(count: int, seed: int) -> IntArray:
    """(draws, groups) how often each draw of `count` groups contains each group."""
    picked = np.random.default_rng(seed).integers(count, size=(_DRAWS, count))
    places = picked + count * np.arange(_DRAWS)[:, None]
    return np.bincount(places.ravel(), minlength=_DRAWS * count).reshape(_DRAWS, count)


def interval_of(figures: FloatArray) -> Interval:
    """The ends between which 95 % of the figures of the draws lie; NaN ones take no part."""
    low, high = np.nanpercentile(figures, _ENDS)
    return float(low), float(high)
