"""The format of embeddings: a folder of parquet files, with a manifest that describes them.

    manifest.json                          the model's fingerprint, attributes, dtype, number of items, rows per shard
    embeddings-00000-of-00003.parquet      item_id, columns of the data set, embedding_<attribute>, ...

A model with one embedding of an image has no attributes. Its manifest lists one attribute without a name, "", and its
shards have one column `embedding`.

A shard contains a fixed range of rows of the catalogue, without the images that could not be read. Its metadata lists
these, and the fingerprint of the rows that it was made from. A shard gets its name when it is complete and on disk: a
killed process leaves complete shards, and nothing else that is read.

The metadata also contain the SHA-256 of the file, with zeros in its own place, so that a file can be checked without
another one. Shards of version 0.1 have none.

An `int8` vector stands for `scale_<attribute> * embedding_<attribute>`, or `scale * embedding`. The scale, one float32
per vector, is its largest coordinate / 127; cosine similarities do not need it.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets import Features, List, Value

from cca_hf.models.whole_files import staged, write_json

DType = Literal["float32", "float16", "int8"]
DTYPES = get_args(DType)
MANIFEST = "manifest.json"
_METADATA = b"cca_hf"
_CHECKSUM = b"cca_hf.sha256"
_HAS_CHECKSUM = "has_checksum"
_NO_CHECKSUM = hashlib.sha256(_CHECKSUM).hexdigest().encode()  # always the same, so that equal shards are equal files


@dataclass(frozen=True)
class Manifest:
    """The properties that all shards of a folder share."""

    model: str  # fingerprint
    attributes: list[str]
    dim: int
    dtype: DType
    num_items: int
    shard_size: int
    columns: list[str]
    checkpoint: str | None = None  # fingerprint of the checkpoint that an exported model was made from

    @property
    def num_shards(self) -> int:
        return -(-self.num_items // self.shard_size)

    def range_of(self, shard: int) -> tuple[int, int]:
        """The first row of a shard, and the row after its last."""
        return shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_items)

    def write_or_compare(self, folder: Path) -> None:
        """Writes the manifest to a new folder, or compares it with the manifest of the folder."""
        path = folder / MANIFEST
        has_shards = any(folder.glob("embeddings-*.parquet"))  # before the next line: another process writes it first
        if not path.exists():
            if has_shards:
                raise ValueError(
                    f"{folder} contains embeddings but no {MANIFEST}: choose another folder, or delete this one"
                )
            write_json({key: value for key, value in asdict(self).items() if value is not None}, path)
        stored, wanted = json.loads(path.read_text(encoding="utf-8")), asdict(self)
        del wanted["checkpoint"]  # belongs to the model, and version 0.1 did not write it
        differing = [
            f"{key} ({stored.get(key)} there, {wanted[key]} now)" for key in wanted if stored.get(key) != wanted[key]
        ]
        if differing:
            raise ValueError(
                f"{folder} contains the embeddings of another job, which differs in {', '.join(differing)}: choose "
                "another folder, or delete this one"
            )


def model_of(folder: str | PathLike[str]) -> str | None:
    """The fingerprint of the model that an earlier job in the folder embedded with."""
    path = Path(folder) / MANIFEST
    return json.loads(path.read_text(encoding="utf-8"))["model"] if path.exists() else None


def column_of(attribute: str) -> str:
    """The column with the embeddings of an attribute, or of the space without a name."""
    return f"embedding_{attribute}" if attribute else "embedding"


def _scale_column_of(attribute: str) -> str:
    return f"scale_{attribute}" if attribute else "scale"


def features_of(items: Features, manifest: Manifest) -> Features:
    """The columns of a shard, for those of the catalogue."""
    vector = List(Value(manifest.dtype), length=manifest.dim)
    vectors: dict[str, object] = {column_of(name): vector for name in manifest.attributes}
    if manifest.dtype == "int8":
        vectors |= {_scale_column_of(name): Value("float32") for name in manifest.attributes}
    taken = [name for name in vectors if name in items]
    if taken:
        raise ValueError(f"the column {taken[0]!r} cannot be kept: a column of embeddings has this name")
    return Features({**items, **vectors})


def write_shard(
    path: Path, items: pa.Table, embeddings: np.ndarray, attributes: Sequence[str], features: Features, note: dict
) -> bool:
    """Writes a shard, completely or not at all.

    Args:
        items: the ids and columns of the data set.
        embeddings: (items, attributes, dim) float32.
        note: the metadata: `made_from`, a fingerprint of the catalogue's rows, and `unreadable`, reasons by item id.

    Returns:
        False if another process has finished this shard in the meantime; nothing is written then.
    """
    if path.exists():
        return False
    columns = {name: items[name] for name in items.column_names}
    for place, attribute in enumerate(attributes):
        vectors, dtype = embeddings[:, place], features[column_of(attribute)].feature.dtype
        if dtype == "int8":
            scales = np.abs(vectors).max(axis=1) / 127
            columns[_scale_column_of(attribute)] = pa.array(scales.astype(np.float32))
            vectors = np.rint(vectors / np.where(scales > 0, scales, 1)[:, None])
        numbers = pa.array(vectors.astype(dtype, copy=False).reshape(-1))
        columns[column_of(attribute)] = pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[1])
    schema = features.arrow_schema
    described = {**note, _HAS_CHECKSUM: True}  # or a shard whose checksum was lost would pass for one of version 0.1
    metadata = {**schema.metadata, _METADATA: json.dumps(described).encode(), _CHECKSUM: _NO_CHECKSUM}
    table = pa.table({name: columns[name] for name in features}).cast(schema).replace_schema_metadata(metadata)
    plain = {column_of(attribute) for attribute in attributes}
    others = [name for name in features if name not in plain] or False
    # vectors do not compress, and statistics of them are useless
    compression = {name: "none" if name in plain else "zstd" for name in features}
    with staged(path.parent) as unfinished, (unfinished / path.name).open("w+b") as file:
        pq.write_table(table, file, compression=compression, use_dictionary=others, write_statistics=others)
        file.flush()
        place, checksum = _checksum_at(_NO_CHECKSUM, file)
        file.seek(place)
        file.write(checksum)
        file.flush()
        os.fsync(file.fileno())
    return True


def has_changed(path: Path) -> bool | None:
    """Whether a shard is not the file that was written; None for a shard of version 0.1, which has no checksum."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (pa.ArrowException, OSError):
        return True
    stored = metadata.get(_CHECKSUM)
    if stored is None:
        return True if _METADATA not in metadata or _HAS_CHECKSUM.encode() in metadata[_METADATA] else None
    with path.open("rb") as file:
        return _checksum_at(stored, file)[1] != stored


def check_shard(path: Path) -> None:
    """Raises ValueError if [`has_changed`]."""
    if has_changed(path):
        raise ValueError(
            f"{path} has changed since it was written: delete it, and run the same 'cca embed' again to compute it"
        )


def _checksum_at(stored: bytes, file: BinaryIO) -> tuple[int, bytes]:
    """The place of the checksum in a shard, and the SHA-256 of the shard with zeros there, in hexadecimal."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.rfind(stored)
        digest = hashlib.sha256()
        with memoryview(content) as view, view[:place] as before, view[place + len(stored) :] as after:
            digest.update(before)
            digest.update(bytes(len(stored)))
            digest.update(after)
    return place, digest.hexdigest().encode()


def read_note(path: Path) -> dict[str, Any]:
    """The `note` of [`write_shard`]."""
    return json.loads(pq.read_metadata(path).metadata[_METADATA])
