"""Exact retrieval metrics of one attribute: mAP, recall@k and R-precision, with the chance level beside each.

Protocol of ASEN, ASEN++, RPF and CoKi: candidates are ranked by the dot product of L2-normalised embeddings; average
precision runs over the full list and is 0 where nothing is relevant, and such queries stay in the mean. Ours beside
it: candidates of the query's group (near copies) are taken out, and ties count as the expectation over their random
order, so a constant embedding scores exactly chance.

recall@k is the one of metric learning: the share of queries with at least one relevant candidate among the first k.
Cost: one matmul and one sort per chunk of queries, then two binary searches per relevant candidate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .ranking import (
    FloatArray,
    IntArray,
    chance_average_precision,
    chance_r_precision,
    count_above,
    count_at_least,
    expected_average_precision,
    expected_r_precision,
    harmonic_numbers,
    hit_probability,
)

_CHUNK_BYTES = 64 * 2**20  # of similarities at a time: large enough for the matmul, small beside any gallery


@dataclass(frozen=True)
class RetrievalScores:
    """One number per query, each in [0, 1]; `mean_*` and `per_value` sum them up."""

    average_precision: FloatArray  # (Q,)
    recall: dict[int, FloatArray]  # k -> (Q,)
    r_precision: FloatArray  # (Q,)


@dataclass(frozen=True)
class AttributeRetrieval:
    """Retrieval under one attribute: what every labelled query achieved and what a random ranking would have.

    `queries` are the rows of the given query embeddings that took part (label not -1); all arrays follow them.
    """

    queries: IntArray
    labels: IntArray
    num_candidates: IntArray  # after exclusions
    num_relevant: IntArray
    scores: RetrievalScores
    chance: RetrievalScores

    @property
    def map(self) -> float:
        """Mean of the average precision over the queries."""
        return float(self.scores.average_precision.mean())

    @property
    def chance_map(self) -> float:
        return float(self.chance.average_precision.mean())

    @cached_property
    def per_value(self) -> dict[int, float]:
        """Value id -> mean average precision of its queries."""
        return _mean_per_value(self.labels, self.scores.average_precision)

    @cached_property
    def chance_per_value(self) -> dict[int, float]:
        return _mean_per_value(self.labels, self.chance.average_precision)

    @property
    def map_macro(self) -> float:
        """Mean over the values of their mean average precision: every value counts alike."""
        return float(np.mean(list(self.per_value.values())))

    @property
    def chance_map_macro(self) -> float:
        return float(np.mean(list(self.chance_per_value.values())))


def retrieval_metrics(
    query_embeddings: ArrayLike | torch.Tensor,
    query_labels: ArrayLike | torch.Tensor,
    gallery_embeddings: ArrayLike | torch.Tensor | None = None,
    gallery_labels: ArrayLike | torch.Tensor | None = None,
    *,
    query_groups: ArrayLike | None = None,
    gallery_groups: ArrayLike | None = None,
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int | None = None,
) -> AttributeRetrieval:
    """Rank the gallery for every query and score the rankings.

    Args:
        query_embeddings: (Q, D); normalised here, so the ranking is by cosine.
        query_labels: (Q,) value ids of the attribute; -1 = not labelled: such a query is not asked.
        gallery_embeddings, gallery_labels: (G, D) and (G,); -1 = never a candidate. Without them every query is
            ranked against all other queries (leave-one-out).
        query_groups, gallery_groups: (Q,) and (G,); candidates of the query's own group are taken out, -1 = no group.
        chunk_size: queries per matmul; by default as many as fit 64 MiB of similarities.

    Raises:
        ValueError: on shapes that do not fit, labels or groups below -1, embeddings that are not finite, a `k`
            below 1, one half of a gallery, or when no query is labelled.
    """
    _check_pairs(query_groups, gallery_embeddings, gallery_labels, gallery_groups, ks, chunk_size)
    queries = _Side.of("query", query_embeddings, query_labels, query_groups)
    if gallery_embeddings is None or gallery_labels is None:
        queries = queries.with_every_row_grouped()  # a query is its own group at least: it never finds itself
        gallery = queries
    else:
        gallery = _Side.of("gallery", gallery_embeddings, gallery_labels, gallery_groups)
        if gallery.embeddings.shape[1] != queries.embeddings.shape[1]:
            raise ValueError(
                f"query embeddings have {queries.embeddings.shape[1]} dimensions, "
                f"gallery embeddings {gallery.embeddings.shape[1]}"
            )
    asked = np.flatnonzero(queries.labels >= 0)
    if not len(asked):
        raise ValueError(f"none of the {len(queries.labels)} queries is labelled: all labels are -1")
    # A gallery sorted by value makes the relevant candidates of a query one slice.
    order = np.argsort(gallery.labels, kind="stable")
    gallery = gallery.rows(order[np.searchsorted(gallery.labels[order], 0) :])
    return _score(queries.rows(asked), gallery, asked, tuple(ks), chunk_size)


def to_numpy(array: object) -> NDArray:
    """`array` on the CPU as numpy; half-precision tensors as float32, since numpy knows no bfloat16."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        return (array.float() if array.is_floating_point() else array).numpy()
    return np.asarray(array)


class _Side(NamedTuple):
    """The queries or the gallery: normalised embeddings (n, D), labels (n,), groups (n,) with -1 = none."""

    embeddings: NDArray[np.float32]
    labels: IntArray
    groups: IntArray

    @classmethod
    def of(cls, side: str, embeddings: object, labels: object, groups: object | None) -> "_Side":
        vectors = to_numpy(embeddings).astype(np.float32)  # a copy: normalised in place below
        if vectors.ndim != 2:
            raise ValueError(f"{side} embeddings must have shape (images, dim), got {vectors.shape}")
        if not np.isfinite(vectors).all():
            bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
            raise ValueError(f"{len(bad)} of {len(vectors)} {side} embeddings are not finite, the first is {bad[0]}")
        # Zero vectors stay zero: similar to nothing, tied with everything.
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        ids = _ids(f"{side} labels", labels, len(vectors))
        members = np.full(len(vectors), -1) if groups is None else _ids(f"{side} groups", groups, len(vectors))
        return cls(vectors, ids, members)

    def rows(self, index: IntArray) -> "_Side":
        return _Side(self.embeddings[index], self.labels[index], self.groups[index])

    def with_every_row_grouped(self) -> "_Side":
        fresh = self.groups.max(initial=-1) + 1 + np.arange(len(self.groups))
        return self._replace(groups=np.where(self.groups < 0, fresh, self.groups))


def _score(
    queries: _Side, gallery: _Side, asked: IntArray, ks: tuple[int, ...], chunk_size: int | None
) -> AttributeRetrieval:
    num_queries, num_columns = len(queries.labels), len(gallery.labels)
    chunk_size = chunk_size or max(1, _CHUNK_BYTES // (4 * max(num_columns, 1)))
    unique, column_of = _distinct_rows(gallery.embeddings)
    first = np.searchsorted(gallery.labels, queries.labels, side="left")
    last = np.searchsorted(gallery.labels, queries.labels, side="right")
    excluded = _Exclusions(queries.groups, gallery.groups)
    harmonic = harmonic_numbers(num_columns)

    average_precision, r_precision = np.zeros(num_queries), np.zeros(num_queries)
    num_relevant, best_above, best_tied, best_relevant = np.zeros((4, num_queries), dtype=np.int64)
    for start in range(0, num_queries, chunk_size):
        stop = min(start + chunk_size, num_queries)
        similarities = queries.embeddings[start:stop] @ unique.T
        if column_of is not None:
            similarities = similarities[:, column_of]
        similarities[excluded.pairs(start, stop)] = -np.inf
        found = [similarities[row, first[start + row] : last[start + row]].copy() for row in range(stop - start)]
        similarities.sort(axis=1)
        for query, candidates, relevant in zip(range(start, stop), similarities, found, strict=True):
            relevant = np.sort(relevant[relevant > -np.inf])
            if not len(relevant):
                continue
            above, through = count_above(candidates, relevant), count_at_least(candidates, relevant)
            average_precision[query] = expected_average_precision(relevant, above, through, harmonic)
            r_precision[query] = expected_r_precision(above, through)
            num_relevant[query] = len(relevant)
            best_above[query], best_tied[query] = above[-1], through[-1] - above[-1]
            best_relevant[query] = count_at_least(relevant, relevant[-1:])[0]

    num_candidates = num_columns - excluded.counts
    nothing_above = np.zeros_like(num_candidates)
    return AttributeRetrieval(
        queries=asked,
        labels=queries.labels,
        num_candidates=num_candidates,
        num_relevant=num_relevant,
        scores=RetrievalScores(
            average_precision,
            {k: hit_probability(k, best_above, best_tied, best_relevant) for k in ks},
            r_precision,
        ),
        chance=RetrievalScores(
            chance_average_precision(num_candidates, num_relevant),
            {k: hit_probability(k, nothing_above, num_candidates, num_relevant) for k in ks},
            chance_r_precision(num_candidates, num_relevant),
        ),
    )


class _Exclusions:
    """Which gallery columns each query must not see: those of its own group."""

    def __init__(self, query_groups: IntArray, gallery_groups: IntArray) -> None:
        self.order = np.argsort(gallery_groups, kind="stable")
        in_order = gallery_groups[self.order]
        self.first = np.searchsorted(in_order, query_groups, side="left")
        last = np.searchsorted(in_order, query_groups, side="right")
        self.counts: IntArray = np.where(query_groups < 0, 0, last - self.first)

    def pairs(self, start: int, stop: int) -> tuple[IntArray, IntArray]:
        """(rows within the chunk, gallery columns) of every excluded pair of the queries start:stop."""
        counts = self.counts[start:stop]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(np.arange(stop - start), counts), self.order[
            np.repeat(self.first[start:stop], counts) + within
        ]


def _distinct_rows(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], IntArray | None]:
    """The distinct rows and, where some repeat, which of them each row is.

    A matmul may round the same two vectors differently in another column (its edge kernels sum in another order);
    computing every distinct vector once is what makes copies tie exactly.
    """
    if not vectors.size:
        return vectors, None
    comparable = np.ascontiguousarray(vectors + 0.0)  # -0.0 -> 0.0: rows are compared by their bytes
    as_bytes = comparable.view(np.dtype((np.void, comparable.dtype.itemsize * comparable.shape[1])))[:, 0]
    _, index, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
    return (vectors, None) if len(index) == len(vectors) else (vectors[index], inverse)


def _mean_per_value(labels: IntArray, scores: FloatArray) -> dict[int, float]:
    values, position, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.bincount(position, weights=scores) / counts
    return {int(value): float(mean) for value, mean in zip(values, means, strict=True)}


def _ids(name: str, ids: object, length: int) -> IntArray:
    array = to_numpy(ids)
    if array.shape != (length,):
        raise ValueError(f"{name} must have shape ({length},), one for each embedding, got {array.shape}")
    if length and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers (-1 = none), got {array.dtype}")
    if array.min(initial=0) < -1:
        raise ValueError(f"{name} must be -1 (none) or at least 0, got {array.min()}")
    return array.astype(np.int64)


def _check_pairs(
    query_groups: object | None,
    gallery_embeddings: object | None,
    gallery_labels: object | None,
    gallery_groups: object | None,
    ks: Sequence[int],
    chunk_size: int | None,
) -> None:
    if (gallery_embeddings is None) != (gallery_labels is None):
        raise ValueError("gallery_embeddings and gallery_labels go together: give both, or neither for leave-one-out")
    if gallery_embeddings is None and gallery_groups is not None:
        raise ValueError("gallery_groups without a gallery: leave-one-out takes query_groups alone")
    if gallery_embeddings is not None and (query_groups is None) != (gallery_groups is None):
        raise ValueError("query_groups and gallery_groups go together: give both or neither")
    if any(k < 1 for k in ks):
        raise ValueError(f"ks must be at least 1, got {tuple(ks)}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
