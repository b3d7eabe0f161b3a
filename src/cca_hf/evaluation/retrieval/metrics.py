"""Exact retrieval metrics of one attribute: mAP, recall@k and R-precision, with the chance level beside each.

Protocol of ASEN, ASEN++, RPF and CoKi: candidates are ranked by the dot product of L2-normalised embeddings. Average
precision is computed over the full list. It is 0 for a query without a relevant candidate, which stays in the mean.
Added here: candidates of the query's group (near copies) are left out, and ties count as the expectation over their
random order, so that a constant embedding scores exactly chance. recall@k is that of metric learning: the share of
queries with at least one relevant candidate among the first k.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cca_hf.evaluation.arrays import FloatArray, IntArray, check_positive

from .candidates import Exclusions, Relevance, Side
from .ranking import (
    QueryScores,
    chance_average_precision,
    chance_r_precision,
    expected_inverse_rank,
    harmonic_numbers,
    hit_probability,
    score_queries,
)

# of similarities at a time: enough queries for an efficient matrix product
_CHUNK_BYTES, _BYTES_OF_ALL_THREADS = 128 * 2**20, 2**30


@dataclass(frozen=True)
class RetrievalScores:
    """One number per query, in [0, 1]."""

    average_precision: FloatArray  # (Q,)
    recall: dict[int, FloatArray]  # k -> (Q,)
    r_precision: FloatArray  # (Q,)


@dataclass(frozen=True)
class AttributeRetrieval:
    """Retrieval under one attribute: the scores of every labelled query, and those of a random ranking.

    `queries` are the rows of the query embeddings with a label; all other arrays are in their order.
    """

    queries: IntArray
    labels: IntArray
    num_candidates: IntArray  # after exclusions
    num_relevant: IntArray
    scores: RetrievalScores
    chance: RetrievalScores
    worst_relevant: IntArray  # (Q, 3) the last three fields of `QueryScores`

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

    @cached_property
    def inverse_penalty(self) -> FloatArray:
        """(Q,) the number of relevant candidates over the rank of the last one; its mean is mINP.

        Ye et al., Deep Learning for Person Re-identification: A Survey and Outlook, https://arxiv.org/abs/2001.04193.
        """
        return self.num_relevant * expected_inverse_rank(*self.worst_relevant.T)

    @cached_property
    def chance_inverse_penalty(self) -> FloatArray:
        """(Q,) `inverse_penalty` of a random ranking."""
        counts = self.num_candidates, self.num_relevant
        return self.num_relevant * expected_inverse_rank(np.zeros_like(self.num_relevant), *counts)

    @property
    def map_macro(self) -> float:
        """Mean over the values of their mean average precision: every value has the same weight."""
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
        query_labels: (Q,) value ids of the attribute; -1 = not labelled: the image is not a query.
        gallery_embeddings, gallery_labels: (G, D) and (G,); -1 = never a candidate. Without them every query is
            ranked against all other queries (leave-one-out).
        query_groups, gallery_groups: (Q,) and (G,); candidates of the query's group are left out; -1 = no group.
        query_values, gallery_values: (Q, V) and (G, V) booleans, all values that each image shows; its label is always
            one of them. A candidate is then relevant if it shares any value with the query.
        maybe_values: (G, V) booleans, or (Q, V) leave-one-out: the values that each candidate may show. It is left out
            of the ranking of a query with such a label, unless it is relevant anyway.
        chunk_size: queries in one matrix product of a thread; by default as many as fit into 128 MiB of similarities.
        device: an accelerator, which computes the similarities and sorts them. Default: the CPU.

    Raises:
        ValueError: if shapes do not fit, labels or groups are below -1, embeddings are not finite, a `k` is below 1,
            only one half of a gallery is given, or no query is labelled.
    """
    if (gallery_embeddings is None) != (gallery_labels is None):
        raise ValueError("gallery_embeddings and gallery_labels go together: give both, or neither for leave-one-out")
    alone = gallery_embeddings is None
    for name, array in (("groups", gallery_groups), ("values", gallery_values)):
        if alone and array is not None:
            raise ValueError(f"gallery_{name} without a gallery: leave-one-out takes query_{name} alone")
    maybe = (maybe_values, None) if alone else (None, maybe_values)
    queries = Side.of("query", query_embeddings, query_labels, query_groups, query_values, maybe[0])
    given = (gallery_embeddings, gallery_labels, gallery_groups, gallery_values, maybe[1])
    gallery = None if alone else Side.of("gallery", *given)
    return retrieve(queries, gallery, ks=ks, chunk_size=chunk_size, device=device)


def retrieve(
    queries: Side,
    gallery: Side | None = None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int | None = None,
    device: torch.device | str | None = None,
) -> AttributeRetrieval:
    """As [`retrieval_metrics`]; without a gallery every query is ranked against all other queries."""
    if not isinstance(ks, Iterable):
        raise ValueError(f"ks must be a list of integers, got {ks!r}")
    ks = tuple(ks)
    for k in ks:
        check_positive("every k of ks", k)
    if chunk_size is not None:
        check_positive("chunk_size", chunk_size)
    if gallery is None:
        queries = queries.with_every_row_grouped()  # so that a query is no candidate for itself
        gallery = queries
    if (queries.groups is None) != (gallery.groups is None):
        raise ValueError("query_groups and gallery_groups go together: give both or neither")
    if gallery.embeddings.shape[1] != queries.embeddings.shape[1]:
        raise ValueError(
            f"query embeddings have {queries.embeddings.shape[1]} dimensions, "
            f"gallery embeddings {gallery.embeddings.shape[1]}"
        )
    labelled = np.flatnonzero(queries.labels >= 0)
    if not len(labelled):
        raise ValueError(f"none of the {len(queries.labels)} queries is labelled: all labels are -1")
    # In a gallery sorted by value the relevant candidates of a query are one slice.
    order = np.argsort(gallery.labels, kind="stable")
    gallery = gallery.rows(order[np.searchsorted(gallery.labels[order], 0) :])
    queries = queries.rows(labelled)
    achieved, num_candidates = _rank(queries, gallery, chunk_size, device)

    average_precision, r_precision = achieved[:, :2].T
    num_relevant, *best = achieved[:, 2:6].T.astype(np.int64)
    worst = achieved[:, 6:].astype(np.int64)
    scores = RetrievalScores(average_precision, {k: hit_probability(k, *best) for k in ks}, r_precision)
    counts = num_candidates, num_relevant
    hits = {k: hit_probability(k, np.zeros_like(num_candidates), *counts) for k in ks}
    chance = RetrievalScores(chance_average_precision(*counts), hits, chance_r_precision(*counts))
    return AttributeRetrieval(labelled, queries.labels, *counts, scores, chance, worst)


def _rank(
    queries: Side, gallery: Side, chunk_size: int | None, device: torch.device | str | None
) -> tuple[FloatArray, IntArray]:
    """(Q, 9) the fields of `QueryScores`, and (Q,) the number of candidates, for labelled queries."""
    num_queries, num_columns = len(queries.labels), len(gallery.labels)
    num_threads = torch.get_num_threads() if device is None else 1  # an accelerator has one queue of work
    if chunk_size is None:
        that_fit = min(_CHUNK_BYTES, _BYTES_OF_ALL_THREADS // num_threads) // (4 * max(num_columns, 1))
        chunk_size = max(1, min(that_fit, -(-num_queries // num_threads)))
    unique, column_of = _distinct_rows(gallery.embeddings)
    relevance, excluded = Relevance(queries, gallery), Exclusions(queries, gallery)
    harmonic = harmonic_numbers(num_columns)
    achieved = np.zeros((num_queries, len(QueryScores._fields)))
    num_candidates = np.zeros(num_queries, dtype=np.int64)
    vectors, candidates = (torch.from_numpy(each).to(device or "cpu") for each in (queries.embeddings, unique))
    buffers: dict[int, torch.Tensor] = {}  # one for all chunks of a thread

    def rank(start: int) -> None:
        stop = min(start + chunk_size, num_queries)
        thread = threading.get_ident()
        if thread not in buffers:
            buffers[thread] = vectors.new_empty(min(chunk_size, num_queries), len(candidates))
        columns = [relevance.columns(query) for query in range(start, stop)]
        similarities = torch.mm(vectors[start:stop], candidates.T, out=buffers[thread][: stop - start])
        if column_of is not None:
            similarities = similarities[:, column_of]
        similarities[excluded.pairs(start, stop)] = -torch.inf
        num_candidates[start:stop] = num_columns - excluded.counts[start:stop]
        undecided = relevance.undecided(start, columns)
        if undecided is not None:
            similarities[undecided] = -torch.inf
            num_candidates[start:stop] = (similarities > -torch.inf).sum(dim=1).cpu().numpy()
        rows = similarities.numpy() if device is None else similarities
        achieved[start:stop] = score_queries(rows, columns, harmonic)

    chunks = range(0, num_queries, chunk_size)
    if device is None:
        run_on_own_cores(rank, chunks, num_threads)
    else:
        for start in chunks:
            rank(start)
    return achieved, num_candidates


def run_on_own_cores(work: Callable[[int], None], items: Iterable[int], num_threads: int) -> None:
    """Call `work` for each item, in `num_threads` threads in which PyTorch computes on one core.

    If PyTorch's threads shared a matrix product instead, they would slow down the other work, because OpenMP threads
    spin for milliseconds after a product.

    If the system allows fewer threads, those that start do all of the work; if none starts, this thread does it. The
    first exception of `work` stops all threads and is raised here.

    PyTorch stores a number of threads for each thread, and a default for threads that have not computed yet. The
    default is 1 for about a millisecond while the threads start.
    """
    waiting: SimpleQueue[int | None] = SimpleQueue()
    for item in (*items, *[None] * num_threads):  # None ends a thread
        waiting.put(item)
    failures: list[BaseException] = []
    stop, configured = threading.Event(), threading.Semaphore(0)

    def do_all() -> None:
        try:
            while not stop.is_set() and (item := waiting.get()) is not None:
                work(item)
        except BaseException as error:
            failures.append(error)
            stop.set()

    def compute_alone() -> None:
        torch.get_num_threads()  # the first call copies the default: it must come before the next line
        torch.set_num_threads(1)
        configured.release()
        do_all()

    before = torch.get_num_threads()
    threads: list[threading.Thread] = []
    try:
        for _ in range(num_threads):
            thread = threading.Thread(target=compute_alone)
            thread.start()
            threads.append(thread)
    except RuntimeError:  # can't start new thread
        pass
    try:
        for _ in threads:
            configured.acquire()
        torch.set_num_threads(before)
        if not threads:
            do_all()
        for thread in threads:
            thread.join()
    finally:  # also after an interrupt
        stop.set()
        torch.set_num_threads(before)
    if failures:
        raise failures[0]


def _distinct_rows(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], IntArray | None]:
    """The distinct rows and, if rows repeat, the index of each row among them.

    A matmul may round the same two vectors differently in another column, because its edge kernels sum in another
    order. Copies tie exactly if every distinct vector is multiplied once.
    """
    comparable = np.ascontiguousarray(vectors + 0.0)  # -0.0 -> 0.0: rows are compared by their bytes
    if vectors.shape[1] > 1 and len(np.unique(comparable[:, :2].copy().view(np.uint64))) == len(vectors):
        return vectors, None  # true of almost every gallery
    hashes = np.fromiter((hash(row.tobytes()) for row in comparable), dtype=np.int64, count=len(comparable))
    if len(np.unique(hashes)) == len(vectors):  # no two rows are equal
        return vectors, None
    as_bytes = comparable.view(np.dtype((np.void, comparable.dtype.itemsize * comparable.shape[1])))[:, 0]
    _, index, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
    return vectors[index], inverse


def _mean_per_value(labels: IntArray, scores: FloatArray) -> dict[int, float]:
    values, position, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.bincount(position, weights=scores) / counts
    return {int(value): float(mean) for value, mean in zip(values, means, strict=True)}
