"""What `cca index` reads: a catalogue of pictures, embedded on the way, or the folder that `cca embed` wrote."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.dataset as pads  # type: ignore[import-untyped]
from datasets import ClassLabel, Dataset, DatasetDict, Features
from numpy.typing import NDArray

from cca_hf.data.columns import missing_message
from cca_hf.embedding.catalogue import Catalogue
from cca_hf.embedding.shards import MANIFEST, column_of
from cca_hf.models.encoding import ImageEncoder

from .pictures import PICTURE, reference
from .schema import ITEM_ID, CheckpointId, IndexSchema, column_types

_ITEMS_AT_ONCE = 1024


class ItemBatch(NamedTuple):
    """Some items: ids, columns, and on demand the embeddings of those rows that are wanted."""

    item_ids: list[str]
    columns: pa.Table
    embed: Callable[[Sequence[int]], NDArray]  # rows -> (rows, attributes, dim)


class ItemSource(Protocol):
    """Items to be indexed."""

    schema: IndexSchema

    def __len__(self) -> int: ...

    def batches(self) -> Iterator[ItemBatch]: ...


class PictureSource:
    """A folder of pictures, or a split of a data set, with the model that embeds them.

    Args:
        name: where the model can be loaded from again.
        dataset_name: where the data set can be loaded from again, "" for a folder of pictures.
        columns: to be kept; by default all that an index can hold.

    Raises:
        ValueError: if a column is missing, or cannot be held.
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
        types, unfit = column_types(_with_names(catalogue.rows(0, 0), catalogue.features).schema)
        if columns is not None:
            _check_columns(columns, types, unfit)
            types = {name: types[name] for name in columns}
        self.schema = IndexSchema.of_model(encoder, name, {PICTURE: "text", **types})

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
    ) -> "PictureSource":
        """A split of a data set on the Hub or in a folder; see `Catalogue.from_dataset`."""
        from cca_hf.data.sources import load_source

        place = str(Path(source).resolve()) if Path(source).exists() else source
        splits: DatasetDict = load_source(source, None, None)
        chosen = split if split is not None or len(splits) > 1 else next(iter(splits))
        carried = columns
        if carried is None:
            carried = _fit_columns(splits[chosen], id_column) if chosen in splits else ()
        catalogue = Catalogue.from_dataset(splits, split=chosen, id_column=id_column, columns=carried)
        return cls(
            catalogue,
            encoder,
            name,
            dataset_name=place,
            split=chosen or "",
            columns=columns,
            batch_size=batch_size,
        )

    def __len__(self) -> int:
        return len(self.catalogue)

    def batches(self) -> Iterator[ItemBatch]:
        images = self.catalogue.images
        for start in range(0, len(self), _ITEMS_AT_ONCE):
            stop = min(start + _ITEMS_AT_ONCE, len(self))
            rows = _with_names(self.catalogue.rows(start, stop), self.catalogue.features)

            def embed(wanted: Sequence[int], start: int = start) -> NDArray:
                pictures = [images[start + row] for row in wanted]
                attributes = list(self.schema.attributes)
                return np.asarray(
                    self.encoder.encode(pictures, attributes, batch_size=self.batch_size, show_progress=False)
                )

            kept = rows.select([name for name in self.schema.columns if name != PICTURE])
            pictures = [self._reference(images[row], row) for row in range(start, stop)]
            yield ItemBatch(_ids(rows), kept.append_column(PICTURE, pa.array(pictures, pa.string())), embed)

    def _reference(self, image: dict, row: int) -> str | None:
        if image["bytes"] is None:
            return image["path"]
        return reference(self.dataset_name, self.split, row) if self.dataset_name else None


class EmbeddedSource:
    """The parquet files that `cca embed` wrote into a folder.

    Args:
        name: where the model can be loaded from, to embed the pictures that are searched with.

    Raises:
        FileNotFoundError: if it has not written there.
        ValueError: if it is not finished yet, or wrote 8-bit numbers of fewer pictures than there are.
    """

    def __init__(self, folder: Path, name: str, *, columns: Sequence[str] | None = None) -> None:
        if not (folder / MANIFEST).is_file():
            raise FileNotFoundError(f"there is no {MANIFEST} in {folder}: 'cca embed' has not written there")
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = sorted(folder.glob("embeddings-*.parquet"))
        shards = -(-manifest["num_items"] // manifest["shard_size"])
        if len(files) != shards:
            raise ValueError(f"{folder} has {len(files)} of {shards} files: let 'cca embed' finish first")
        self._dataset = pads.dataset(files)
        self._features = Features.from_arrow_schema(self._dataset.schema)
        self._vectors = [column_of(attribute) for attribute in manifest["attributes"]]
        carried = pa.schema([self._dataset.schema.field(column) for column in manifest["columns"]])
        types, unfit = column_types(_with_names(carried.empty_table(), self._features).schema)
        if columns is not None:
            _check_columns(columns, types, unfit)
            types = {column: types[column] for column in columns}
        self.schema = IndexSchema(
            tuple(manifest["attributes"]), manifest["dim"], types, CheckpointId(name, manifest["model"])
        )

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


def _fit_columns(dataset: Dataset, id_column: str | None) -> list[str]:
    """The columns that an index can hold."""
    types, _ = column_types(dataset.features.arrow_schema, skip=[id_column or ""])
    return [name for name in types if name != PICTURE]


def _with_names(table: pa.Table, features: Features) -> pa.Table:
    """The same with the names of `ClassLabel`s in place of their numbers; -1 is no label."""
    for name in table.column_names:
        feature = features.get(name)
        if isinstance(feature, ClassLabel):
            labels = pc.if_else(pc.less(table.column(name), 0), None, table.column(name))
            texts = pc.take(pa.array(feature.names, pa.string()), labels)
            table = table.set_column(table.column_names.index(name), name, texts)
    return table


def _check_columns(columns: Sequence[str], types: dict, unfit: Sequence[str]) -> None:
    for name in columns:
        if name in unfit:
            raise ValueError(f"the column {name!r} holds neither texts, numbers nor booleans: an index cannot hold it")
        if name not in types:
            raise ValueError(missing_message("column", [name], types))


def _ids(table: pa.Table) -> list[str]:
    return [str(item) for item in table.column(ITEM_ID).to_pylist()]
