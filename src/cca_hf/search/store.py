"""The interface between an index and its engine, LanceDB or Qdrant."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa  # type: ignore[import-untyped]

from .conditions import Condition
from .schema import IndexSchema, Vectors


class IndexLockedError(RuntimeError):
    """Another process is writing to the index; the message names the index."""


class NoIndexError(FileNotFoundError):
    """The location contains no index; the message says what it contains."""


class VectorStore(Protocol):
    """Items with one vector per attribute, in one engine.

    Conditions were checked against `schema.filterable`, vectors are L2-normalised, and tables have the columns of
    `IndexSchema.arrow`. A write is durable when its method returns.
    """

    location: str
    schema: IndexSchema
    note: str  # describes an unfinished copy; "" for a complete index
    read_up_to: int  # so many items are scanned in about the time of a few searches

    @property
    def version(self) -> str:
        """Changes with each write; empty if the engine has no versions."""
        ...

    def set_note(self, note: str) -> None: ...

    def upsert(self, items: pa.Table) -> None:
        """Writes items and replaces those with the same id: all of the table or, if the engine can, nothing."""
        ...

    def delete(self, condition: Condition) -> None: ...

    def nearest(
        self, attribute: str, queries: Vectors, count: int, condition: Condition | None, columns: Sequence[str] = ()
    ) -> list[pa.Table]:
        """The nearest items of each row of `queries` (Q, dim): `item_id`, `similarity` (cosine) and the columns."""
        ...

    def scan(
        self, condition: Condition | None, columns: Sequence[str], attributes: Sequence[str], batch_size: int = 4096
    ) -> Iterator[pa.Table]:
        """All items that fulfil the condition, in any order, in tables of about `batch_size` rows."""
        ...

    def count(self, condition: Condition | None) -> int: ...

    def optimize(self) -> None:
        """Restores the speed of searches after many writes; returns when it is restored."""
        ...

    def close(self) -> None: ...
