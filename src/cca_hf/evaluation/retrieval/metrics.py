"""Exact retrieval metrics of one attribute: mAP, recall@k and R-precision, with the chance level beside each.

Protocol of ASEN, ASEN++, RPF and CoKi: candidates are ranked by the dot product of L2-normalised embeddings; average
precision runs over the full list and is 0 where nothing is relevant, and such queries stay in the mean. Ours beside
it: candidates of the query's group (near copies) are taken out, and ties count as the expectation over their random
order, so a constant embedding scores exactly chance. For labels that say too little there are sets of values: all
that a picture shows (relevant = one is shared), and those it may show (out of the rankings of queries for them).

recall@k is the one of metric learning: the share of queries with at least one relevant candidate among the first k.
Cost: one matmul per chunk of queries, then a histogram per query (`counting.py`), in as many threads as PyTorch has,
each with chunks of its own; on an accelerator one sort of the chunk (`sorting.py`).
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .candidates import Exclusions, Relevance, Side
from .counting import score_by_counting
from .own_cores import own_cores
from .ranking import (
    FloatArray,
    IntArray,
    QueryScores,
    chance_average_precision,
    chance_r_precision,
    harmonic_numbers,
    hit_probability,
)
from .sorting import score_by_sorting

# of similarities at a time: a product of so many queries that packing the gallery for it costs little
_CHUNK_BYTES, _BYTES_OF_ALL_THREADS = 128 * 2**20, 2**30


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
    query_values: ArrayLike | None = None,
    gallery_values: ArrayLike | None = None,
    maybe_values: ArrayLike | None = None,
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int | None = None,
    device: torch.device | str | None = None,
) -> AttributeRetrieval:
    """Rank the gallery for every query and score the rankings.

    Args:
        query_embeddings: (Q, D); normalised here, so the ranking is by cosine.
        query_labels: (Q,) value ids of the attribute; -1 = not labelled: such a query is not asked.
        gallery_embeddings, gallery_labels: (G, D) and (G,); -1 = never a candidate. Without them every query is
            ranked against all other queries (leave-one-out).
        query_groups, gallery_groups: (Q,) and (G,); candidates of the query's own group are taken out, -1 = no group.
        query_values, gallery_values: (Q, V) and (G, V) booleans, all values that each picture shows; its label is one
            of them in any case. With them a candidate is relevant if it shares any value with the query; who asks and
            who is a candidate is still for the labels to say.
        maybe_values: (G, V) booleans, or (Q, V) leave-one-out: the values that each candidate may show. It is taken
            out of the ranking of a query with such a label, unless it is relevant to it anyway.
        chunk_size: queries per matmul; by default as many as fit 128 MiB of similarities; every thread
            has a matmul of its own.
        device: of an accelerator, which computes the similarities and sorts them. By default they stay on the CPU,
            where counting is faster than sorting.

    Raises:
        ValueError: on shapes that do not fit, labels or groups below -1, embeddings that are not finite, a `k`
            below 1, one half of a gallery, or when no query is labelled.
    """
    _check_pairs(query_groups, gallery_embeddings, gallery_labels, gallery_groups, gallery_values, ks, chunk_size)
    if gallery_embeddings is None or gallery_labels is None:
        queries = Side.of("query", query_embeddings, query_labels, query_groups, query_values, maybe_values)
        queries = queries.with_every_row_grouped()  # a query is its own group at least: it never finds itself
        gallery = queries
    else:
        queries = Side.of("query", query_embeddings, query_labels, query_groups, query_values)
        gallery = Side.of("gallery", gallery_embeddings, gallery_labels, gallery_groups, gallery_values, maybe_values)
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
    return _score(queries.rows(asked), gallery, asked, tuple(ks), chunk_size, device)


def _score(
    queries: Side,
    gallery: Side,
    asked: IntArray,
    ks: tuple[int, ...],
    chunk_size: int | None,
    device: torch.device | str | None,
) -> AttributeRetrieval:
    num_queries, num_columns = len(queries.labels), len(gallery.labels)
    num_threads = torch.get_num_threads() if device is None else 1  # an accelerator has one queue of work
    chunk_size = chunk_size or _default_chunk_size(num_queries, num_columns, num_threads)
    unique, column_of = _distinct_rows(gallery.embeddings)
    relevance = Relevance(queries, gallery)
    excluded = Exclusions(queries.groups, gallery.groups)
    harmonic = harmonic_numbers(num_columns)

    achieved = np.zeros((num_queries, len(QueryScores._fields)))
    num_candidates = np.zeros(num_queries, dtype=np.int64)
    asking, answering = (torch.from_numpy(each).to(device or "cpu") for each in (queries.embeddings, unique))
    of_thread = threading.local()  # a buffer for all chunks of a thread

    def rank(start: int) -> None:
        stop = min(start + chunk_size, num_queries)
        if not hasattr(of_thread, "buffer"):
            of_thread.buffer = asking.new_empty(min(chunk_size, num_queries), len(answering))
        columns = [relevance.columns(query) for query in range(start, stop)]
        similarities = torch.mm(asking[start:stop], answering.T, out=of_thread.buffer[: stop - start])
        if column_of is not None:
            similarities = similarities[:, column_of]
        similarities[excluded.pairs(start, stop)] = -torch.inf
        num_candidates[start:stop] = num_columns - excluded.counts[start:stop]
        undecided = relevance.undecided(start, columns)
        if undecided is not None:
            similarities[undecided] = -torch.inf
            num_candidates[start:stop] = (similarities > -torch.inf).sum(dim=1).cpu().numpy()
        if device is None:
            achieved[start:stop] = score_by_counting(similarities.numpy(), columns, harmonic)
        else:
            achieved[start:stop] = score_by_sorting(similarities, columns, harmonic)

    chunks = range(0, num_queries, chunk_size)
    if device is None:
        with own_cores(num_threads) as threads:
            for _ in threads.map(rank, chunks):
                pass  # what has failed is raised here
    else:
        for start in chunks:
            rank(start)

    average_precision, r_precision = achieved[:, :2].T
    num_relevant, *best = achieved[:, 2:].T.astype(np.int64)
    nothing_above = np.zeros_like(num_candidates)
    return AttributeRetrieval(
        queries=asked,
        labels=queries.labels,
        num_candidates=num_candidates,
        num_relevant=num_relevant,
        scores=RetrievalScores(
            average_precision,
            {k: hit_probability(k, *best) for k in ks},
            r_precision,
        ),
        chance=RetrievalScores(
            chance_average_precision(num_candidates, num_relevant),
            {k: hit_probability(k, nothing_above, num_candidates, num_relevant) for k in ks},
            chance_r_precision(num_candidates, num_relevant),
        ),
    )


def _default_chunk_size(num_queries: int, num_columns: int, num_threads: int) -> int:
    """Queries per matmul of a thread."""
    that_fit = min(_CHUNK_BYTES, _BYTES_OF_ALL_THREADS // num_threads) // (4 * max(num_columns, 1))
    return max(1, min(that_fit, -(-num_queries // num_threads)))


def _distinct_rows(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], IntArray | None]:
    """The distinct rows and, where some repeat, which of them each row is.

    A matmul may round the same two vectors differently in another column (its edge kernels sum in another order);
    computing every distinct vector once is what makes copies tie exactly.
    """
    comparable = np.ascontiguousarray(vectors + 0.0)  # -0.0 -> 0.0: rows are compared by their bytes
    if vectors.shape[1] > 1 and len(np.unique(comparable[:, :2].copy().view(np.uint64))) == len(vectors):
        return vectors, None  # which settles almost every gallery
    hashes = np.fromiter((hash(row.tobytes()) for row in comparable), dtype=np.int64, count=len(comparable))
    if len(np.unique(hashes)) == len(vectors):  # as they are but for copies
        return vectors, None
    as_bytes = comparable.view(np.dtype((np.void, comparable.dtype.itemsize * comparable.shape[1])))[:, 0]
    _, index, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
    return vectors[index], inverse


def _mean_per_value(labels: IntArray, scores: FloatArray) -> dict[int, float]:
    values, position, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.bincount(position, weights=scores) / counts
    return {int(value): float(mean) for value, mean in zip(values, means, strict=True)}


def _check_pairs(
    query_groups: object | None,
    gallery_embeddings: object | None,
    gallery_labels: object | None,
    gallery_groups: object | None,
    gallery_values: object | None,
    ks: Sequence[int],
    chunk_size: int | None,
) -> None:
    if (gallery_embeddings is None) != (gallery_labels is None):
        raise ValueError("gallery_embeddings and gallery_labels go together: give both, or neither for leave-one-out")
    if gallery_embeddings is None and gallery_groups is not None:
        raise ValueError("gallery_groups without a gallery: leave-one-out takes query_groups alone")
    if gallery_embeddings is None and gallery_values is not None:
        raise ValueError("gallery_values without a gallery: leave-one-out takes query_values alone")
    if gallery_embeddings is not None and (query_groups is None) != (gallery_groups is None):
        raise ValueError("query_groups and gallery_groups go together: give both or neither")
    if any(k < 1 for k in ks):
        raise ValueError(f"ks must be at least 1, got {tuple(ks)}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
