"""The interface of the engines LanceDB and Qdrant, which the location of an index selects, and copies between them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from os import PathLike, fspath
from typing import Any, Protocol, TypeAlias

import pyarrow as pa  # type: ignore[import-untyped]
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from cca_hf.extras import require

from .conditions import AnyOf, Condition
from .lance_store import LanceSettings, LanceStore
from .qdrant_store import LOCAL, QdrantSettings, QdrantStore
from .schema import ITEM_ID, IndexSchema, NoIndexError, Vectors

Settings: TypeAlias = LanceSettings | QdrantSettings
_ITEMS_AT_ONCE = 2048


class VectorStore(Protocol):
    """Items with one vector per attribute, in one engine.

    Conditions were checked against `schema.filterable`, vectors are L2-normalised, and tables have the columns of
    `IndexSchema.arrow`. A write is durable when its method returns.
    """

    location: str
    schema: IndexSchema
    note: str  # describes an unfinished copy; "" for a complete index
    sources: tuple[str, ...]  # the folders and splits whose items were added by `cca index`
    read_up_to: int  # scanning this many items takes about as long as a few searches

    @property
    def version(self) -> str:
        """Changes with each write; empty if the engine has no versions."""

    def set_note(self, note: str) -> None: ...

    def set_sources(self, sources: Sequence[str]) -> None: ...

    def upsert(self, items: pa.Table) -> None:
        """Writes items and replaces those with the same id: all of the table or, if the engine can, nothing."""

    def delete(self, condition: Condition) -> None: ...

    def nearest(
        self, attribute: str, queries: Vectors, count: int, condition: Condition | None, columns: Sequence[str] = ()
    ) -> list[pa.Table]:
        """The nearest items of each row of `queries` (Q, dim): `item_id`, `similarity` (cosine) and the columns."""

    def compare_with_all(
        self,
        targets: Mapping[str, Vectors],
        weights: Mapping[str, float],
        count: int,
        condition: Condition | None,
        *,
        may_load: bool,
    ) -> pa.Table | None:
        """`item_id` and `similarity` of the best items for a mixture, compared with all items in memory.

        `targets` are attribute -> (dim,), `weights` attribute -> weight. None if the engine does not have all vectors
        in memory; with `may_load`, it loads them if they fit.
        """

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


def check_engine(location: str) -> None:
    """Raises ImportError if the engine of a location is not installed; names the extra to install."""
    if _is_on_server(location):
        require("qdrant", "an index on a Qdrant server needs")
    else:
        require("search", "an index in a folder or a bucket needs")


def _is_on_server(location: str) -> bool:
    return location.startswith(("http://", "https://", LOCAL))


def _engine(location: str, settings: Settings | None) -> tuple[Any, Settings]:
    """The class of the store at a location, and its settings."""
    check_engine(location)
    engine, kind = (QdrantStore, QdrantSettings) if _is_on_server(location) else (LanceStore, LanceSettings)
    if settings is not None and not isinstance(settings, kind):
        raise TypeError(f"the index at {location} takes {kind.__name__}; got {type(settings).__name__}")
    return engine, settings or kind()


def ids_among(store: VectorStore, items: Sequence[str]) -> set[str]:
    """The ids that are in the index."""
    tables = store.scan(AnyOf(ITEM_ID, tuple(items)), (), ()) if items else ()
    return {item for table in tables for item in table.column(ITEM_ID).to_pylist()}


def copy_index(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    source_settings: Settings | None = None,
    target_settings: Settings | None = None,
    show_progress: bool = True,
) -> int:
    """Copies an index to another location, with the same engine or the other. The source is not changed.

    Until the copy is complete, `AttributeIndex.open` refuses the target. Call again after an interruption to copy the
    remaining items. Returns the number of items in the target.

    Raises:
        NoIndexError: if the source is no index.
        FileExistsError: if the target is an index, but no unfinished copy of the source in its present state.
        IndexLockedError: if another process writes to the source or the target.
        RuntimeError: if the source was changed during the copy.
    """
    with closing(open_store(fspath(source), source_settings, writable=True)) as original:
        if original.note:
            raise ValueError(f"the index at {original.location} is not complete: {original.note}")
        try:
            copy = open_store(fspath(target), target_settings, writable=True)
        except NoIndexError:
            copy = create_store(fspath(target), original.schema, target_settings)
        with closing(copy):
            note = f"copying {original.location}{original.version} into it was not finished; do it again"
            is_begun = copy.note == note or (not copy.note and not copy.count(None))
            if not is_begun or copy.schema != original.schema:
                raise FileExistsError(
                    f"{fspath(target)} is an index already, but no unfinished copy of {original.location} in its "
                    "present state; choose another location, or delete it"
                )
            copy.set_note(note)
            with tqdm(total=original.count(None), desc="Copying", unit="item", disable=not show_progress) as progress:
                columns, attributes = list(original.schema.columns), original.schema.attributes
                for table in original.scan(None, columns, attributes, _ITEMS_AT_ONCE):
                    items = table.column(ITEM_ID).to_pylist()
                    done = ids_among(copy, items)
                    missing = [row for row, item in enumerate(items) if item not in done]
                    if missing:
                        copy.upsert(table.take(missing))
                    progress.update(len(table))
            copied, expected = copy.count(None), original.count(None)
            if copied != expected:
                raise RuntimeError(
                    f"{original.location} has {expected} items and {copy.location} {copied}: the source was changed "
                    "during the copy; delete the target and copy again"
                )
            copy.set_sources(original.sources)
            copy.optimize()
            copy.set_note("")
            return copied
