"""Converts items to the table of a store, after checking them, and the table of a result to hits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from numpy.typing import NDArray

from .conditions import unknown
from .schema import ITEM_ID, SIMILARITY, IndexSchema


class Hit(NamedTuple):
    """One item of a result."""

    item_id: str
    similarity: float  # cosine, or a weighted mean of cosines
    columns: dict[str, str | int | float | bool | None]


def hits_of(table: pa.Table, columns: Sequence[str], query_item: str | None) -> list[Hit]:
    """The rows by falling similarity, equal ones by id, without the item that was the query."""
    rows = table.to_pylist()
    hits = [Hit(row[ITEM_ID], row[SIMILARITY], {name: row[name] for name in columns}) for row in rows]
    return sorted((hit for hit in hits if hit.item_id != query_item), key=lambda hit: (-hit.similarity, hit.item_id))


def item_table(
    schema: IndexSchema,
    item_ids: Sequence[str | int],
    embeddings: NDArray | None,
    columns: Mapping[str, Sequence[object]] | pa.Table | None,
) -> pa.Table:
    """The items as a table with the columns of `schema.arrow()`, without vectors if `embeddings` is None."""
    names = _ids(item_ids)
    if isinstance(columns, pa.Table):
        columns = dict(zip(columns.column_names, columns.columns, strict=True))
    given = dict(columns or {})
    for name in given:
        if name not in schema.columns:
            raise ValueError(f"the index has {unknown('column', name, schema.columns)}")
    wanted = schema.arrow()
    columns_given = [_column(name, given.get(name), wanted.field(name).type, len(names)) for name in schema.columns]
    arrays = [pa.array(names, pa.string()), *columns_given]
    if embeddings is not None:
        vectors = _vectors(schema, embeddings, names)
        for place in range(len(schema.attributes)):
            flat = pa.array(np.ascontiguousarray(vectors[:, place]).ravel())
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, schema.dim))
    return pa.Table.from_arrays(arrays, schema=pa.schema(list(wanted)[: len(arrays)]))


def _ids(item_ids: Sequence[str | int]) -> list[str]:
    if isinstance(item_ids, str):
        raise TypeError(f"item_ids must be a list; got the string {item_ids!r}")
    for item in item_ids:
        if not isinstance(item, (str, int, np.integer)) or isinstance(item, bool) or item == "":
            raise ValueError(f"an item id is a non-empty string or an integer; got {item!r}")
    names = [str(item) for item in item_ids]
    if len(set(names)) < len(names):
        twice, _ = Counter(names).most_common(1)[0]
        raise ValueError(f"the item id {twice!r} is given twice")
    return names


def _column(name: str, values: Sequence[object] | None, kind: pa.DataType, rows: int) -> pa.Array:
    if values is None:
        return pa.nulls(rows, kind)
    if len(values) != rows:
        raise ValueError(f"got {rows} item_ids, but {len(values)} values for the column {name!r}")
    try:
        array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, from_pandas=True)
        array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        types = pa.types
        fits = types.is_boolean(array.type) == types.is_boolean(kind)
        if types.is_string(kind):
            fits = any(test(array.type) for test in (types.is_string, types.is_large_string, types.is_dictionary))
        if not fits and not pa.types.is_null(array.type):
            raise pa.ArrowInvalid(f"they are {array.type}")
        array = array.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        raise ValueError(f"the column {name!r} has the type {kind}, which does not fit the values: {error}") from error
    if pa.types.is_floating(kind):
        array = pc.if_else(pc.is_finite(array), array, None)
    return array


def _vectors(schema: IndexSchema, embeddings: NDArray, names: list[str]) -> NDArray[np.float32]:
    expected = (len(names), len(schema.attributes), schema.dim)
    if embeddings.shape != expected:
        raise ValueError(
            f"embeddings must have shape (items, attributes, dim) = {expected} for the attributes "
            f"{', '.join(schema.attributes)}; got {embeddings.shape}"
        )
    vectors = embeddings.astype(np.float32, copy=False)
    lengths = np.linalg.norm(vectors, axis=2, keepdims=True)
    wrong = np.argwhere(~(np.isfinite(lengths[:, :, 0]) & (lengths[:, :, 0] > 0)))
    if len(wrong):
        row, place = wrong[0].tolist()
        raise ValueError(
            f"the embedding of {names[row]!r} for {schema.attributes[place]!r} is zero or not finite, as are "
            f"{len(wrong) - 1} others"
        )
    return vectors / lengths
