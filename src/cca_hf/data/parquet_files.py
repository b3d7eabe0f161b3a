"""Writes a split as parquet files, with or without the images, for the Hub and `load_attribute_dataset`.

A hundred images are read at a time: the memory does not grow with the data set.
"""

import math
import os
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets import Dataset, Features, Image
from datasets.utils import tqdm

from cca_hf.models.fetching import fetch, is_url
from cca_hf.models.images import trusts_data

from .schema import IMAGE_COLUMN

SHARD_BYTES = 500_000_000
_ROWS_AT_ONCE = 100  # the size of a row group with images on the Hub


def write_split(
    dataset: Dataset,
    folder: Path,
    split: str,
    *,
    with_images: bool = True,
    shard_bytes: int = SHARD_BYTES,
    mark: str | None = None,
) -> list[Path]:
    """Writes `<split>-00000-of-00003.parquet`, ... to `folder`.

    Args:
        with_images: whether to read images from their files and store them; otherwise their paths are stored.
        shard_bytes: approximate size of the images in one file.
        mark: part of the file names: `<split>-00000-of-00003-<mark>.parquet`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    features = dataset.features
    shards = 1
    if IMAGE_COLUMN in features:
        # the files declare decoded images; without this the Hub does not show them
        features = Features({**features, IMAGE_COLUMN: Image()})
        dataset = dataset.cast_column(IMAGE_COLUMN, Image(decode=False))
        if with_images:
            shards = math.ceil(_image_bytes(dataset) / shard_bytes)
    shards = min(max(shards, 1), dataset.num_rows)
    ending = "" if mark is None else f"-{mark}"
    paths = [folder / f"{split}-{index:05d}-of-{shards:05d}{ending}.parquet" for index in range(shards)]
    with tqdm(total=dataset.num_rows, desc=f"Writing {split}", unit=" rows") as progress:
        for index, path in enumerate(paths):
            shard = dataset.shard(shards, index, contiguous=True)
            with pq.ParquetWriter(path, features.arrow_schema) as writer:
                for table in shard.with_format("arrow").iter(_ROWS_AT_ONCE if with_images else 10_000):
                    if with_images and IMAGE_COLUMN in table.column_names:
                        place = table.column_names.index(IMAGE_COLUMN)
                        images = Image().embed_storage(_with_content_of_urls(table.column(place).combine_chunks()))
                        table = table.set_column(place, IMAGE_COLUMN, images)
                    writer.write_table(table.cast(features.arrow_schema))
                    progress.update(table.num_rows)
    return paths


def _image_bytes(dataset: Dataset) -> int:
    total = 0
    for table in dataset.select_columns([IMAGE_COLUMN]).with_format("arrow").iter(1000):
        images = table.column(IMAGE_COLUMN)
        content = pc.struct_field(images, "bytes")
        total += pc.sum(pc.binary_length(content)).as_py() or 0
        paths = pc.filter(pc.struct_field(images, "path"), pc.is_null(content))
        total += sum(os.path.getsize(path) for path in paths.to_pylist() if path is not None and not is_url(path))
    return total


def _with_content_of_urls(images: pa.StructArray) -> pa.StructArray:
    """The images with the bytes of their URLs, which lead to public hosts only, unless the user trusts the data."""
    if not pc.any(pc.match_substring_regex(pc.struct_field(images, "path"), "^https?://")).as_py():
        return images
    rows = images.to_pylist()
    for row in rows:
        if row is not None and row["bytes"] is None and row["path"] is not None and is_url(row["path"]):
            row["bytes"] = fetch(row["path"], private_hosts=trusts_data())
    return pa.array(rows, images.type)
