"""An index on a Qdrant server or cluster: the same calls, for more than one machine can hold.

One point an item, one named vector per attribute, the columns as its payload. The server answers a write when it is
applied; sharding and replication are its own (https://qdrant.tech/documentation/guides/distributed_deployment/).
`qdrant-local:folder/collection` is the client's own imitation of a server, for tests: it compares with every item;
`qdrant-local:collection` keeps it in memory.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from .conditions import Condition
from .engine_filters import payload_path, to_filter
from .schema import ITEM_ID, SIMILARITY, IndexSchema
from .store import IndexLockedError, NoIndexError

LOCAL = "qdrant-local:"
_KEY = "cca_hf.index"
_NOTE = "cca_hf.note"
# Point ids are UUIDs or numbers on the server; an item's is made of its id.
_NAMESPACE = uuid.UUID("5f2f7f7c-6d0e-5b0b-9a9d-0f3c2f1f8a11")
_FLOATS_A_REQUEST = 1_000_000
_QUERIES_A_REQUEST = 64
_SEARCH_EFFORT = 128
_PAYLOAD_INDEX = {"text": "keyword", "integer": "integer", "number": "float", "boolean": "bool"}


@dataclass(frozen=True)
class QdrantSettings:
    """What a collection is made with; `None` leaves it to the server. After it is made only the last two count.

    Args:
        shards: parts of the collection, spread over the nodes.
        replicas: copies of each shard.
        write_consistency: copies that must have taken a write before it is acknowledged.
        quantisation: "int8" keeps vectors of one byte a dimension in memory to search with, and ranks what they find
            by the vectors themselves.
        vectors: how the vectors themselves are stored.
        vectors_on_disk: whether they are read from disk, and not kept in memory.
        api_key: default the environment's QDRANT_API_KEY.
        timeout: seconds a request may take.
    """

    shards: int | None = None
    replicas: int | None = None
    write_consistency: int | None = None
    quantisation: Literal["int8", "none"] = "int8"
    vectors: Literal["float32", "float16"] = "float32"
    vectors_on_disk: bool = False
    api_key: str | None = None
    timeout: int = 60

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

    @classmethod
    def create(cls, location: str, schema: IndexSchema, settings: QdrantSettings) -> "QdrantStore":
        client, collection = _connect(location, settings)
        from qdrant_client import models

        with _closed_on_failure(client), _failures(location):
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
        """`writable` makes no difference: the server puts the writes of several in order."""
        if location.startswith(LOCAL) and not Path(_folder(location)).is_dir():
            raise NoIndexError(f"there is no index at {location}")
        client, collection = _connect(location, settings)
        with _closed_on_failure(client), _failures(location):
            if not client.collection_exists(collection):
                raise NoIndexError(f"there is no index at {location}")
            return cls(location, settings, client, collection)

    def set_note(self, note: str) -> None:
        with _failures(self.location):
            self._client.update_collection(self._collection, metadata={_NOTE: note})
        self.note = note

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
                    id=_point_id(payload[ITEM_ID]),
                    vector={name: each[row].tolist() for name, each in vectors.items()},
                    payload={key: value for key, value in payload.items() if value is not None},
                )
                for row, payload in enumerate(payloads[start : start + rows], start=start)
            ]
            with _failures(self.location):
                self._client.upsert(self._collection, points, wait=True)

    def delete(self, condition: Condition) -> None:
        from qdrant_client import models

        with _failures(self.location):
            selector = models.FilterSelector(filter=to_filter(condition))
            self._client.delete(self._collection, selector, wait=True)

    def nearest(
        self,
        attribute: str,
        queries: NDArray[np.float32],
        count: int,
        condition: Condition | None,
        columns: Sequence[str] = (),
    ) -> list[pa.Table]:
        from qdrant_client import models

        parameters = None
        if not self._is_local:
            parameters = models.SearchParams(
                hnsw_ef=max(_SEARCH_EFFORT, count),
                quantization=models.QuantizationSearchParams(rescore=True, oversampling=2.0),
            )
        requests = [
            models.QueryRequest(
                query=query.tolist(),
                using=self.schema.vector_column(attribute),
                filter=None if condition is None else to_filter(condition),
                limit=count,
                params=parameters,
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

    def scan(
        self,
        condition: Condition | None,
        columns: Sequence[str],
        attributes: Sequence[str],
        batch_size: int = 4096,
    ) -> Iterator[pa.Table]:
        wanted = self.schema.arrow(columns, attributes)
        vectors = [self.schema.vector_column(attribute) for attribute in attributes]
        rows = max(1, min(batch_size, _FLOATS_A_REQUEST // (self.schema.dim * max(1, len(vectors)))))
        page = None
        while True:
            with _failures(self.location):
                points, page = self._client.scroll(
                    self._collection,
                    scroll_filter=None if condition is None else to_filter(condition),
                    limit=rows,
                    offset=page,
                    with_payload=[payload_path(name) for name in (ITEM_ID, *columns)],
                    with_vectors=vectors or False,
                )
            if points:
                plain = pa.Table.from_pylist(
                    [point.payload for point in points], schema=self.schema.arrow(columns, ())
                )
                for name in vectors:
                    values = np.array([point.vector[name] for point in points], dtype=np.float32)
                    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), self.schema.dim)
                    plain = plain.append_column(wanted.field(name), column)
                yield plain
            if page is None:
                return

    def count(self, condition: Condition | None) -> int:
        with _failures(self.location):
            counted = self._client.count(
                self._collection, count_filter=None if condition is None else to_filter(condition), exact=True
            )
        return counted.count

    def optimize(self) -> None:
        """The server indexes by itself; this waits until it has nothing left to do."""
        with _failures(self.location):
            while self._client.get_collection(self._collection).status == "yellow":
                time.sleep(0.5)

    def close(self) -> None:
        self._client.close()


def _point_id(item_id: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, item_id))


def _folder(location: str) -> str:
    """Of a local imitation; "" for memory."""
    return location.removeprefix(LOCAL).rpartition("/")[0]


def _connect(location: str, settings: QdrantSettings) -> tuple[Any, str]:
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise ImportError('an index on a Qdrant server needs its client: pip install "cca_hf[qdrant]"') from error
    if not location.startswith(LOCAL):
        base, _, collection = location.rpartition("/")
        if not collection or not base.partition("://")[2]:
            raise ValueError(f"an index on a server is http(s)://host:6333/collection; got {location!r}")
        key = settings.api_key or os.environ.get("QDRANT_API_KEY")
        return QdrantClient(url=base, api_key=key, timeout=settings.timeout), collection
    folder, collection = _folder(location), location.removeprefix(LOCAL).rpartition("/")[2]
    if not collection:
        raise ValueError(f"an imitation of a server is {LOCAL}folder/collection; got {location!r}")
    try:
        if not folder:
            return QdrantClient(":memory:"), collection
        return QdrantClient(path=folder, force_disable_check_same_thread=True), collection
    except RuntimeError as error:
        if "already accessed" not in str(error):
            raise
        raise IndexLockedError(f"another process has opened the index at {location}; wait until it is done") from error


@contextlib.contextmanager
def _closed_on_failure(client: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        client.close()
        raise


@contextlib.contextmanager
def _failures(location: str) -> Iterator[None]:
    """The client's many errors as one: what the server said, and where it is."""
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ApiException

    try:
        yield
    except (QdrantException, ApiException) as error:
        raise OSError(
            f"the Qdrant server for {location} did not do as it was asked: {' '.join(str(error).split())}"
        ) from error
