"""The results of a search."""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa  # type: ignore[import-untyped]

from .schema import ITEM_ID, SIMILARITY


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
