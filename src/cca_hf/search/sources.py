"""The sources of `cca index`: a catalogue of images, or embeddings of `cca embed`; and an index filled from them."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.dataset as pads  # type: ignore[import-untyped]
from datasets import ClassLabel, DatasetDict, Features
from numpy.typing import NDArray
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from cca_hf.data.columns import missing_message
from cca_hf.embedding.catalogue import Catalogue
from cca_hf.embedding.shards import MANIFEST, Manifest, check_shard, column_of
from cca_hf.models.encoding import ImageEncoder

from .conditions import ColumnType
from .images import IMAGE_REFERENCE, reference
from .index import AttributeIndex
from .schema import ITEM_ID, CheckpointId, IndexSchema, NoIndexError

_ITEMS_AT_ONCE = 1024
# ids and columns of some items, and a function that computes the embeddings (rows, attributes, dim) of given rows
ItemBatch: TypeAlias = tuple[pa.Table, Callable[[Sequence[int]], NDArray]]


class ImageSource:
    """A folder of images, or a split of a data set, with the model that embeds them.

    Args:
        name: id or folder of the model, to load it again.
        dataset_name: id or folder of the data set, to load it again; "" for a folder of images.
        columns: columns to store; by default all that an index can store.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        encoder: ImageEncoder,
        name: str,
        *,
        dataset_name: str = "",
        split: str = "",
        columns: Sequence[str] | None = None,
        batch_size: int = 32,
    ) -> None:
        self.catalogue = catalogue
        self.encoder = encoder
        self.dataset_name, self.split = dataset_name, split
        self.batch_size = batch_size
        types = _stored_types(catalogue.features, columns)
        self.schema = IndexSchema.of_model(encoder, name, {IMAGE_REFERENCE: "text", **types})

    @classmethod
    def from_dataset(
        cls,
        source: str,
        encoder: ImageEncoder,
        name: str,
        *,
        split: str | None = None,
        id_column: str | None = None,
        columns: Sequence[str] | None = None,
        batch_size: int = 32,
    ) -> "ImageSource":
        """A split of a data set on the Hub or in a folder; see `Catalogue.from_dataset`."""
        from cca_hf.data.sources import load_source

        splits: DatasetDict = load_source(source, None, None)
        if split is None and len(splits) == 1:
            (split,) = splits
        carried = columns
        if carried is None and split in splits:
            types = _column_types(splits[split].features)
            carried = [name for name, kind in types.items() if kind and name not in (id_column, IMAGE_REFERENCE)]
        catalogue = Catalogue.from_dataset(splits, split=split, id_column=id_column, columns=carried or ())
        place = str(Path(source).resolve()) if Path(source).exists() else source
        return cls(
            catalogue, encoder, name, dataset_name=place, split=split or "", columns=columns, batch_size=batch_size
        )

    def __len__(self) -> int:
        return len(self.catalogue)

    def batches(self) -> Iterator[ItemBatch]:
        images = self.catalogue.images
        for start in range(0, len(self), _ITEMS_AT_ONCE):
            stop = min(start + _ITEMS_AT_ONCE, len(self))
            rows = _with_names(self.catalogue.rows(start, stop), self.catalogue.features)

            def embed(wanted: Sequence[int], start: int = start) -> NDArray:
                batch, attributes = [images[start + row] for row in wanted], list(self.schema.attributes)
                encoded = self.encoder.encode(batch, attributes, batch_size=self.batch_size, show_progress=False)
                return np.asarray(encoded)

            kept = rows.select([ITEM_ID, *(name for name in self.schema.columns if name != IMAGE_REFERENCE)])
            references = pa.array([self._reference(images[row], row) for row in range(start, stop)], pa.string())
            yield kept.append_column(IMAGE_REFERENCE, references), embed

    def _reference(self, image: dict, row: int) -> str | None:
        if image["bytes"] is None:
            return image["path"]
        return reference(self.dataset_name, self.split, row) if self.dataset_name else None


class EmbeddedSource:
    """The parquet files that `cca embed` wrote to a folder; see `ImageSource` for the other arguments."""

    def __init__(self, folder: Path, name: str, *, columns: Sequence[str] | None = None) -> None:
        if not (folder / MANIFEST).is_file():
            raise FileNotFoundError(f"{folder} contains no {MANIFEST}: 'cca embed' has not written to it")
        manifest = Manifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        files = [path for path in sorted(folder.glob("embeddings-*.parquet")) if path.is_file()]
        if len(files) != manifest.num_shards:
            raise ValueError(
                f"{folder} has {len(files)} of {manifest.num_shards} files: run 'cca embed' to the end first"
            )
        self._files = files
        self._dataset = pads.dataset(files)
        self._features = Features.from_arrow_schema(self._dataset.schema)
        self._vectors = [column_of(attribute) for attribute in manifest.attributes]
        types = _stored_types(Features({name: self._features[name] for name in manifest.columns}), columns)
        checkpoint = CheckpointId(name, manifest.model)
        self.schema = IndexSchema(tuple(manifest.attributes), manifest.dim, types, checkpoint)

    def __len__(self) -> int:
        return self._dataset.count_rows()

    def batches(self) -> Iterator[ItemBatch]:
        wanted = [ITEM_ID, *self.schema.columns, *self._vectors]
        for batch in self._checked_batches(wanted):
            if not len(batch):
                continue
            table = _with_names(pa.Table.from_batches([batch]), self._features)

            def embed(rows: Sequence[int], table: pa.Table = table) -> NDArray:
                columns = table.select(self._vectors).take(list(rows)).columns
                vectors = [column.combine_chunks().flatten().to_numpy().reshape(len(rows), -1) for column in columns]
                return np.stack(vectors, axis=1).astype(np.float32)

            yield table.select([ITEM_ID, *self.schema.columns]), embed

    def _checked_batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for file in self._files:
            check_shard(file)
            yield from pads.dataset(file, schema=self._dataset.schema).to_batches(
                columns=columns, batch_size=_ITEMS_AT_ONCE, batch_readahead=2
            )


ItemSource: TypeAlias = ImageSource | EmbeddedSource


def fill_index(store: str, source: ItemSource, *, only_new: bool = False) -> tuple[int, IndexSchema]:
    """Adds the items of `source`. Items in the index are replaced, or kept if `only_new`.

    Returns the number of items in the index, and its schema. A progress bar is shown.

    Raises:
        ValueError: if the index has other attributes, another width, other columns or another model.
    """
    wanted = source.schema
    try:
        index = AttributeIndex.open(store, wanted.checkpoint, writable=True)
    except NoIndexError:
        index = AttributeIndex.create_from_schema(store, wanted)
    with index:
        stored = index.schema
        if (wanted.attributes, wanted.dim) != (stored.attributes, stored.dim):
            raise ValueError(
                f"the index at {store} has {stored.dim} dimensions for {', '.join(stored.attributes)}, but the source "
                f"has {wanted.dim} for {', '.join(wanted.attributes)}"
            )
        if not wanted.columns.items() <= stored.columns.items():
            known = ", ".join(f"{name} ({kind})" for name, kind in stored.columns.items())
            raise ValueError(f"the index at {store} has other columns; choose with --columns among {known or 'none'}")
        with tqdm(total=len(source), desc="Indexing", unit="item") as progress:
            for items, embed in source.batches():
                item_ids = [str(item) for item in items.column(ITEM_ID).to_pylist()]
                known_ids = index.ids_among(item_ids) if only_new else set()
                rows = [row for row, item in enumerate(item_ids) if item not in known_ids]
                if rows:
                    ids = [item_ids[row] for row in rows]
                    index.add(ids, embeddings=embed(rows), columns=items.drop_columns([ITEM_ID]).take(rows))
                progress.update(len(item_ids))
            progress.set_description("Building the index")
            index.optimize()
        return index.count(), index.schema


def _with_names(table: pa.Table, features: Features) -> pa.Table:
    """The table with names of `ClassLabel` values instead of their ids; -1 becomes missing."""
    for name in table.column_names:
        feature = features.get(name)
        if isinstance(feature, ClassLabel):
            labels = pc.if_else(pc.less(table.column(name), 0), None, table.column(name))
            texts = pc.take(pa.array(feature.names, pa.string()), labels)
            table = table.set_column(table.column_names.index(name), name, texts)
    return table


def _stored_types(features: Features, columns: Sequence[str] | None) -> dict[str, ColumnType]:
    """The types of the `columns` of an index; by default of all that it can store."""
    types = _column_types(features)
    storable = {name: kind for name, kind in types.items() if kind}
    for name in columns or ():
        if name not in types:
            raise ValueError(missing_message("column", [name], storable))
        if name not in storable:
            raise ValueError(f"an index cannot store the column {name!r}: it contains no text, numbers or booleans")
    return storable if columns is None else {name: storable[name] for name in columns}


def _column_types(features: Features) -> dict[str, ColumnType | None]:
    """The types of the columns besides the id; None for a column that an index cannot store."""
    return {
        field.name: "text" if isinstance(features[field.name], ClassLabel) else _type_of(field.type)
        for field in features.arrow_schema
        if field.name != ITEM_ID
    }


def _type_of(kind: pa.DataType) -> ColumnType | None:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind):
        return "integer"
    return "number" if pa.types.is_floating(kind) else None
