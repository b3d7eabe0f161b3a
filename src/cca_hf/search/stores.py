"""From the name of a place to the engine that keeps an index there."""

from typing import TypeAlias, TypeVar

from .lance_store import LanceSettings, LanceStore
from .qdrant_store import LOCAL, QdrantSettings, QdrantStore
from .schema import IndexSchema
from .store import VectorStore

Settings: TypeAlias = LanceSettings | QdrantSettings
_Kind = TypeVar("_Kind", LanceSettings, QdrantSettings)


def create_store(location: str, schema: IndexSchema, settings: Settings | None) -> VectorStore:
    """An empty index at a place: `http(s)://host:6333/collection` is on a Qdrant server, all else is a folder or a
    bucket (`s3://...`, `gs://...`, `az://...`) and LanceDB's.

    Raises:
        FileExistsError: if there is something already.
    """
    if _is_qdrant(location):
        return QdrantStore.create(location, schema, _checked(settings, QdrantSettings, location))
    return LanceStore.create(location, schema, _checked(settings, LanceSettings, location))


def open_store(location: str, settings: Settings | None, *, writable: bool) -> VectorStore:
    """The index at a place.

    Raises:
        NoIndexError: if there is none.
        IndexLockedError: if it is to be written to, and another process does so already.
    """
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
