"""The sources of `cca index`: a catalogue of images, or embeddings of `cca embed`; and an index filled from them."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.dataset as pads  # type: ignore[import-untyped]
from datasets import ClassLabel, DatasetDict, Features
from numpy.typing import NDArray
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from cca_hf.data.columns import missing_message
from cca_hf.embedding.catalogue import Catalogue
from cca_hf.embedding.shards import MANIFEST, Manifest, column_of
from cca_hf.models.encoding import ImageEncoder

from .conditions import ColumnType
from .images import IMAGE_REFERENCE, reference
from .index import AttributeIndex
from .schema import ITEM_ID, CheckpointId, IndexSchema, NoIndexError, column_types

_ITEMS_AT_ONCE = 1024


class ItemBatch(NamedTuple):
    """Some items: ids, columns, and a function that computes the embeddings of given rows."""

    item_ids: list[str]
    columns: pa.Table
    embed: Callable[[Sequence[int]], NDArray]  # rows -> (rows, attributes, dim)


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
        types = _stored_types(catalogue.rows(0, 0), catalogue.features, columns)
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
        if carried is None:
            skipped = [id_column or "", IMAGE_REFERENCE]
            schema = splits[split].features.arrow_schema if split in splits else pa.schema([])
            carried = list(column_types(schema, skip=skipped)[0])
        catalogue = Catalogue.from_dataset(splits, split=split, id_column=id_column, columns=carried)
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

            kept = rows.select([name for name in self.schema.columns if name != IMAGE_REFERENCE])
            references = pa.array([self._reference(images[row], row) for row in range(start, stop)], pa.string())
            yield ItemBatch(_ids(rows), kept.append_column(IMAGE_REFERENCE, references), embed)

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
        files = sorted(folder.glob("embeddings-*.parquet"))
        if len(files) != manifest.num_shards:
            raise ValueError(
                f"{folder} has {len(files)} of {manifest.num_shards} files: run 'cca embed' to the end first"
            )
        self._dataset = pads.dataset(files)
        self._features = Features.from_arrow_schema(self._dataset.schema)
        self._vectors = [column_of(attribute) for attribute in manifest.attributes]
        carried = pa.schema([self._dataset.schema.field(column) for column in manifest.columns])
        types = _stored_types(carried.empty_table(), self._features, columns)
        checkpoint = CheckpointId(name, manifest.model)
        self.schema = IndexSchema(tuple(manifest.attributes), manifest.dim, types, checkpoint)

    def __len__(self) -> int:
        return self._dataset.count_rows()

    def batches(self) -> Iterator[ItemBatch]:
        wanted = [ITEM_ID, *self.schema.columns, *self._vectors]
        for batch in self._dataset.to_batches(columns=wanted, batch_size=_ITEMS_AT_ONCE, batch_readahead=2):
            if not len(batch):
                continue
            table = _with_names(pa.Table.from_batches([batch]), self._features)

            def embed(rows: Sequence[int], table: pa.Table = table) -> NDArray:
                chosen = table.take(list(rows))
                vectors = [
                    chosen.column(name).combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
                    for name in self._vectors
                ]
                return np.stack(vectors, axis=1).astype(np.float32)

            yield ItemBatch(_ids(table), table.select(list(self.schema.columns)), embed)


ItemSource: TypeAlias = ImageSource | EmbeddedSource


def fill_index(store: str, source: ItemSource, *, only_new: bool = False) -> tuple[int, IndexSchema]:
    """Adds the items of `source`. Items in the index are replaced, or kept if `only_new`.

    Returns the number of items in the index, and its schema. A progress bar is shown.

    Raises:
        ValueError: if the index has other attributes, another width, other columns or another model.
    """
    with _open_or_create(store, source.schema) as index:
        with tqdm(total=len(source), desc="Indexing", unit="item") as progress:
            for item_ids, columns, embed in source.batches():
                stored = index.ids_among(item_ids) if only_new else set()
                rows = [row for row, item in enumerate(item_ids) if item not in stored]
                if rows:
                    ids = [item_ids[row] for row in rows]
                    index.add(ids, embeddings=embed(rows), columns=columns.take(rows))
                progress.update(len(item_ids))
            progress.set_description("Building the index")
            index.optimize()
        return index.count(), index.schema


def _open_or_create(store: str, schema: IndexSchema) -> AttributeIndex:
    try:
        index = AttributeIndex.open(store, schema.checkpoint, writable=True)
    except NoIndexError:
        return AttributeIndex.create_from_schema(store, schema)
    stored = index.schema
    if schema.attributes != stored.attributes or schema.dim != stored.dim:
        problem = f"has {stored.dim} dimensions for {', '.join(stored.attributes)}"
    elif any(stored.columns.get(name) != kind for name, kind in schema.columns.items()):
        known = ", ".join(f"{name} ({kind})" for name, kind in stored.columns.items())
        problem = f"has other columns; choose with --columns among {known or 'none'}"
    else:
        return index
    index.close()
    raise ValueError(f"the index at {store} {problem}")


def _with_names(table: pa.Table, features: Features) -> pa.Table:
    """The table with names of `ClassLabel` values instead of their ids; -1 becomes missing."""
    for name in table.column_names:
        feature = features.get(name)
        if isinstance(feature, ClassLabel):
            labels = pc.if_else(pc.less(table.column(name), 0), None, table.column(name))
            texts = pc.take(pa.array(feature.names, pa.string()), labels)
            table = table.set_column(table.column_names.index(name), name, texts)
    return table


def _stored_types(table: pa.Table, features: Features, columns: Sequence[str] | None) -> dict[str, ColumnType]:
    """The types of the `columns` of an index; by default of all that it can store."""
    types, unfit = column_types(_with_names(table, features).schema)
    if columns is None:
        return types
    for name in columns:
        if name in unfit:
            raise ValueError(f"an index cannot store the column {name!r}: it contains no text, numbers or booleans")
        if name not in types:
            raise ValueError(missing_message("column", [name], types))
    return {name: types[name] for name in columns}


def _ids(table: pa.Table) -> list[str]:
    return [str(item) for item in table.column(ITEM_ID).to_pylist()]
