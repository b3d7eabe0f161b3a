"""Chooses the engine of an index by its location."""

from typing import TypeAlias, TypeVar

from .lance_store import LanceSettings, LanceStore
from .qdrant_store import LOCAL, QdrantSettings, QdrantStore
from .schema import IndexSchema
from .store import VectorStore

Settings: TypeAlias = LanceSettings | QdrantSettings
_Kind = TypeVar("_Kind", LanceSettings, QdrantSettings)


def create_store(location: str, schema: IndexSchema, settings: Settings | None) -> VectorStore:
    """Creates an empty index: with Qdrant at `http(s)://host:6333/collection`, else with LanceDB in a folder or a
    bucket (`s3://...`, `gs://...`, `az://...`).
    """
    if _is_qdrant(location):
        return QdrantStore.create(location, schema, _checked(settings, QdrantSettings, location))
    return LanceStore.create(location, schema, _checked(settings, LanceSettings, location))


def open_store(location: str, settings: Settings | None, *, writable: bool) -> VectorStore:
    """Opens the index at a location."""
    if _is_qdrant(location):
        return QdrantStore.open(location, _checked(settings, QdrantSettings, location), writable=writable)
    return LanceStore.open(location, _checked(settings, LanceSettings, location), writable=writable)


def _is_qdrant(location: str) -> bool:
    return location.startswith(("http://", "https://", LOCAL))


def _checked(settings: Settings | None, kind: type[_Kind], location: str) -> _Kind:
    if settings is None:
        return kind()
    if not isinstance(settings, kind):
        raise TypeError(f"the index at {location} takes {kind.__name__}; got {type(settings).__name__}")
    return settings
