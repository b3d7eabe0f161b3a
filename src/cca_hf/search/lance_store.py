"""An index in a folder or a bucket, stored by LanceDB: no server, atomic versions, filters before the search.

The table has one row per item and one fixed-size list of floats per attribute. A write makes a new version, visible
when it is complete. In a folder a file lock allows one writer; the operating system releases it when the process dies.
In a bucket LanceDB refuses conflicting writes.
"""

import contextlib
import errno
import json
import os
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa  # type: ignore[import-untyped]

from .conditions import Condition
from .engine_filters import to_sql
from .lance_queries import SEEN_WITHIN, LanceQueries
from .schema import ITEM_ID, SIMILARITY, IndexLockedError, IndexSchema, NoIndexError, Vectors

_TABLE = "items"
_KEY = b"cca_hf.index"
_NOTE = "cca_hf.note"
_SOURCES = "cca_hf.sources"
_LOCK = ".writer.lock"
_CHECKSUMS = "checksums.json"  # as `models/whole_files.py` calls it
_GRAPH = b"cca_hf.graph"
_NEIGHBOURS = 16  # in the graph
_BUILD_EFFORT = 100
_ROWS_A_GRAPH = 1_000_000
_QUERIES_AT_ONCE = 64
_REBUILD_SHARE = 0.2  # with a larger share of new rows the graph is built again; fewer are added to it
_KEPT = timedelta(minutes=10)  # how long an old version stays for its readers


@dataclass(frozen=True)
class LanceSettings:
    """Settings of an index in a folder or a bucket. An existing index uses only the last two.

    Args:
        graph: "exact" stores the full vectors in the graph. "8-bit" needs less than half of the memory (128
            dimensions, float32), takes more time and has a slightly lower recall.
    """

    vectors: Literal["float32", "float16"] = "float32"  # "float16" halves the size on disk
    graph: Literal["exact", "8-bit"] = "exact"
    index_from: int = 20_000  # rows from which `optimize` builds a graph; with fewer, a search compares all rows
    storage_options: Mapping[str, str] = field(default_factory=dict)  # for buckets, as in `lancedb.connect`

    def __post_init__(self) -> None:
        if self.vectors not in ("float32", "float16"):
            raise ValueError(f"vectors must be 'float32' or 'float16'; got {self.vectors!r}")
        if self.graph not in ("exact", "8-bit"):
            raise ValueError(f"graph must be 'exact' or '8-bit'; got {self.graph!r}")


class LanceStore:
    """See `VectorStore`."""

    read_up_to = 250_000

    def __init__(self, location: str, settings: LanceSettings, table: Any) -> None:
        self.location = location
        self.settings = settings
        self._lock = contextlib.ExitStack()  # empty for a reader
        self._table = table
        stored = _run(table.schema())
        self.schema = IndexSchema.from_json(stored.metadata[_KEY])
        kept = stored.field(ITEM_ID).metadata or {}
        self.note = (kept.get(_NOTE.encode()) or b"").decode()
        self.sources = tuple(json.loads(kept.get(_SOURCES.encode()) or b"[]"))
        self._written = pa.schema([stored.field(name) for name in self.schema.arrow().names])
        self._exact = stored.metadata[_GRAPH] == b"exact"
        self._queries = LanceQueries(_run(table.uri()), settings.storage_options, is_exact=self._exact)

    @classmethod
    def create(cls, location: str, schema: IndexSchema, settings: LanceSettings) -> "LanceStore":
        _check_free(location)
        with _failures(location), contextlib.ExitStack() as undo:
            if not _is_remote(location):
                Path(location).mkdir(parents=True, exist_ok=True)
            undo.enter_context(_lock(location))
            connection = _connect(location, settings)
            if _TABLE in _run(connection.list_tables()).tables:
                raise FileExistsError(f"there is an index at {location} already; open it, or choose another location")
            if not _is_remote(location):
                Path(location, _CHECKSUMS).unlink(missing_ok=True)  # of an index that was deleted
            kind = pa.float16() if settings.vectors == "float16" else pa.float32()
            fields = [
                column.with_type(pa.list_(kind, schema.dim)) if pa.types.is_fixed_size_list(column.type) else column
                for column in schema.arrow()
            ]
            stored = pa.schema(fields, metadata={_KEY: schema.to_json(), _GRAPH: settings.graph.encode()})
            store = cls(location, settings, _run(connection.create_table(_TABLE, schema=stored)))
            store._lock = undo.pop_all()
            return store

    @classmethod
    def open(cls, location: str, settings: LanceSettings, *, writable: bool) -> "LanceStore":
        if not _is_remote(location) and not Path(location, f"{_TABLE}.lance").is_dir():
            what = "the folder contains no index" if Path(location).is_dir() else "the folder does not exist"
            raise NoIndexError(f"there is no index at {location}: {what}")
        connection = _connect(location, settings)
        if _is_remote(location) and _TABLE not in _run(connection.list_tables()).tables:
            raise NoIndexError(f"there is no index at {location}")
        with contextlib.ExitStack() as undo:
            if writable:
                undo.enter_context(_lock(location))
            table = _run(connection.open_table(_TABLE))
            if _KEY not in (_run(table.schema()).metadata or {}):
                raise NoIndexError(f"the table at {location} was not written by cca_hf")
            store = cls(location, settings, table)
            store._lock = undo.pop_all()
            return store

    @property
    def version(self) -> str:
        return f" (version {_run(self._table.version())})"

    def set_note(self, note: str) -> None:
        self._keep(_NOTE, note or None)
        self.note = note

    def set_sources(self, sources: Sequence[str]) -> None:
        self._keep(_SOURCES, json.dumps(sources))
        self.sources = tuple(sources)

    def _keep(self, key: str, text: str | None) -> None:
        with _failures(self.location):
            _run(self._table.update_field_metadata({"path": ITEM_ID, "metadata": {key: text}}))

    def upsert(self, items: pa.Table) -> None:
        merge = self._table.merge_insert(ITEM_ID).when_matched_update_all().when_not_matched_insert_all()
        with _failures(self.location):
            _run(merge.execute(items.cast(self._written)))
        self._queries.refresh()

    def delete(self, condition: Condition) -> None:
        with _failures(self.location):
            _run(self._table.delete(to_sql(condition)))
        self._queries.refresh()

    def nearest(
        self, attribute: str, queries: Vectors, count: int, condition: Condition | None, columns: Sequence[str] = ()
    ) -> list[pa.Table]:
        vector_column, names = self.schema.vector_column(attribute), [ITEM_ID, *columns]
        tables = []
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            part = queries[start : start + _QUERIES_AT_ONCE]
            for found in self._queries.newest().nearest(vector_column, part, count, names, condition):
                similarity = 1.0 - found.column("_distance").to_numpy()
                tables.append(found.select(names).append_column(SIMILARITY, pa.array(similarity, pa.float32())))
        return tables

    def compare_with_all(
        self,
        targets: Mapping[str, Vectors],
        weights: Mapping[str, float],
        count: int,
        condition: Condition | None,
        *,
        may_load: bool,
    ) -> pa.Table | None:
        vectors = {self.schema.vector_column(attribute): target for attribute, target in targets.items()}
        shares = {self.schema.vector_column(attribute): weights[attribute] for attribute in targets}
        best = self._queries.newest().compare_with_all(vectors, shares, count, condition, ITEM_ID, may_load=may_load)
        if best is None:
            return None
        ids, scores = best
        return pa.table({ITEM_ID: pa.array(ids, pa.string()), SIMILARITY: pa.array(scores, pa.float32())})

    def scan(
        self, condition: Condition | None, columns: Sequence[str], attributes: Sequence[str], batch_size: int = 4096
    ) -> Iterator[pa.Table]:
        wanted = self.schema.arrow(columns, attributes)
        search = self._table.query().select(wanted.names)
        if condition is not None:
            search = search.where(to_sql(condition))
        batches = _run(search.to_batches(max_batch_length=batch_size))
        while (batch := _run(_next(batches))) is not None:
            yield pa.Table.from_batches([batch]).select(wanted.names).cast(wanted)

    def count(self, condition: Condition | None) -> int:
        return _run(self._table.count_rows(None if condition is None else to_sql(condition)))

    def optimize(self) -> None:
        from lancedb.index import Bitmap, BTree, HnswFlat, HnswSq

        rows = self.count(None)
        with _failures(self.location):
            indexed = {index.columns[0] for index in _run(self._table.list_indices())}
            if not indexed:  # merges small files before the graphs refer to them
                _run(self._table.optimize(cleanup_older_than=_KEPT))
            if rows >= self.settings.index_from:
                for name, kind in self.schema.filterable.items():
                    if name not in indexed:
                        _run(self._table.create_index(name, config=Bitmap() if kind == "boolean" else BTree()))
                graph = (HnswFlat if self._exact else HnswSq)(
                    distance_type="cosine",
                    num_partitions=max(1, round(rows / _ROWS_A_GRAPH)),
                    m=_NEIGHBOURS,
                    ef_construction=_BUILD_EFFORT,
                )
                for name in sorted(map(self.schema.vector_column, self.schema.attributes)):
                    known = _run(self._table.index_stats(f"{name}_idx"))
                    if known is None or known.num_unindexed_rows > _REBUILD_SHARE * rows:
                        _run(self._table.create_index(name, config=graph))
            if indexed or rows >= self.settings.index_from:
                _run(self._table.optimize(cleanup_older_than=_KEPT))
            if not _is_remote(self.location):
                _write_checksums(self.location)
        self._queries.refresh()

    def close(self) -> None:
        self._lock.close()


def _connect(location: str, settings: LanceSettings) -> Any:
    os.environ.setdefault("LANCEDB_LOG", "error")  # its warnings are about its internals
    import lancedb

    options = dict(settings.storage_options) or None
    return _run(lancedb.connect_async(location, read_consistency_interval=SEEN_WITHIN, storage_options=options))


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs in LanceDB's own event loop. Its synchronous calls would enter the loop several times."""
    from lancedb.background_loop import LOOP

    return LOOP.run(work)


async def _next(batches: Any) -> Any:
    return await anext(batches, None)


def _is_remote(location: str) -> bool:
    return "://" in location


def _check_free(location: str) -> None:
    path = Path(location)
    if _is_remote(location) or not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{location} is a file; an index needs a new or empty folder")
    known = (_LOCK, _CHECKSUMS, f"{_TABLE}.lance")
    others = sorted(file.name for file in path.iterdir() if file.name not in known)
    if others:
        raise FileExistsError(f"{location} contains other files ({others[0]}, ...); an index needs an empty folder")


def _write_checksums(location: str) -> None:
    from cca_hf.models.whole_files import write_checksums  # imports torch, which a search does without

    write_checksums(Path(location))


def _lock(location: str) -> contextlib.AbstractContextManager[Any]:
    """The lock of the one writer, taken already; leaving the context releases it. Buckets have none."""
    if _is_remote(location):
        return contextlib.nullcontext()
    from filelock import FileLock, Timeout

    try:
        return FileLock(Path(location, _LOCK), thread_local=False).acquire(timeout=0)
    except Timeout as error:
        raise IndexLockedError(
            f"another process is writing to the index at {location}; wait until it ends, or open it for reading"
        ) from error


@contextlib.contextmanager
def _failures(location: str) -> Iterator[None]:
    """Raises errors of LanceDB as OSError. The stored items are unchanged, since versions are atomic."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if isinstance(error, (IndexLockedError, FileExistsError)):
            raise
        full = "No space left on device" in str(error) or "os error 28" in str(error)
        what = "the disk is full" if full else " ".join(str(error).split())
        code = errno.ENOSPC if full else getattr(error, "errno", None) or errno.EIO
        message = f"writing to the index failed, its previous content is unchanged: {what}"
        raise OSError(code, message, location) from error
