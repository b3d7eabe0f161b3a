"""The nearest items by a weighted sum of similarities for several attributes, from one index per attribute.

The threshold algorithm (Fagin, Lotem, Naor 2003, https://arxiv.org/abs/cs/0204046) reads a list of the nearest items
of each attribute. An item that is in no list is at most as similar as the last items of the lists. While such an item
could be among the best, the lists grow fourfold. Only the listed items that could be among the best are read and
compared exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from .conditions import AnyOf, Condition
from .schema import ITEM_ID, SIMILARITY, Vectors
from .store import VectorStore

_FIRST_LIST = 512
_LONGEST_LIST = 16_384
_READ_AT_ONCE = 256
_ROUNDING = 1e-6


def nearest_to_mixture(
    store: VectorStore,
    targets: Mapping[str, Vectors],
    weights: Mapping[str, float],
    count: int,
    condition: Condition | None,
) -> pa.Table:
    """`item_id` and `similarity`, the weighted mean of cosines, of the `count` best items.

    Args:
        targets: attribute -> (dim,), L2-normalised.
        weights: attribute -> weight, for the same attributes; positive, with sum 1.
    """
    attributes = list(targets)
    shares = np.array([weights[attribute] for attribute in attributes], dtype=np.float64)
    search = _Search(store, attributes, np.stack(list(targets.values())), shares, count, condition)
    length = max(_FIRST_LIST, 4 * count)
    while not search.is_complete_with(length):
        if 4 * length > _LONGEST_LIST or store.count(condition) <= min(store.read_up_to, 32 * length):
            if store.count(condition) <= store.read_up_to:
                search.read(condition)  # compares with every item
            break
        length *= 4
    return search.best()


@dataclass
class _Search:
    store: VectorStore
    attributes: list[str]
    targets: Vectors  # (attributes, dim)
    weights: NDArray[np.float64]  # (attributes,)
    count: int
    condition: Condition | None
    scores: dict[str, float] = field(default_factory=dict)  # item id -> exact weighted sum

    def is_complete_with(self, length: int) -> bool:
        """Reads the `length` nearest items per attribute, and returns whether no other item can be among the best."""
        rows: dict[str, int] = {}
        lists = []
        for attribute, target in zip(self.attributes, self.targets, strict=True):
            (found,) = self.store.nearest(attribute, target[None], length, self.condition)
            places = [rows.setdefault(item, len(rows)) for item in found.column(ITEM_ID).to_pylist()]
            lists.append((places, found.column(SIMILARITY).to_numpy()))
        known = np.full((len(rows), len(lists)), np.nan)
        last = np.empty(len(lists))
        for column, (places, similarity) in enumerate(lists):
            known[places, column] = similarity
            last[column] = similarity[-1] if len(places) else -1.0
        items = np.array(list(rows), dtype=object)
        self._compute_scores(items, known, np.where(np.isnan(known), last, known) @ self.weights)
        if self._threshold() >= last @ self.weights - _ROUNDING:
            return True
        return len(rows) < length and len(rows) >= self.store.count(self.condition)  # no other items exist

    def _compute_scores(self, items: NDArray, known: NDArray[np.float64], upper: NDArray[np.float64]) -> None:
        """Scores all items that can be among the best; `upper` (n,) is an upper bound of each score."""
        whole = ~np.isnan(known).any(axis=1)
        self.scores.update(zip(items[whole].tolist(), (known[whole] @ self.weights).tolist(), strict=True))
        open_rows = [row for row in np.argsort(-upper).tolist() if items[row] not in self.scores]
        for start in range(0, len(open_rows), _READ_AT_ONCE):
            part = open_rows[start : start + _READ_AT_ONCE]
            if upper[part[0]] < self._threshold() - _ROUNDING:
                return
            self.read(AnyOf(ITEM_ID, tuple(items[part].tolist())))

    def read(self, condition: Condition | None) -> None:
        """Scores the items that fulfil the condition."""
        columns = [self.store.schema.vector_column(attribute) for attribute in self.attributes]
        for table in self.store.scan(condition, (), self.attributes):
            scores = np.zeros(len(table))
            for column, target, weight in zip(columns, self.targets, self.weights, strict=True):
                scores += weight * (vectors_of(table, column) @ target)
            ids, least = table.column(ITEM_ID).to_pylist(), -np.inf
            if len(ids) > max(self.count, _READ_AT_ONCE):
                least = np.partition(scores, -self.count)[-self.count]
            # keeps all equal scores, so that the result does not depend on the order of reading
            self.scores.update((ids[row], float(scores[row])) for row in np.flatnonzero(scores >= least).tolist())

    def _threshold(self) -> float:
        if len(self.scores) < self.count:
            return -np.inf
        values = np.fromiter(self.scores.values(), dtype=np.float64, count=len(self.scores))
        return float(np.partition(values, -self.count)[-self.count])

    def best(self) -> pa.Table:
        chosen = sorted(self.scores.items(), key=lambda pair: (-pair[1], pair[0]))[: self.count]
        ids, scores = [item for item, _ in chosen], [score for _, score in chosen]
        return pa.table({ITEM_ID: pa.array(ids, pa.string()), SIMILARITY: pa.array(scores, pa.float32())})


def vectors_of(table: pa.Table, column: str) -> Vectors:
    """(rows, dim), L2-normalised again, since half precision changes the lengths slightly."""
    chunks = table.column(column).combine_chunks()
    vectors = chunks.flatten().to_numpy().reshape(len(table), -1).astype(np.float32, copy=False)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
