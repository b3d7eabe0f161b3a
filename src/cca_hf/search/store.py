"""The interface between an index and its engine, LanceDB or Qdrant; the location of an index selects the engine."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import pyarrow as pa  # type: ignore[import-untyped]

from .conditions import Condition
from .lance_store import LanceSettings, LanceStore
from .qdrant_store import LOCAL, QdrantSettings, QdrantStore
from .schema import IndexSchema, Vectors

Settings: TypeAlias = LanceSettings | QdrantSettings


class VectorStore(Protocol):
    """Items with one vector per attribute, in one engine.

    Conditions were checked against `schema.filterable`, vectors are L2-normalised, and tables have the columns of
    `IndexSchema.arrow`. A write is durable when its method returns.
    """

    location: str
    schema: IndexSchema
    note: str  # describes an unfinished copy; "" for a complete index
    read_up_to: int  # scanning this many items takes about as long as a few searches

    @property
    def version(self) -> str:
        """Changes with each write; empty if the engine has no versions."""

    def set_note(self, note: str) -> None: ...

    def upsert(self, items: pa.Table) -> None:
        """Writes items and replaces those with the same id: all of the table or, if the engine can, nothing."""

    def delete(self, condition: Condition) -> None: ...

    def nearest(
        self, attribute: str, queries: Vectors, count: int, condition: Condition | None, columns: Sequence[str] = ()
    ) -> list[pa.Table]:
        """The nearest items of each row of `queries` (Q, dim): `item_id`, `similarity` (cosine) and the columns."""

    def scan(
        self, condition: Condition | None, columns: Sequence[str], attributes: Sequence[str], batch_size: int = 4096
    ) -> Iterator[pa.Table]:
        """All items that fulfil the condition, in any order, in tables of about `batch_size` rows."""

    def count(self, condition: Condition | None) -> int: ...

    def optimize(self) -> None:
        """Restores the speed of searches after many writes; returns when it is restored."""

    def close(self) -> None: ...


def create_store(location: str, schema: IndexSchema, settings: Settings | None) -> VectorStore:
    """Creates an empty index: with Qdrant at `http(s)://host:6333/collection`, else with LanceDB in a folder or a
    bucket (`s3://...`, `gs://...`, `az://...`).
    """
    engine, settings = _engine(location, settings)
    return engine.create(location, schema, settings)


def open_store(location: str, settings: Settings | None, *, writable: bool) -> VectorStore:
    """Opens the index at a location."""
    engine, settings = _engine(location, settings)
    return engine.open(location, settings, writable=writable)


def _engine(location: str, settings: Settings | None) -> tuple[Any, Settings]:
    """The class of the store at a location, and its settings."""
    on_server = location.startswith(("http://", "https://", LOCAL))
    engine, kind = (QdrantStore, QdrantSettings) if on_server else (LanceStore, LanceSettings)
    if settings is not None and not isinstance(settings, kind):
        raise TypeError(f"the index at {location} takes {kind.__name__}; got {type(settings).__name__}")
    return engine, settings or kind()
