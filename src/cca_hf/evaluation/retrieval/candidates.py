"""Which images are ranked for a query, and which of them are relevant: labels, groups and sets of values.

Usually a candidate is relevant if its label is the label of the query. Two refinements are for images that one label
does not describe: images that show several values of an attribute (relevant = a value is shared), and candidates that
*may* show the value of the query (neither relevant nor wrong: left out of the ranking).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cca_hf.evaluation.arrays import BoolArray, IntArray, check_finite, normalised, to_ids, to_numbers, to_numpy


class Side(NamedTuple):
    """The queries or the gallery under one attribute: normalised embeddings (n, D), labels (n,), groups (n,) or None.

    `shown` and `maybe` are (n, V): the values that each image shows, including its label, and those it may show.
    """

    embeddings: NDArray[np.float32]
    labels: IntArray
    groups: IntArray | None = None
    shown: BoolArray | None = None
    maybe: BoolArray | None = None

    @classmethod
    def of(cls, side: str, embeddings: object, labels: object, groups: object, shown: object, maybe: object) -> "Side":
        """Check the arrays and normalise the embeddings; `side` names them in error messages."""
        vectors = to_numbers(f"{side} embeddings", embeddings)
        if vectors.ndim != 2:
            raise ValueError(f"{side} embeddings must have shape (images, dim), got {vectors.shape}")
        check_finite(f"{side} embeddings", vectors)
        shape = (len(vectors),)
        return cls(
            normalised(vectors, np.float32),  # a zero vector is similar to nothing, and tied with everything
            to_ids(f"{side} labels", labels, shape, ", one for each embedding"),
            None if groups is None else to_ids(f"{side} groups", groups, shape, ", one for each embedding"),
            None if shown is None else _value_sets(f"{side} values", shown, len(vectors)),
            None if maybe is None else _value_sets("maybe values", maybe, len(vectors)),
        )

    def rows(self, index: IntArray) -> "Side":
        return Side(*(None if array is None else array[index] for array in self))  # type: ignore[arg-type]

    def with_every_row_grouped(self) -> "Side":
        """Images without a group get one of their own."""
        count = len(self.labels)
        groups = np.full(count, -1) if self.groups is None else self.groups
        return self._replace(groups=np.where(groups < 0, groups.max(initial=-1) + 1 + np.arange(count), groups))


class Relevance:
    """Which columns of a gallery are relevant to each query, and which are neither relevant nor wrong.

    All rows must be labelled and the gallery sorted by label, so that the columns of a label are one slice.
    """

    def __init__(self, queries: Side, gallery: Side) -> None:
        sizes = {array.shape[1] for array in (queries.shown, gallery.shown, gallery.maybe) if array is not None}
        highest = max(queries.labels.max(initial=-1), gallery.labels.max(initial=-1))
        if len(sizes) > 1:
            raise ValueError(f"all sets of values must be of the same values; got widths of {sorted(sizes)}")
        if sizes and highest >= min(sizes):
            width = f"sets of values are {min(sizes)} wide (values from 0)"
            raise ValueError(f"{width}, but the labels go up to {highest}")
        self.labels = queries.labels
        self.first = np.searchsorted(gallery.labels, queries.labels, side="left")
        self.last = np.searchsorted(gallery.labels, queries.labels, side="right")
        # The sets of the gallery are transposed, because a query reads the few rows of its own values.
        self.maybe = None if gallery.maybe is None else np.ascontiguousarray(gallery.maybe.T)
        self.shown_by_query = self.shown = None
        given = queries.shown if gallery.shown is None else gallery.shown
        if given is not None:
            self.shown_by_query = _with_labels(queries, given.shape[1])
            self.shown = np.ascontiguousarray(_with_labels(gallery, given.shape[1]).T)

    def columns(self, query: int) -> slice | IntArray:
        """The relevant columns: the label is the query's or, where sets of values are given, a value is shared."""
        if self.shown is None or self.shown_by_query is None:
            return slice(self.first[query], self.last[query])
        return np.flatnonzero(self.shown[self.shown_by_query[query]].any(axis=0))

    def undecided(self, start: int, relevant: Sequence[slice | IntArray]) -> BoolArray | None:
        """(queries, columns): candidates that may show the label of the query and are not `relevant` anyway.

        `relevant` has the `columns` of each query from `start` on.
        """
        if self.maybe is None:
            return None
        undecided = self.maybe[self.labels[start : start + len(relevant)]]
        for row, columns in zip(undecided, relevant, strict=True):
            row[columns] = False
        return undecided


class Exclusions:
    """The gallery columns that are left out for each query: those of its group."""

    def __init__(self, queries: Side, gallery: Side) -> None:
        groups = np.full(len(queries.labels), -1) if queries.groups is None else queries.groups
        among = np.arange(0) if gallery.groups is None else gallery.groups
        self.order = np.argsort(among, kind="stable")
        self.first = np.searchsorted(among[self.order], groups, side="left")
        last = np.searchsorted(among[self.order], groups, side="right")
        self.counts = np.where(groups < 0, 0, last - self.first)

    def pairs(self, start: int, stop: int) -> tuple[IntArray, IntArray]:
        """(rows within the chunk, gallery columns) of every excluded pair of the queries start:stop."""
        counts = self.counts[start:stop]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = self.order[np.repeat(self.first[start:stop], counts) + within]
        return np.repeat(np.arange(stop - start), counts), columns


def _value_sets(name: str, sets: object, length: int) -> BoolArray:
    array = to_numpy(sets)
    if array.dtype != bool or array.ndim != 2 or len(array) != length:
        raise ValueError(
            f"{name} must be booleans of shape ({length}, values), a row for each embedding; "
            f"got {array.dtype} of shape {array.shape}"
        )
    return array


def _with_labels(side: Side, num_values: int) -> BoolArray:
    """(n, V): the values shown, including the label."""
    shown = np.zeros((len(side.labels), num_values), dtype=bool) if side.shown is None else side.shown.copy()
    shown[np.arange(len(shown)), side.labels] = True
    return shown
