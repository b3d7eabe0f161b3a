"""Changes of values that a data set can answer: "this image, but red, and with long sleeves".

A change is a reference image and new values of some of its attributes. Its target labels are those of the reference
with the new values in place of the old ones. A change is listed if an image of the gallery has exactly these labels.

Missing labels take no part: label vectors are compared on the attributes that the reference is labelled with, and an
image of the gallery that lacks a label of one of them is no target.

The protocol is that of Hou, Vig, Donoser and Bazzani, Learning Attribute-driven Disentangled Representations for
Interactive Fashion Retrieval, ICCV 2021.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
_SPARE = 4  # pairs that are drawn for each wanted change, because some pairs differ in fewer attributes


@dataclass(frozen=True, eq=False)
class Changes:
    """Q changes of reference images.

    Args:
        reference: (Q,) rows of the reference images.
        changed: (Q, A) whether an attribute gets a new value.
        target_labels: (Q, A) value ids, new and old. -1: the reference lacks this label, which takes no part.
    """

    reference: IntArray
    changed: BoolArray
    target_labels: IntArray

    def __len__(self) -> int:
        return len(self.reference)

    @property
    def num_changes(self) -> IntArray:
        """(Q,) the number of attributes that change."""
        return self.changed.sum(axis=1)

    @property
    def compared(self) -> BoolArray:
        """(Q, A) the attributes that the reference is labelled with."""
        return self.target_labels >= 0

    def select(self, index: ArrayLike | slice) -> "Changes":
        """Some of the changes."""
        rows = index if isinstance(index, slice) else np.asarray(index)
        return Changes(self.reference[rows], self.changed[rows], self.target_labels[rows])

    @classmethod
    def concatenate(cls, parts: Sequence["Changes"]) -> "Changes":
        """All changes of one or more parts."""
        return cls(
            np.concatenate([part.reference for part in parts]),
            np.concatenate([part.changed for part in parts]),
            np.concatenate([part.target_labels for part in parts]),
        )


def enumerate_changes(
    labels: ArrayLike,
    gallery_labels: ArrayLike | None = None,
    num_changes: int = 1,
    max_queries: int | None = None,
    seed: int = 0,
) -> Changes:
    """All changes of `num_changes` attributes whose target labels an image of the gallery has, by reference.

    Args:
        labels: (N, A) value ids of the reference images, -1 = not labelled.
        gallery_labels: (G, A). Default: those of the reference images.
        max_queries: of more changes, a random sample is drawn. All changes are equally likely.

    Raises:
        ValueError: if shapes do not fit, or a number is too small or too large.
    """
    references = _checked("labels", labels)
    gallery = references if gallery_labels is None else _checked("gallery_labels", gallery_labels)
    attributes = references.shape[1]
    if gallery.shape[1] != attributes:
        raise ValueError(f"labels have {attributes} attributes, and gallery_labels have {gallery.shape[1]}")
    if not isinstance(num_changes, Integral) or not 1 <= num_changes <= attributes:
        raise ValueError(f"num_changes must be an integer from 1 to {attributes}, the attributes; got {num_changes!r}")
    if max_queries is not None and (not isinstance(max_queries, Integral) or max_queries < 1):
        raise ValueError(f"max_queries must be None or an integer of at least 1, got {max_queries!r}")
    groups = list(_agreeing(references, gallery, int(num_changes)))
    random = np.random.default_rng(seed)
    if max_queries is not None:
        sample = _sample(groups, references, int(max_queries), random)
        if sample is not None:
            return _in_order(sample)
    every = _joined([group.changes(references, np.arange(group.size))[0] for group in groups], attributes)
    if max_queries is not None and len(every) > max_queries:
        every = every.select(random.choice(len(every), max_queries, replace=False))
    return _in_order(every)


def draw_targets(changes: Changes, gallery_labels: ArrayLike, random: np.random.Generator) -> IntArray:
    """(Q,) for each change the row of a random image with exactly its target labels; -1 if there is none."""
    gallery = _checked("gallery_labels", gallery_labels)
    rows = np.full(len(changes), -1, dtype=np.int64)
    hashes = _hashes([changes.target_labels, gallery])
    for mine, compared in _by_pattern(changes.target_labels):
        candidates = np.flatnonzero((gallery[:, compared] >= 0).all(axis=1))
        keys = (_keys(hashes, each, compared) for each in (changes.target_labels[mine], gallery[candidates]))
        order, first, counts = _equal_keys(*keys)
        exists = np.flatnonzero(counts)
        places = first[exists] + (random.random(len(exists)) * counts[exists]).astype(np.int64)
        rows[mine[exists]] = candidates[order[places]]
    return rows


@dataclass(frozen=True, eq=False)
class _Agreeing:
    """References and distinct label vectors of the gallery that agree on all compared attributes that do not change.

    The vectors of reference `rows[i]` are `vectors[order[first[i] : first[i] + counts[i]]]`. Some of them differ from
    the reference in fewer attributes than change. Positions number all pairs.
    """

    changed: tuple[int, ...]
    compared: BoolArray  # (A,)
    rows: IntArray
    vectors: IntArray  # (U, A)
    order: IntArray
    first: IntArray
    counts: IntArray

    @property
    def size(self) -> int:
        return int(self.counts.sum())

    def pairs(self, positions: IntArray) -> tuple[IntArray, IntArray]:
        """Rows of references, and indices of vectors."""
        ends = np.cumsum(self.counts)
        place = np.searchsorted(ends, positions, side="right")
        return self.rows[place], self.order[self.first[place] + positions - (ends - self.counts)[place]]

    def changes(self, references: IntArray, positions: IntArray) -> tuple[Changes, BoolArray]:
        """The pairs that differ in exactly the attributes that change, and which of the positions they are."""
        rows, vectors = self.pairs(positions)
        kept = np.ones(len(rows), dtype=bool)
        for attribute in self.changed:
            kept &= references[rows, attribute] != self.vectors[vectors, attribute]
        rows, vectors = rows[kept], vectors[kept]
        mask = np.isin(np.arange(len(self.compared)), self.changed)
        targets = self.vectors[vectors]
        return Changes(rows, np.tile(mask, (len(rows), 1)), targets), kept


def _agreeing(references: IntArray, gallery: IntArray, num_changes: int) -> Iterator[_Agreeing]:
    """For each set of labels that references have, and each set of attributes that may change."""
    hashes = _hashes([references, gallery])
    for rows, compared in _by_pattern(references):
        labelled = gallery[(gallery[:, compared] >= 0).all(axis=1)]
        vectors = np.unique(np.where(compared, labelled, -1), axis=0)
        reference_keys, vector_keys = (_keys(hashes, each, compared) for each in (references[rows], vectors))
        for changed in combinations(np.flatnonzero(compared).tolist(), num_changes):
            mask = np.isin(np.arange(len(compared)), changed)
            left = reference_keys ^ _keys(hashes, references[rows], mask)
            order, first, counts = _equal_keys(left, vector_keys ^ _keys(hashes, vectors, mask))
            some = counts > 0
            yield _Agreeing(changed, compared, rows[some], vectors, order, first[some], counts[some])


def _by_pattern(labels: IntArray) -> Iterator[tuple[IntArray, BoolArray]]:
    """The rows that are labelled with the same attributes, and these attributes as (A,) booleans."""
    if (labels >= 0).all():  # the usual case, without the sort of `unique`
        yield np.arange(len(labels)), np.ones(labels.shape[1], dtype=bool)
        return
    patterns, pattern_of = np.unique(labels >= 0, axis=0, return_inverse=True)
    pattern_of = pattern_of.reshape(-1)  # numpy 2.0 keeps the number of dimensions
    order = np.argsort(pattern_of, kind="stable")
    ends = np.cumsum(np.bincount(pattern_of, minlength=len(patterns)))
    yield from zip(np.split(order, ends[:-1]), patterns, strict=True)


def _hashes(labels: Sequence[IntArray]) -> NDArray[np.uint64]:
    """(A, values) random numbers. XOR of those of an image's labels stands for its label vector (Zobrist, 1970)."""
    values = 1 + max(int(each.max(initial=0)) for each in labels)
    limits = np.iinfo(np.uint64)
    return np.random.default_rng(0).integers(
        limits.min, limits.max, (labels[0].shape[1], values), dtype=np.uint64, endpoint=True
    )


def _keys(hashes: NDArray[np.uint64], labels: IntArray, attributes: BoolArray) -> NDArray[np.uint64]:
    """(N,) equal for equal labels of the attributes, all of which have labels."""
    columns = np.flatnonzero(attributes)
    return np.bitwise_xor.reduce(hashes[columns, labels[:, columns]], axis=1)


def _equal_keys(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> tuple[IntArray, IntArray, IntArray]:
    """The order of the `right` keys in which those that equal `left[i]` are `first[i]` to `first[i] + counts[i]`."""
    order = np.argsort(right, kind="stable")
    sorted_keys = right[order]
    first = np.searchsorted(sorted_keys, left, side="left")
    return order, first, np.searchsorted(sorted_keys, left, side="right") - first


def _sample(
    groups: Sequence[_Agreeing], references: IntArray, count: int, random: np.random.Generator
) -> Changes | None:
    """`count` random changes; None if so many pairs differ in fewer attributes that all pairs have to be compared."""
    ends = np.cumsum([group.size for group in groups], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    drawn = _SPARE * count
    while drawn < total:
        pairs = random.choice(total, drawn, replace=False)
        found, places = [], []
        group_of = np.searchsorted(ends, pairs, side="right")
        for number in np.unique(group_of).tolist():
            mine = np.flatnonzero(group_of == number)
            changes, kept = groups[number].changes(references, pairs[mine] - (ends[number] - groups[number].size))
            found.append(changes)
            places.append(mine[kept])
        if sum(map(len, found)) >= count:
            as_drawn = np.argsort(np.concatenate(places))
            return Changes.concatenate(found).select(as_drawn[:count])
        drawn *= _SPARE
    return None


def _joined(parts: Sequence[Changes], attributes: int) -> Changes:
    none = np.empty((0, attributes), dtype=np.int64)
    return Changes.concatenate([Changes(np.empty(0, dtype=np.int64), none.astype(bool), none), *parts])


def _in_order(changes: Changes) -> Changes:
    """Sorted by reference, then by target labels."""
    return changes.select(np.lexsort((*changes.target_labels.T[::-1], changes.reference)))


def _checked(name: str, labels: ArrayLike) -> IntArray:
    ids = np.asarray(labels)
    if ids.ndim != 2 or not ids.shape[1]:
        raise ValueError(f"{name} must have shape (images, attributes), got {ids.shape}")
    if ids.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers (-1 = not labelled), got {ids.dtype}")
    if ids.min(initial=0) < -1:
        raise ValueError(f"{name} must be -1 (not labelled) or at least 0, got {ids.min()}")
    return ids.astype(np.int64)
