"""The target vectors of a query, one per attribute, and the items nearest to a weighted sum of similarities.

The threshold algorithm (Fagin, Lotem, Naor 2003, https://arxiv.org/abs/cs/0204046) reads a list of the nearest items
of each attribute. An item that is in no list is at most as similar as the last items of the lists. While such an item
could be among the best, the lists grow fourfold. Only the listed items that could be among the best are read and
compared exactly. If the first lists do not suffice, and the vectors of all items fit into memory, the engine keeps
them there, and compares all items from then on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from cca_hf.data.values import same_value, value_name

from .conditions import AnyOf, ColumnType, Condition, check, unknown
from .schema import ITEM_ID, SIMILARITY, IndexSchema, Vectors, lengths_of, vectors_of
from .store import VectorStore

_FIRST_LIST = 512
_LONGEST_LIST = 16_384
_READ_AT_ONCE = 256
_ROUNDING = 1e-6
Value = str | int | bool


def shares_of(
    schema: IndexSchema,
    attribute: str | None,
    weights: Mapping[str, float] | None,
    values: Mapping[str, Value | None],
    *,
    has_query: bool,
    keep: float = 1.0,
) -> dict[str, float]:
    """Attribute -> share of the similarity. Shares are positive and sum to 1. See `AttributeIndex.search`."""
    if attribute is not None and weights is not None:
        raise ValueError("give either attribute or weights, and not both")
    if attribute is not None and not isinstance(attribute, str):
        raise ValueError(f"attribute must be one name; got {attribute!r}. For several attributes use weights")
    for name, mapping in (("weights", weights), ("values", values)):
        if mapping is not None and not isinstance(mapping, Mapping):
            raise ValueError(f"{name} must be a dict with attributes as keys; got {mapping!r}")
    changed = [name for name, value in values.items() if value is not None]
    unset = [name for name, value in values.items() if value is None]
    if unset and not changed and not has_query:
        raise ValueError(f"values only leaves out {', '.join(unset)}: give an image, an item, an embedding or a value")
    if weights is None:
        if attribute is None and not values and len(schema.attributes) == 1:
            (attribute,) = schema.attributes
        if attribute is None and not values:
            raise ValueError(f"give an attribute, or weights for several of {', '.join(schema.attributes)}")
        several = schema.attributes if has_query else tuple(changed)
        weights = dict.fromkeys(several if attribute is None else (attribute,), 1.0)
    for name in (*weights, *values):
        schema.vector_column(name)
    numeric = all(isinstance(weight, Real) and 0 <= weight < np.inf for weight in weights.values())
    if not numeric or not sum(weights.values()):
        raise ValueError(f"weights must be numbers of at least 0, and one must be above 0; got {dict(weights)}")
    if not isinstance(keep, Real) or not 0 <= keep < np.inf:
        raise ValueError(f"keep must be a number of at least 0; got {keep!r}")
    if keep != 1 and not (changed and has_query):
        raise ValueError("keep is the weight of what stays of a query beside the values: give a query and values")
    unused = [name for name in changed if not weights.get(name)]
    if unused:
        raise ValueError(f"values contains {', '.join(unused)}, but the weight of this attribute is 0 or missing")
    shares = {name: weight for name, weight in weights.items() if weight and name not in unset}
    if not shares:
        raise ValueError(f"values leaves out {', '.join(unset)}, and the search compares by nothing else")
    lacking = [name for name in shares if name not in changed and not has_query]
    if lacking:
        raise ValueError(f"the query says nothing about {', '.join(lacking)}: give an image or a value")
    shares = {name: weight if name in changed else keep * weight for name, weight in shares.items()}
    total = sum(shares.values())
    return {name: weight / total for name, weight in shares.items() if weight}


def targets_of(
    schema: IndexSchema, embeddings: NDArray, attributes: Sequence[str], *, is_mixture: bool
) -> dict[str, Vectors]:
    """Attribute -> (queries, dim), normalised, of (queries, attributes, dim) or, for one attribute, (queries, dim).

    Args:
        is_mixture: whether the search compares by several attributes. An attribute of (queries, attributes, dim) may
            then be 0 in a query: it takes no part in the search for this query.
    """
    whole = (len(schema.attributes), schema.dim)
    single = (schema.dim,) if len(attributes) == 1 else whole
    if embeddings.shape[1:] not in (whole, single):
        alone = f", or {single} for one attribute" if single != whole else ""
        raise ValueError(f"an embedding must have shape {whole}{alone}; got {embeddings.shape[1:]}")
    vectors = embeddings.astype(np.float32, copy=False)
    may_be_unset = is_mixture and vectors.ndim == 3
    places = [schema.attributes.index(name) for name in attributes]
    vectors = vectors[:, None] if vectors.ndim == 2 else vectors[:, places]
    lengths = lengths_of(vectors)
    if not np.all(np.isfinite(lengths)) or not (may_be_unset or np.all(lengths > 0)):
        raise ValueError("an embedding must be finite and not zero")
    lengths = np.where(lengths > 0, lengths, 1.0)
    return dict(zip(attributes, (vectors / lengths).astype(np.float32).swapaxes(0, 1), strict=True))


def rows_of(store: VectorStore, items: list[str], columns: Sequence[str], attributes: Sequence[str]) -> pa.Table:
    """The stored rows of these items, in their order; ValueError for an id that is not in the index."""
    tables = store.scan(AnyOf(ITEM_ID, tuple(set(items))), columns, attributes)
    stored = pa.concat_tables([store.schema.arrow(columns, attributes).empty_table(), *tables])
    places = {item: row for row, item in enumerate(stored.column(ITEM_ID).to_pylist())}
    missing = [item for item in items if item not in places]
    if missing:
        more = f" (and {len(missing) - 1} more of these ids)" if missing[1:] else ""
        raise ValueError(f"the index has no item {missing[0]!r}{more}")
    return stored.take(pa.array([places[item] for item in items], pa.int64()))


def target_of(store: VectorStore, attribute: str, value: Value) -> Vectors:
    """(dim,) the model's prototype of a value or, if the model has none, the centroid of the items with the value."""
    known = store.schema.prototypes.get(attribute, {})
    prototype = store.schema.prototype(attribute, value)
    if prototype is not None:
        return prototype
    if not known:
        return centroid_of(store, attribute, value)
    centroid = _mean_of(store, attribute, value) if attribute in store.schema.columns else None
    if centroid is None:
        names = {*known, *_stored_values(store, attribute)}
        raise ValueError(f"the index knows {unknown(attribute, value, names)}")
    return centroid


def centroid_of(store: VectorStore, attribute: str, value: Value) -> Vectors:
    """See `AttributeIndex.centroid`."""
    store.schema.vector_column(attribute)
    if attribute not in store.schema.columns:
        raise ValueError(f"the index has no column {attribute!r} with the items' labels, so it knows no values of it")
    centroid = _mean_of(store, attribute, value)
    if centroid is None:
        names = _stored_values(store, attribute)
        raise ValueError(f"the index has {unknown(f'item whose {attribute} is', value, names)}")
    return centroid


def _mean_of(store: VectorStore, attribute: str, value: Value) -> Vectors | None:
    """(dim,) the mean direction of the items with this value; None if no item has it."""
    schema = store.schema
    column = schema.vector_column(attribute)
    condition = check(AnyOf(attribute, (_stored(value, schema.columns[attribute]),)), schema.filterable)
    total = np.zeros(schema.dim)
    for table in store.scan(condition, (), [attribute]):
        total += vectors_of(table, column).sum(axis=0, dtype=np.float64)
    length = np.linalg.norm(total)
    return (total / length).astype(np.float32) if length else None


def _stored_values(store: VectorStore, attribute: str) -> set[str]:
    """The names of the values that items have; empty without a column of them."""
    if attribute not in store.schema.columns:
        return set()
    columns = [table.column(attribute).unique().to_pylist() for table in store.scan(None, [attribute], ())]
    return {value_name(stored) for column in columns for stored in column if stored is not None}


def _stored(value: Value, kind: ColumnType) -> str | int | float | bool:
    """A value of a column of this type from its name, such as the "38" of a model for 38.0."""
    if not isinstance(value, str) or kind == "text":
        return value
    same = same_value(value)
    if kind == "boolean" and str(same).lower() in ("true", "false"):
        return str(same).lower() == "true"
    if kind in ("integer", "number") and isinstance(same, int):
        return same
    try:
        return float(value) if kind == "number" else value
    except ValueError:
        return value


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
    compared = store.compare_with_all(targets, weights, count, condition, may_load=False)
    if compared is not None:
        return compared
    shares = np.array([weights[attribute] for attribute in targets], dtype=np.float64)
    search = _Search(store, targets, shares, count, condition)
    length = max(_FIRST_LIST, 4 * count)
    while not search.is_complete_with(length):
        # contradictory targets, such as a value that no similar item has, would need lists of nearly all items
        if condition is None or store.count(condition) > 32 * length:
            compared = store.compare_with_all(targets, weights, count, condition, may_load=True)
            if compared is not None:
                return compared
        if 4 * length > _LONGEST_LIST or store.count(condition) <= min(store.read_up_to, 32 * length):
            if store.count(condition) <= store.read_up_to:
                search.read(condition)  # compares with every item
            break
        length *= 4
    return search.best()


@dataclass
class _Search:
    store: VectorStore
    targets: Mapping[str, Vectors]  # attribute -> (dim,)
    weights: NDArray[np.float64]  # (attributes,)
    count: int
    condition: Condition | None
    scores: dict[str, float] = field(default_factory=dict)  # item id -> exact weighted sum

    def is_complete_with(self, length: int) -> bool:
        """Reads the `length` nearest items per attribute, and returns whether no other item can be among the best."""
        rows: dict[str, int] = {}
        lists = []
        for attribute, target in self.targets.items():
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
        columns = [self.store.schema.vector_column(attribute) for attribute in self.targets]
        for table in self.store.scan(condition, (), list(self.targets)):
            scores = np.zeros(len(table))
            for column, target, weight in zip(columns, self.targets.values(), self.weights, strict=True):
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
