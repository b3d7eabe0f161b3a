"""From what is asked to the vectors that are looked for: of embeddings, items and values, each under its attribute."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .conditions import AnyOf, check, unknown
from .mixtures import vectors_of
from .schema import ITEM_ID, IndexSchema
from .store import VectorStore

Value = str | int | bool


def shares_of(
    schema: IndexSchema,
    attribute: str | None,
    weights: Mapping[str, float] | None,
    values: Mapping[str, Value],
    *,
    has_picture: bool,
) -> dict[str, float]:
    """Attribute -> its share of the similarity; they are positive and sum to 1. See `AttributeIndex.search`."""
    if attribute is not None and weights is not None:
        raise ValueError("give either attribute or weights, and not both")
    if weights is None:
        if attribute is None and not values:
            raise ValueError(f"name an attribute, or weights of several; the index has {', '.join(schema.attributes)}")
        several = schema.attributes if has_picture else tuple(values)
        weights = dict.fromkeys(several if attribute is None else (attribute,), 1.0)
    for name in (*weights, *values):
        schema.vector_column(name)
    if any(not 0 <= weight < np.inf for weight in weights.values()) or not sum(weights.values()):
        raise ValueError(f"weights must be at least 0, and one above it; got {dict(weights)}")
    idle = [name for name in values if not weights.get(name)]
    if idle:
        raise ValueError(f"a value of {', '.join(idle)} is asked for, which has no weight")
    lacking = [name for name, weight in weights.items() if weight and name not in values and not has_picture]
    if lacking:
        raise ValueError(f"nothing says what to look for under {', '.join(lacking)}: give a picture or a value")
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items() if weight}


def targets_of(schema: IndexSchema, embeddings: NDArray, attributes: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Attribute -> (queries, dim), normalised.

    Args:
        embeddings: (queries, attributes of the index, dim), or (queries, dim) where one attribute is asked for.

    Raises:
        ValueError: for another shape, or vectors without a direction.
    """
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
    vectors = vectors / lengths
    return {name: vectors[:, place] for place, name in enumerate(attributes)}


def embeddings_of(store: VectorStore, items: list[str], attributes: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Attribute -> (items, dim), as the index has them.

    Raises:
        ValueError: for an id that is not in the index.
    """
    rows: dict[str, dict[str, NDArray[np.float32]]] = {}
    for table in store.scan(AnyOf(ITEM_ID, tuple(set(items))), (), attributes):
        each = {name: vectors_of(table, store.schema.vector_column(name)) for name in attributes}
        for row, item in enumerate(table.column(ITEM_ID).to_pylist()):
            rows[item] = {name: vectors[row] for name, vectors in each.items()}
    check_there(items, rows)
    return {name: np.stack([rows[item][name] for item in items]) for name in attributes}


def check_there(items: list[str], there: Mapping[str, object]) -> None:
    """
    Raises:
        ValueError: naming the first that is not.
    """
    missing = [item for item in items if item not in there]
    if missing:
        more = f" (and {len(missing) - 1} more of those asked for)" if missing[1:] else ""
        raise ValueError(f"the index has no item {missing[0]!r}{more}")


def centroid_of(store: VectorStore, attribute: str, value: Value) -> NDArray[np.float32]:
    """See `AttributeIndex.centroid`."""
    schema = store.schema
    column = schema.vector_column(attribute)
    if attribute not in schema.columns:
        raise ValueError(
            f"values of {attribute!r} are not known: the index has no column {attribute!r} with the items' labels"
        )
    condition = check(AnyOf(attribute, (value,)), schema.filterable)
    total = np.zeros(schema.dim)
    for table in store.scan(condition, (), [attribute]):
        total += vectors_of(table, column).sum(axis=0, dtype=np.float64)
    length = np.linalg.norm(total)
    if not length:
        there = {
            str(each)
            for table in store.scan(None, [attribute], ())
            for each in table.column(attribute).unique().to_pylist()
            if each is not None
        }
        raise ValueError(f"in the index there is {unknown(f'item whose {attribute} is', str(value), there)}")
    return (total / length).astype(np.float32)
