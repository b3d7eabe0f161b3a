"""A folder of parquet files, each whole or not there, with a manifest that says what they are of.

    manifest.json                          the model's fingerprint, attributes, dtype, number of items, rows a shard
    embeddings-00000-of-00003.parquet      item_id, columns carried over, embedding_<attribute>, ...

A shard holds the rows of a fixed range of the catalogue, but for pictures that could not be read; these, and the
fingerprint of what it was made from, stand in its metadata. It appears under its name when it is complete and on the
disk, so a process that is killed leaves finished shards and nothing else that counts.

`int8` stands for `scale_<attribute> * embedding_<attribute>`, with one float32 scale for each vector, its largest
coordinate / 127: for cosine similarities the scale is not needed.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets import Features, List, Value

DType = Literal["float32", "float16", "int8"]
DTYPES = ("float32", "float16", "int8")
MANIFEST = "manifest.json"
_METADATA = b"cca_hf"


@dataclass(frozen=True)
class Manifest:
    """What all shards of a folder have in common."""

    model: str  # fingerprint
    attributes: list[str]
    dim: int
    dtype: DType
    num_items: int
    shard_size: int
    columns: list[str]

    @property
    def num_shards(self) -> int:
        return -(-self.num_items // self.shard_size)

    def range_of(self, shard: int) -> tuple[int, int]:
        """First row of a shard, and the one behind its last."""
        return shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_items)

    def path_of(self, folder: Path, shard: int) -> Path:
        return folder / f"embeddings-{shard:05}-of-{self.num_shards:05}.parquet"

    def write_or_compare(self, folder: Path) -> None:
        """Claims a folder, or makes sure that its shards are of the same job.

        Raises:
            ValueError: naming what differs.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / MANIFEST
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            differing = [f"{key} ({found.get(key)} there, {value} now)" for key, value in asdict(self).items()
                         if found.get(key) != value]  # fmt: skip
            if differing:
                raise ValueError(
                    f"{folder} holds the embeddings of another job, which differs in {', '.join(differing)}: give "
                    "another folder, or delete this one"
                )
        elif any(folder.glob("embeddings-*.parquet")):
            raise ValueError(f"{folder} holds embeddings and no {MANIFEST}: give another folder, or delete this one")
        else:
            written = folder / f".{MANIFEST}.{os.getpid()}"
            written.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
            _appear(written, path)


def model_of(folder: str | PathLike[str]) -> str | None:
    """The fingerprint of the model that an earlier job in the folder embedded with."""
    path = Path(folder) / MANIFEST
    return json.loads(path.read_text(encoding="utf-8"))["model"] if path.exists() else None


@dataclass(frozen=True)
class ShardNote:
    """What a shard says of itself beside its rows."""

    made_from: str  # fingerprint of the catalogue's rows
    unreadable: dict[str, str]  # item id -> why


def column_of(attribute: str) -> str:
    return f"embedding_{attribute}"


def scale_column_of(attribute: str) -> str:
    return f"scale_{attribute}"


def features_of(items: Features, attributes: Sequence[str], dim: int, dtype: DType) -> Features:
    """The columns of a shard, as `datasets` describes them.

    Raises:
        ValueError: if two columns have the same name.
    """
    own: dict[str, object] = {column_of(name): List(Value(dtype), length=dim) for name in attributes}
    if dtype == "int8":
        own |= {scale_column_of(name): Value("float32") for name in attributes}
    taken = [name for name in own if name in items]
    if taken:
        raise ValueError(f"the column {taken[0]!r} cannot be carried over: embeddings will stand under this name")
    return Features({**items, **own})


def write_shard(
    path: Path, items: pa.Table, embeddings: np.ndarray, attributes: Sequence[str], features: Features, note: ShardNote
) -> None:
    """
    Args:
        items: the ids and columns carried over.
        embeddings: (items, attributes, dim) float32.
    """
    columns = {name: items[name] for name in items.column_names}
    for place, attribute in enumerate(attributes):
        kind = features[column_of(attribute)].feature.dtype
        vectors, scales = _converted(embeddings[:, place], kind)
        numbers = pa.array(vectors.reshape(-1))
        columns[column_of(attribute)] = pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[1])
        if scales is not None:
            columns[scale_column_of(attribute)] = pa.array(scales)
    schema = features.arrow_schema
    metadata = {**schema.metadata, _METADATA: json.dumps(asdict(note)).encode()}
    table = pa.table({name: columns[name] for name in features}).cast(schema).replace_schema_metadata(metadata)
    plain = {column_of(attribute) for attribute in attributes}
    others = [name for name in features if name not in plain]
    written = path.with_name(f".{path.name}.{os.getpid()}")
    # vectors do not compress, and nobody asks for the range of one
    pq.write_table(table, written, compression={name: "none" if name in plain else "zstd" for name in features},
                   use_dictionary=others or False, write_statistics=others or False)  # fmt: skip
    _appear(written, path)
    for left in path.parent.glob(f".{path.name}.*"):  # by a process that was killed while it wrote this shard
        left.unlink(missing_ok=True)


def read_note(path: Path) -> tuple[int, ShardNote]:
    """The number of rows of a shard, and what it says of itself."""
    metadata = pq.read_metadata(path)
    return metadata.num_rows, ShardNote(**json.loads(metadata.metadata[_METADATA]))


def _converted(vectors: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    if dtype != "int8":
        return np.ascontiguousarray(vectors, dtype=dtype), None
    scales = np.abs(vectors).max(axis=1) / 127
    divisors = np.where(scales > 0, scales, 1)[:, None]
    return np.rint(vectors / divisors).astype(np.int8), scales.astype(np.float32)


def _appear(written: Path, path: Path) -> None:
    """Under its name at once, and only when the disk has it."""
    with written.open("rb") as file:
        os.fsync(file.fileno())
    written.replace(path)
    if os.name != "posix":  # where a folder cannot be opened, and its entries are written at once
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
