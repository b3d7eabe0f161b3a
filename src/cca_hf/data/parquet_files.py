"""A split as parquet files, which the Hub shows and `load_attribute_dataset` reads: with the pictures, or without.

Pictures are read when their rows are written, a hundred at a time: memory does not grow with the data set.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets import Dataset, Features, Image
from datasets.utils import tqdm

from .schema import IMAGE_COLUMN

SHARD_BYTES = 500_000_000
_ROWS_AT_ONCE = 100  # a row group of the Hub's own size for pictures


def write_split(
    dataset: Dataset,
    folder: Path,
    split: str,
    *,
    with_images: bool = True,
    shard_bytes: int = SHARD_BYTES,
    mark: str | None = None,
) -> list[Path]:
    """Writes `<split>-00000-of-00003.parquet`, ... into `folder`.

    Args:
        with_images: read the pictures that lie in files of their own, and put them in; otherwise rows go as they are.
        shard_bytes: of pictures in a file, about.
        mark: goes into the names: `<split>-00000-of-00003-<mark>.parquet`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    features = dataset.features
    if IMAGE_COLUMN in features:
        # the files say that pictures are to be decoded, or the Hub would not show them
        features = Features({**features, IMAGE_COLUMN: Image()})
        dataset = dataset.cast_column(IMAGE_COLUMN, Image(decode=False))
    shards = math.ceil(_picture_bytes(dataset) / shard_bytes) if with_images and IMAGE_COLUMN in features else 1
    shards = min(max(shards, 1), dataset.num_rows)
    ending = "" if mark is None else f"-{mark}"
    paths = [folder / f"{split}-{index:05d}-of-{shards:05d}{ending}.parquet" for index in range(shards)]
    with tqdm(total=dataset.num_rows, desc=f"Writing {split}", unit=" rows") as progress:
        for index, path in enumerate(paths):
            shard = dataset.shard(shards, index, contiguous=True)
            with pq.ParquetWriter(path, features.arrow_schema) as writer:
                for table in _tables(shard, with_images):
                    writer.write_table(table.cast(features.arrow_schema))
                    progress.update(table.num_rows)
    return paths


def _picture_bytes(dataset: Dataset) -> int:
    total = 0
    for table in dataset.select_columns([IMAGE_COLUMN]).with_format("arrow").iter(1000):
        pictures = table.column(IMAGE_COLUMN)
        inside = pc.struct_field(pictures, "bytes")
        total += pc.sum(pc.binary_length(inside)).as_py() or 0
        paths = pc.filter(pc.struct_field(pictures, "path"), pc.is_null(inside))
        total += sum(os.path.getsize(path) for path in paths.to_pylist() if path is not None)
    return total


def _tables(shard: Dataset, with_images: bool) -> Iterator[pa.Table]:
    rows_at_once = _ROWS_AT_ONCE if with_images else 10_000
    for table in shard.with_format("arrow").iter(rows_at_once):
        if with_images and IMAGE_COLUMN in table.column_names:
            place = table.column_names.index(IMAGE_COLUMN)
            pictures = [_read(picture) for picture in table.column(place).to_pylist()]
            table = table.set_column(place, IMAGE_COLUMN, pa.array(pictures, table.schema.field(place).type))
        yield table


def _read(picture: dict | None) -> dict | None:
    """With its bytes, and of its path the name alone."""
    if picture is None:
        return None
    name = None if picture["path"] is None else Path(picture["path"]).name
    return {
        "bytes": Path(picture["path"]).read_bytes() if picture["bytes"] is None else picture["bytes"],
        "path": name,
    }
