"""What an index needs of the engine that keeps it: the protocol behind which LanceDB and Qdrant are the same."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from .conditions import Condition
from .schema import IndexSchema


class IndexLockedError(RuntimeError):
    """Another process is writing to the index; the message says to which."""


class NoIndexError(FileNotFoundError):
    """There is no index at this place; the message says what is there."""


class VectorStore(Protocol):
    """Items with one vector per attribute, in one engine.

    Conditions come checked against `schema.filterable`, vectors L2-normalised. Tables of items are those of
    `IndexSchema.arrow`. What a call that writes has returned from is kept, whatever happens then.
    """

    location: str
    schema: IndexSchema
    note: str  # what an unfinished copy leaves behind; "" for an index that is whole
    read_up_to: int  # items that are read in about the time of some searches

    @property
    def version(self) -> str:
        """Another one after each write, where the engine tells; else empty."""
        ...

    def set_note(self, note: str) -> None: ...

    def upsert(self, items: pa.Table) -> None:
        """Writes items over those of the same id, all of the table or, where the engine allows, none."""
        ...

    def delete(self, condition: Condition) -> None: ...

    def nearest(
        self,
        attribute: str,
        queries: NDArray[np.float32],
        count: int,
        condition: Condition | None,
        columns: Sequence[str] = (),
    ) -> list[pa.Table]:
        """For each row of `queries` (Q, dim) its nearest items: `item_id`, `similarity` (cosine), and the columns."""
        ...

    def scan(
        self,
        condition: Condition | None,
        columns: Sequence[str],
        attributes: Sequence[str],
        batch_size: int = 4096,
    ) -> Iterator[pa.Table]:
        """All items that fulfil the condition, in any order, in tables of about `batch_size` rows."""
        ...

    def count(self, condition: Condition | None) -> int: ...

    def optimize(self) -> None:
        """Makes searches fast again after much was written; returns when they are."""
        ...

    def close(self) -> None: ...
