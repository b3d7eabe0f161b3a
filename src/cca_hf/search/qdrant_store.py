"""An index on a Qdrant server or cluster, for catalogues that are too large for one machine.

An item is one point with one named vector per attribute and the columns as payload. For tests,
`qdrant-local:folder/collection` uses the client's local mode, and `qdrant-local:collection` does so in memory.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from .conditions import Condition
from .engine_filters import payload_path, to_filter
from .schema import ITEM_ID, SIMILARITY, IndexLockedError, IndexSchema, NoIndexError, Vectors

LOCAL = "qdrant-local:"
_KEY = "cca_hf.index"
_NOTE = "cca_hf.note"
_SOURCES = "cca_hf.sources"
# The server takes UUIDs or numbers as point ids: the UUID is derived from the item id.
_NAMESPACE = uuid.UUID("5f2f7f7c-6d0e-5b0b-9a9d-0f3c2f1f8a11")
_FLOATS_A_REQUEST = 1_000_000
_QUERIES_A_REQUEST = 64
_SEARCH_EFFORT = 128
_POLL_INTERVAL = 0.5  # seconds, while the server builds its graphs
_PAYLOAD_INDEX = {"text": "keyword", "integer": "integer", "number": "float", "boolean": "bool"}


@dataclass(frozen=True)
class QdrantSettings:
    """Settings of a collection; for `None` the server decides. An existing collection uses only the last three."""

    shards: int | None = None  # parts of the collection on the nodes
    replicas: int | None = None  # copies of each shard
    write_consistency: int | None = None  # copies that must confirm a write
    quantisation: Literal["int8", "none"] = "int8"  # "int8" searches with bytes, and ranks with the full vectors
    vectors: Literal["float32", "float16"] = "float32"  # type of the stored full vectors
    vectors_on_disk: bool = False  # read the full vectors from disk instead of memory
    api_key: str | None = None  # default: the environment variable QDRANT_API_KEY
    timeout: int = 60  # seconds that a request may take
    optimize_timeout: float = 3600  # seconds that `AttributeIndex.optimize` waits for the graphs of the server

    def __post_init__(self) -> None:
        if self.quantisation not in ("int8", "none") or self.vectors not in ("float32", "float16"):
            raise ValueError(
                f"quantisation must be 'int8' or 'none' and vectors 'float32' or 'float16'; got {self.quantisation!r} "
                f"and {self.vectors!r}"
            )


class QdrantStore:
    """See `VectorStore`."""

    read_up_to = 20_000
    version = ""

    def __init__(self, location: str, settings: QdrantSettings, client: Any, collection: str) -> None:
        self.location = location
        self.settings = settings
        self._client = client
        self._collection = collection
        self._is_local = location.startswith(LOCAL)
        kept = client.get_collection(collection).config.metadata or {}
        if _KEY not in kept:
            raise NoIndexError(f"the collection at {location} was not written by cca_hf")
        self.schema = IndexSchema.from_json(kept[_KEY])
        self.note: str = kept.get(_NOTE, "")
        self.sources = tuple(kept.get(_SOURCES, ()))

    @classmethod
    def create(cls, location: str, schema: IndexSchema, settings: QdrantSettings) -> "QdrantStore":
        client, collection = _connect(location, settings)
        from qdrant_client import models

        with _failures(location, client):
            if client.collection_exists(collection):
                raise FileExistsError(f"there is a collection at {location} already; give another name")
            scalar = models.ScalarQuantization(
                scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
            )
            client.create_collection(
                collection,
                vectors_config={
                    schema.vector_column(attribute): models.VectorParams(
                        size=schema.dim,
                        distance=models.Distance.COSINE,
                        datatype=models.Datatype(settings.vectors),
                        on_disk=settings.vectors_on_disk,
                    )
                    for attribute in schema.attributes
                },
                quantization_config=scalar if settings.quantisation == "int8" else None,
                shard_number=settings.shards,
                replication_factor=settings.replicas,
                write_consistency_factor=settings.write_consistency,
                on_disk_payload=True,
                metadata={_KEY: schema.to_json(), _NOTE: ""},
            )
            if not location.startswith(LOCAL):
                for name, kind in schema.filterable.items():
                    client.create_payload_index(collection, payload_path(name), _PAYLOAD_INDEX[kind], wait=True)
            return cls(location, settings, client, collection)

    @classmethod
    def open(cls, location: str, settings: QdrantSettings, *, writable: bool) -> "QdrantStore":
        """`writable` has no effect: the server orders the writes of several clients."""
        if location.startswith(LOCAL) and not Path(location.removeprefix(LOCAL)).parent.is_dir():
            raise NoIndexError(f"there is no index at {location}")
        client, collection = _connect(location, settings)
        with _failures(location, client):
            if not client.collection_exists(collection):
                raise NoIndexError(f"there is no index at {location}")
            return cls(location, settings, client, collection)

    def set_note(self, note: str) -> None:
        with _failures(self.location):
            self._client.update_collection(self._collection, metadata={_NOTE: note})
        self.note = note

    def set_sources(self, sources: Sequence[str]) -> None:
        with _failures(self.location):
            self._client.update_collection(self._collection, metadata={_SOURCES: list(sources)})
        self.sources = tuple(sources)

    def upsert(self, items: pa.Table) -> None:
        from qdrant_client import models

        vectors = {
            name: items.column(name).combine_chunks().values.to_numpy().reshape(-1, self.schema.dim)
            for name in map(self.schema.vector_column, self.schema.attributes)
        }
        payloads = items.select([ITEM_ID, *self.schema.columns]).to_pylist()
        rows = max(1, _FLOATS_A_REQUEST // (self.schema.dim * len(vectors)))
        for start in range(0, len(payloads), rows):
            points = [
                models.PointStruct(
                    id=str(uuid.uuid5(_NAMESPACE, payload[ITEM_ID])),
                    vector={name: column[row].tolist() for name, column in vectors.items()},
                    payload={key: value for key, value in payload.items() if value is not None},
                )
                for row, payload in enumerate(payloads[start : start + rows], start=start)
            ]
            with _failures(self.location):
                self._client.upsert(self._collection, points, wait=True)

    def delete(self, condition: Condition) -> None:
        from qdrant_client import models

        with _failures(self.location):
            self._client.delete(self._collection, models.FilterSelector(filter=to_filter(condition)), wait=True)

    def nearest(
        self, attribute: str, queries: Vectors, count: int, condition: Condition | None, columns: Sequence[str] = ()
    ) -> list[pa.Table]:
        from qdrant_client import models

        if count > self.read_up_to:
            count = max(1, min(count, self.count(None)))  # the server reserves memory for `count` items
        rescored = models.QuantizationSearchParams(rescore=True, oversampling=2.0)
        parameters = models.SearchParams(hnsw_ef=max(_SEARCH_EFFORT, count), quantization=rescored)
        requests = [
            models.QueryRequest(
                query=query.tolist(),
                using=self.schema.vector_column(attribute),
                filter=to_filter(condition),
                limit=count,
                params=None if self._is_local else parameters,
                with_payload=[payload_path(name) for name in (ITEM_ID, *columns)],
            )
            for query in queries
        ]
        wanted = self.schema.arrow(columns, ()).append(pa.field(SIMILARITY, pa.float32()))
        tables = []
        with _failures(self.location):
            for start in range(0, len(requests), _QUERIES_A_REQUEST):
                part = requests[start : start + _QUERIES_A_REQUEST]
                for answer in self._client.query_batch_points(self._collection, part):
                    rows = [{**(point.payload or {}), SIMILARITY: point.score} for point in answer.points]
                    tables.append(pa.Table.from_pylist(rows, schema=wanted))
        return tables

    def compare_with_all(
        self,
        targets: Mapping[str, Vectors],
        weights: Mapping[str, float],
        count: int,
        condition: Condition | None,
        *,
        may_load: bool,
    ) -> None:
        """The vectors stay on the server."""

    def scan(
        self, condition: Condition | None, columns: Sequence[str], attributes: Sequence[str], batch_size: int = 4096
    ) -> Iterator[pa.Table]:
        wanted = self.schema.arrow(columns, attributes)
        vectors = [self.schema.vector_column(attribute) for attribute in attributes]
        rows = max(1, min(batch_size, _FLOATS_A_REQUEST // (self.schema.dim * max(1, len(vectors)))))
        page = None
        while True:
            with _failures(self.location):
                points, page = self._client.scroll(
                    self._collection,
                    scroll_filter=to_filter(condition),
                    limit=rows,
                    offset=page,
                    with_payload=[payload_path(name) for name in (ITEM_ID, *columns)],
                    with_vectors=vectors or False,
                )
            if points:
                plain = pa.Table.from_pylist([point.payload for point in points], self.schema.arrow(columns, ()))
                for name in vectors:
                    values = np.array([point.vector[name] for point in points], dtype=np.float32)
                    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), self.schema.dim)
                    plain = plain.append_column(wanted.field(name), column)
                yield plain
            if page is None:
                return

    def count(self, condition: Condition | None) -> int:
        with _failures(self.location):
            return self._client.count(self._collection, count_filter=to_filter(condition), exact=True).count

    def optimize(self) -> None:
        """Waits until the server, which builds its graphs in the background, has finished."""
        until = time.monotonic() + self.settings.optimize_timeout
        with _failures(self.location):
            while self._client.get_collection(self._collection).status == "yellow":
                if time.monotonic() >= until:
                    raise TimeoutError(
                        f"the Qdrant server for {self.location} has not finished its graphs after "
                        f"{self.settings.optimize_timeout:g} s. All items are stored, and searches work but are "
                        "slower; call optimize() again later, or with a larger QdrantSettings(optimize_timeout=...)"
                    )
                time.sleep(_POLL_INTERVAL)

    def close(self) -> None:
        self._client.close()


def _connect(location: str, settings: QdrantSettings) -> tuple[Any, str]:
    from qdrant_client import QdrantClient

    base, _, collection = location.removeprefix(LOCAL).rpartition("/")
    if not location.startswith(LOCAL):
        if not collection or not base.partition("://")[2]:
            raise ValueError(f"an index on a server has the location http(s)://host:6333/collection; got {location!r}")
        key = settings.api_key or os.environ.get("QDRANT_API_KEY")
        return QdrantClient(url=base, api_key=key, timeout=settings.timeout), collection
    if not collection:
        raise ValueError(f"a local collection has the location {LOCAL}folder/collection; got {location!r}")
    try:
        local = {"path": base, "force_disable_check_same_thread": True} if base else {"location": ":memory:"}
        return QdrantClient(**local), collection
    except RuntimeError as error:
        if "already accessed" not in str(error):
            raise
        raise IndexLockedError(f"another process has opened the index at {location}; wait until it ends") from error


@contextlib.contextmanager
def _failures(location: str, opened: Any = None) -> Iterator[None]:
    """Raises the errors of the client as OSError; after any error, closes the client that was just `opened`."""
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ApiException

    try:
        yield
    except BaseException as error:
        if opened is not None:
            opened.close()
        if not isinstance(error, (QdrantException, ApiException)):
            raise
        raise OSError(f"the Qdrant server for {location} reported an error: {' '.join(str(error).split())}") from error
