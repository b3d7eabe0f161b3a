"""Who is ranked for a query and which of them count: labels, groups, and sets of values, as arrays side by side.

Usually a candidate is relevant if its label is the query's. Two refinements for pictures of which one label says too
little: pictures that show several values of an attribute (relevant = a value is shared), and candidates that *may*
show the query's value (neither relevant nor wrong: taken out of the ranking).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .ranking import IntArray

BoolArray = NDArray[np.bool_]


def to_numpy(array: object) -> NDArray:
    """`array` on the CPU as numpy; half-precision tensors as float32, since numpy knows no bfloat16."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        return (array.float() if array.is_floating_point() else array).numpy()
    return np.asarray(array)


class Side(NamedTuple):
    """The queries or the gallery: normalised embeddings (n, D), labels (n,), groups (n,) with -1 = none.

    `shown` and `maybe` are (n, V): the values that each picture shows, its label among them, and those it may show.
    """

    embeddings: NDArray[np.float32]
    labels: IntArray
    groups: IntArray
    shown: BoolArray | None = None
    maybe: BoolArray | None = None

    @classmethod
    def of(
        cls,
        side: str,
        embeddings: object,
        labels: object,
        groups: object | None,
        shown: object | None = None,
        maybe: object | None = None,
    ) -> "Side":
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
        return cls(
            vectors,
            ids,
            members,
            None if shown is None else _value_sets(f"{side} values", shown, len(vectors)),
            None if maybe is None else _value_sets("maybe values", maybe, len(vectors)),
        )

    def rows(self, index: IntArray) -> "Side":
        return Side(*(None if array is None else array[index] for array in self))  # type: ignore[arg-type]

    def with_every_row_grouped(self) -> "Side":
        fresh = self.groups.max(initial=-1) + 1 + np.arange(len(self.groups))
        return self._replace(groups=np.where(self.groups < 0, fresh, self.groups))


class Relevance:
    """Which columns of a gallery are relevant to each query, and which are neither relevant nor wrong.

    All rows must be labelled, and the gallery sorted by label: then those of one label are one slice.
    """

    def __init__(self, queries: Side, gallery: Side) -> None:
        _check_number_of_values(queries, gallery)
        self.labels = queries.labels
        self.first = np.searchsorted(gallery.labels, queries.labels, side="left")
        self.last = np.searchsorted(gallery.labels, queries.labels, side="right")
        # Of the gallery's sets, values first: a query reads the few rows of its own values.
        self.maybe = None if gallery.maybe is None else np.ascontiguousarray(gallery.maybe.T)
        self.shown_by_query = self.shown = None
        given = queries.shown if gallery.shown is None else gallery.shown
        if given is not None:
            self.shown_by_query = _with_labels(queries, given.shape[1])
            self.shown = np.ascontiguousarray(_with_labels(gallery, given.shape[1]).T)

    def columns(self, query: int) -> slice | IntArray:
        """The relevant columns: the label is the query's, or, where sets of values are given, a value is shared."""
        if self.shown is None or self.shown_by_query is None:
            return slice(self.first[query], self.last[query])
        return np.flatnonzero(self.shown[self.shown_by_query[query]].any(axis=0))

    def undecided(self, start: int, relevant: Sequence[slice | IntArray]) -> BoolArray | None:
        """(queries, columns): those that may show the label of the query, unless they are `relevant` to it anyway.

        Args:
            start: the first of the queries.
            relevant: for each of them, its `columns`.
        """
        if self.maybe is None:
            return None
        undecided = self.maybe[self.labels[start : start + len(relevant)]]
        for row, columns in zip(undecided, relevant, strict=True):
            row[columns] = False
        return undecided


class Exclusions:
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


def _ids(name: str, ids: object, length: int) -> IntArray:
    array = to_numpy(ids)
    if array.shape != (length,):
        raise ValueError(f"{name} must have shape ({length},), one for each embedding, got {array.shape}")
    if length and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers (-1 = none), got {array.dtype}")
    if array.min(initial=0) < -1:
        raise ValueError(f"{name} must be -1 (none) or at least 0, got {array.min()}")
    return array.astype(np.int64)


def _value_sets(name: str, sets: object, length: int) -> BoolArray:
    array = to_numpy(sets)
    if array.dtype != bool or array.ndim != 2 or len(array) != length:
        raise ValueError(
            f"{name} must be booleans of shape ({length}, values), a row for each embedding; "
            f"got {array.dtype} of shape {array.shape}"
        )
    return array


def _with_labels(side: Side, num_values: int) -> BoolArray:
    """(n, V): the values shown, of which the label is one."""
    shown = np.zeros((len(side.labels), num_values), dtype=bool) if side.shown is None else side.shown.copy()
    shown[np.arange(len(shown)), side.labels] = True
    return shown


def _check_number_of_values(queries: Side, gallery: Side) -> None:
    sizes = {array.shape[1] for array in (queries.shown, gallery.shown, gallery.maybe) if array is not None}
    highest = max(queries.labels.max(initial=-1), gallery.labels.max(initial=-1))
    if len(sizes) > 1:
        raise ValueError(f"all sets of values must be of the same values; got widths of {sorted(sizes)}")
    if sizes and highest >= min(sizes):
        raise ValueError(f"sets of values are {min(sizes)} wide (values from 0), but the labels go up to {highest}")
