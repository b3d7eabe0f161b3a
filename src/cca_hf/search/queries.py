"""Turns a query (embeddings, items or values) into one target vector per attribute."""

from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from .conditions import AnyOf, check, unknown
from .mixtures import vectors_of
from .schema import ITEM_ID, IndexSchema, Vectors
from .store import VectorStore

Value = str | int | bool


def shares_of(
    schema: IndexSchema,
    attribute: str | None,
    weights: Mapping[str, float] | None,
    values: Mapping[str, Value],
    *,
    has_query: bool,
) -> dict[str, float]:
    """Attribute -> share of the similarity. Shares are positive and sum to 1. See `AttributeIndex.search`."""
    if attribute is not None and weights is not None:
        raise ValueError("give either attribute or weights, and not both")
    if attribute is not None and not isinstance(attribute, str):
        raise ValueError(f"attribute must be one name; got {attribute!r}. For several attributes use weights")
    for name, mapping in (("weights", weights), ("values", values)):
        if mapping is not None and not isinstance(mapping, Mapping):
            raise ValueError(f"{name} must be a dict with attributes as keys; got {mapping!r}")
    if weights is None:
        if attribute is None and not values:
            raise ValueError(f"give an attribute, or weights for several of {', '.join(schema.attributes)}")
        several = schema.attributes if has_query else tuple(values)
        weights = dict.fromkeys(several if attribute is None else (attribute,), 1.0)
    for name in (*weights, *values):
        schema.vector_column(name)
    numeric = all(isinstance(weight, Real) and 0 <= weight < np.inf for weight in weights.values())
    if not numeric or not sum(weights.values()):
        raise ValueError(f"weights must be numbers of at least 0, and one must be above 0; got {dict(weights)}")
    unused = [name for name in values if not weights.get(name)]
    if unused:
        raise ValueError(f"values contains {', '.join(unused)}, but the weight of this attribute is 0 or missing")
    lacking = [name for name, weight in weights.items() if weight and name not in values and not has_query]
    if lacking:
        raise ValueError(f"the query says nothing about {', '.join(lacking)}: give an image or a value")
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items() if weight}


def targets_of(schema: IndexSchema, embeddings: NDArray, attributes: Sequence[str]) -> dict[str, Vectors]:
    """Attribute -> (queries, dim), normalised, of (queries, attributes, dim) or, for one attribute, (queries, dim)."""
    whole = (len(schema.attributes), schema.dim)
    single = (schema.dim,) if len(attributes) == 1 else whole
    if embeddings.shape[1:] not in (whole, single):
        alone = f", or {single} for one attribute" if single != whole else ""
        raise ValueError(f"an embedding must have shape {whole}{alone}; got {embeddings.shape[1:]}")
    vectors = embeddings.astype(np.float32, copy=False)
    if vectors.ndim == 2:
        vectors = vectors[:, None]
    else:
        vectors = vectors[:, [schema.attributes.index(name) for name in attributes]]
    lengths = np.linalg.norm(vectors, axis=2, keepdims=True)
    if not np.all(np.isfinite(lengths) & (lengths > 0)):
        raise ValueError("an embedding must be finite and not zero")
    return dict(zip(attributes, (vectors / lengths).swapaxes(0, 1), strict=True))


def embeddings_of(store: VectorStore, items: list[str], attributes: Sequence[str]) -> dict[str, Vectors]:
    """Attribute -> (items, dim), as stored in the index."""
    rows: dict[str, dict[str, Vectors]] = {}
    for table in store.scan(AnyOf(ITEM_ID, tuple(set(items))), (), attributes):
        stored = {name: vectors_of(table, store.schema.vector_column(name)) for name in attributes}
        for row, item in enumerate(table.column(ITEM_ID).to_pylist()):
            rows[item] = {name: vectors[row] for name, vectors in stored.items()}
    check_present(items, rows)
    return {name: np.stack([rows[item][name] for item in items]) for name in attributes}


def ids_among(store: VectorStore, items: Sequence[str]) -> set[str]:
    """The ids that are in the index."""
    tables = store.scan(AnyOf(ITEM_ID, tuple(items)), (), ()) if items else ()
    return {item for table in tables for item in table.column(ITEM_ID).to_pylist()}


def check_present(items: list[str], stored: Mapping[str, object]) -> None:
    """Raises ValueError for ids that are not stored."""
    missing = [item for item in items if item not in stored]
    if missing:
        more = f" (and {len(missing) - 1} more of these ids)" if missing[1:] else ""
        raise ValueError(f"the index has no item {missing[0]!r}{more}")


def centroid_of(store: VectorStore, attribute: str, value: Value) -> Vectors:
    """See `AttributeIndex.centroid`."""
    schema = store.schema
    column = schema.vector_column(attribute)
    if attribute not in schema.columns:
        raise ValueError(f"the index has no column {attribute!r} with the items' labels, so it knows no values of it")
    condition = check(AnyOf(attribute, (value,)), schema.filterable)
    total = np.zeros(schema.dim)
    for table in store.scan(condition, (), [attribute]):
        total += vectors_of(table, column).sum(axis=0, dtype=np.float64)
    length = np.linalg.norm(total)
    if not length:
        columns = [table.column(attribute).unique().to_pylist() for table in store.scan(None, [attribute], ())]
        values = {str(stored) for column in columns for stored in column if stored is not None}
        raise ValueError(f"the index has {unknown(f'item whose {attribute} is', value, values)}")
    return (total / length).astype(np.float32)
