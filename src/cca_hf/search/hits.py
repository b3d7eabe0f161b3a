"""What a search returns."""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa  # type: ignore[import-untyped]

from .schema import ITEM_ID, SIMILARITY


class Hit(NamedTuple):
    """An item found."""

    item_id: str
    similarity: float  # cosine, or the weighted mean of several
    columns: dict[str, str | int | float | bool | None]


def hits_of(table: pa.Table, columns: Sequence[str], itself: str | None) -> list[Hit]:
    """The rows of a table, the nearest first and equals by their id, without the item that was asked with."""
    ids, similarities = table.column(ITEM_ID).to_pylist(), table.column(SIMILARITY).to_pylist()
    others = [table.column(name).to_pylist() for name in columns]
    rows = sorted(range(len(ids)), key=lambda row: (-similarities[row], ids[row]))
    return [
        Hit(ids[row], similarities[row], {name: each[row] for name, each in zip(columns, others, strict=True)})
        for row in rows
        if ids[row] != itself
    ]
