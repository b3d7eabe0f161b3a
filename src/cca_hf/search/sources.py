"""The sources of `cca index`: a catalogue of images, or embeddings of `cca embed`; and an index filled from them."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.dataset as pads  # type: ignore[import-untyped]
from datasets import ClassLabel, DatasetDict, Features, Image, LargeList, List
from numpy.typing import NDArray
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from cca_hf.data.columns import ColumnPlace, column_places, missing_message
from cca_hf.data.image_column import IMAGE_COLUMN, find_image_column
from cca_hf.data.sources import load_source
from cca_hf.data.split_names import same_split
from cca_hf.embedding.catalogue import Catalogue
from cca_hf.embedding.shards import MANIFEST, Manifest, check_shard, column_of
from cca_hf.models.encoding import ImageEncoder
from cca_hf.models.images import UnreadableImageError
from cca_hf.runtimes.export import load_encoder

from .conditions import ColumnType
from .images import IMAGE_REFERENCE, reference
from .index import AttributeIndex
from .schema import (
    ITEM_ID,
    CheckpointId,
    IndexSchema,
    NoIndexError,
    Prototypes,
    prototypes_of,
    reason_against_name,
    vector_column,
)

logger = logging.getLogger(__name__)

_ITEMS_AT_ONCE = 1024
_SHOWN_SOURCES = 3
# ids and columns of some items, and a function that computes the embeddings (rows, attributes, dim) of given rows, and
# returns the rows that it could embed
ItemBatch: TypeAlias = tuple[pa.Table, Callable[[list[int]], tuple[list[int], NDArray]]]


class ImageSource:
    """A folder of images, or a split of a data set, with the model that embeds them.

    Args:
        name: id or folder of the model, to load it again.
        place: the folder, or the data set and the split. An index remembers it, so that two places cannot replace the
            items of each other by accident; "" for a place without a name.
        dataset_name: id or folder of the data set, to load it again; "" for a folder of images.
        image_column: the column of the data set, unless it is found without a name.
        columns: columns to store; by default all that an index can store.
        on_unreadable: "skip" leaves out images that cannot be read; `unreadable` then has a reason for each item.
        precision: the number type in which the model computes, such as "bfloat16"; "auto" does not change it. The
            model is converted when the index has accepted it.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        encoder: ImageEncoder,
        name: str,
        *,
        place: str = "",
        dataset_name: str = "",
        split: str = "",
        image_column: str | None = None,
        columns: Sequence[str] | None = None,
        batch_size: int = 32,
        on_unreadable: Literal["error", "skip"] = "error",
        precision: str = "auto",
    ) -> None:
        if on_unreadable not in ("error", "skip"):
            raise ValueError(f"on_unreadable must be 'error' or 'skip'; got {on_unreadable!r}")
        self.catalogue = catalogue
        self.encoder = encoder
        self.place = place
        self.dataset_name, self.split, self.image_column = dataset_name, split, image_column
        self.batch_size = batch_size
        self.on_unreadable = on_unreadable
        self.precision = precision
        self.unreadable: dict[str, str] = {}  # item id -> reason
        features = Features({name: kind for name, kind in catalogue.features.items() if name != ITEM_ID})
        places = {column: ColumnPlace(column) for column in features}
        types, self.left_out = _stored_types(
            features, columns, encoder.config.attributes, lambda column: places[column].read(catalogue.dataset)
        )
        self.schema = IndexSchema.of_model(encoder, name, {IMAGE_REFERENCE: "text", **types})
        self.columns_were_named = columns is not None

    @classmethod
    def from_folder(
        cls, folder: str | PathLike[str], encoder: ImageEncoder, name: str, **settings: Any
    ) -> "ImageSource":
        """The images in a folder and its subfolders; see `Catalogue.from_folder`, and the class for `settings`."""
        root = Path(folder).resolve()
        return cls(Catalogue.from_folder(root), encoder, name, place=str(root), **settings)

    @classmethod
    def from_dataset(
        cls,
        source: str,
        encoder: ImageEncoder,
        name: str,
        *,
        split: str | None = None,
        image_column: str | None = None,
        id_column: str | None = None,
        columns: Sequence[str] | None = None,
        **settings: Any,
    ) -> "ImageSource":
        """A split of a data set on the Hub or in a folder; see `Catalogue.from_dataset`, for `settings` the class."""
        splits: DatasetDict = load_source(
            source,
            None,
            None,
            image_column=image_column,
            on_unreadable=settings.get("on_unreadable", "error"),
        )
        if split is None and len(splits) == 1:
            (split,) = splits
        split = None if split is None else same_split(split, splits)
        carried: Sequence[str] = columns or ()
        left_out: dict[str, str] = {}
        if split is not None and split in splits:
            dataset = splits[split]
            images = find_image_column({split: dataset}, image_column)
            places = {
                column: place
                for column, place in column_places(dataset.features).items()
                if place.column != images and column != id_column
            }
            features = {column: place.feature(dataset.features) for column, place in places.items()}
            features = {column: feature for column, feature in features.items() if not isinstance(feature, dict)}
            types, left_out = _stored_types(
                Features(features), columns, encoder.config.attributes, lambda column: places[column].read(dataset)
            )
            carried = list(types)
        catalogue = Catalogue.from_dataset(
            splits, split=split, image_column=image_column, id_column=id_column, columns=carried
        )
        place = str(Path(source).resolve()) if Path(source).exists() else source
        made = cls(
            catalogue,
            encoder,
            name,
            place=f"{place}::{split}",
            dataset_name=place,
            split=split or "",
            image_column=image_column,
            columns=columns,
            **settings,
        )
        made.left_out = left_out
        return made

    def __len__(self) -> int:
        return len(self.catalogue)

    def item_ids(self) -> Iterator[list[str]]:
        """All ids, in parts."""
        for start in range(0, len(self), _ITEMS_AT_ONCE):
            yield [str(item) for item in self.catalogue.ids[start : start + _ITEMS_AT_ONCE].to_pylist()]

    def batches(self, columns: Sequence[str]) -> Iterator[ItemBatch]:
        self.encoder = self.encoder.in_precision(self.precision)
        images = self.catalogue.images
        for start in range(0, len(self), _ITEMS_AT_ONCE):
            stop = min(start + _ITEMS_AT_ONCE, len(self))
            items = _as_stored(self.catalogue.rows(start, stop), self.catalogue.features)

            def embed(wanted: list[int], start: int = start) -> tuple[list[int], NDArray]:
                return self._embed(images, start, wanted)

            references = pa.array(self._references(start, stop), pa.string())
            yield items.append_column(IMAGE_REFERENCE, references).select([ITEM_ID, *columns]), embed

    def _embed(self, images: Sequence[dict], start: int, wanted: Sequence[int]) -> tuple[list[int], NDArray]:
        batch, attributes = [images[start + row] for row in wanted], list(self.schema.attributes)
        rows: list[int] = []
        vectors = [np.empty((0, len(attributes), self.schema.dim), np.float32)]
        for part in self.encoder.encode_batches(batch, attributes, batch_size=self.batch_size, on_unreadable="skip"):
            for place, error in part.unreadable.items():
                row = start + wanted[place]
                item = str(self.catalogue.ids[row])
                if self.on_unreadable == "error":
                    raise UnreadableImageError(f"row {row}, item {item}: {error}")
                self.unreadable[item] = str(error)
            rows += [wanted[place] for place in part.rows]
            vectors.append(part.values.numpy())
        return rows, np.concatenate(vectors)

    def _references(self, start: int, stop: int) -> list[str | None]:
        paths = self.catalogue.paths(start, stop)
        if not self.dataset_name:
            return paths
        rows = range(start, stop)
        return [
            reference(self.dataset_name, self.split, row, self.image_column) if path is None else path
            for row, path in zip(rows, paths, strict=True)
        ]


class EmbeddedSource:
    """The parquet files that `cca embed` wrote to a folder; see `ImageSource` for the other arguments.

    Args:
        name: id or folder of the model; "" if it is not known. The prototypes of its values are taken from it. If it
            cannot be loaded, or is not the model of the embeddings, a warning says so, and the index has none.
    """

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
        self.place = str(folder.resolve())
        features = Features({name: self._features[name] for name in manifest.columns})
        types, self.left_out = _stored_types(
            features, columns, manifest.attributes, lambda name: self._dataset.to_table(columns=[name]).column(name)
        )
        self.columns_were_named = columns is not None
        checkpoint = CheckpointId(name, manifest.checkpoint or manifest.model)
        prototypes = _prototypes_of_checkpoint(checkpoint) if name else {}
        self.schema = IndexSchema(tuple(manifest.attributes), manifest.dim, types, checkpoint, prototypes)

    def __len__(self) -> int:
        return self._dataset.count_rows()

    def item_ids(self) -> Iterator[list[str]]:
        """All ids, in parts."""
        for batch in self._dataset.to_batches(columns=[ITEM_ID], batch_size=_ITEMS_AT_ONCE):
            yield [str(item) for item in batch.column(ITEM_ID).to_pylist()]

    def batches(self, columns: Sequence[str]) -> Iterator[ItemBatch]:
        wanted = [ITEM_ID, *columns, *self._vectors]
        for batch in self._checked_batches(wanted):
            if not len(batch):
                continue
            table = _as_stored(pa.Table.from_batches([batch]), self._features)

            def embed(rows: list[int], table: pa.Table = table) -> tuple[list[int], NDArray]:
                taken = table.select(self._vectors).take(rows).columns
                vectors = [column.combine_chunks().flatten().to_numpy().reshape(len(rows), -1) for column in taken]
                return rows, np.stack(vectors, axis=1).astype(np.float32)

            yield table.select([ITEM_ID, *columns]), embed

    def _checked_batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for file in self._files:
            check_shard(file)
            yield from pads.dataset(file, schema=self._dataset.schema).to_batches(
                columns=columns, batch_size=_ITEMS_AT_ONCE, batch_readahead=2
            )


def _prototypes_of_checkpoint(checkpoint: CheckpointId) -> Prototypes:
    try:
        model = load_encoder(checkpoint.name)
    except (OSError, ValueError) as error:
        logger.warning("the index has no prototypes of values, because its model cannot be loaded: %s", error)
        return {}
    if not model.shares_space(checkpoint.fingerprint):
        logger.warning(
            "the index has no prototypes of values: its embeddings are those of %s, and the fingerprint of this model "
            "is %s",
            checkpoint,
            model.fingerprint()[:12],
        )
        return {}
    return prototypes_of(model)


ItemSource: TypeAlias = ImageSource | EmbeddedSource


def fill_index(
    store: str, source: ItemSource, *, only_new: bool = False, replace: bool = False, id_prefix: str = ""
) -> tuple[int, IndexSchema]:
    """Adds the items of `source`. Items in the index are replaced, or kept if `only_new`.

    Returns the number of items in the index, and its schema. A progress bar is shown. If the caller of the source has
    not named the columns, a warning names those that are not stored.

    Args:
        replace: whether the items may replace those of another folder or split, which have the same ids.
        id_prefix: text before each id of the source.

    Raises:
        ValueError: if the index has other attributes, another width, other columns or another model, or items of
            another source with the same ids. Nothing is written then.
        UnreadableImageError: for an image that cannot be read. The items before it are in the index.
    """
    wanted = source.schema
    checkpoint = source.encoder if isinstance(source, ImageSource) else wanted.checkpoint
    try:
        index = AttributeIndex.open(store, checkpoint, writable=True)
    except NoIndexError:
        index = AttributeIndex.create_from_schema(store, wanted)
    with index:
        stored = index.schema
        if (wanted.attributes, wanted.dim) != (stored.attributes, stored.dim):
            raise ValueError(
                f"the index at {store} has {stored.dim} dimensions for {_listed(stored)}, but the source has "
                f"{wanted.dim} for {_listed(wanted)}"
            )
        columns, left_out = _shared_columns(store, source, stored)
        if left_out:
            shown = ", ".join(f"{name} ({reason})" for name, reason in left_out.items())
            logger.warning("these columns are not stored: %s", shown)
        _check_other_sources(index, store, source, id_prefix, only_new=only_new, replace=replace)
        with tqdm(total=len(source), desc="Indexing", unit="item") as progress:
            for items, embed in source.batches(columns):
                item_ids = [f"{id_prefix}{item}" for item in items.column(ITEM_ID).to_pylist()]
                known_ids = index.ids_among(item_ids) if only_new else set()
                missing = [row for row, item in enumerate(item_ids) if item not in known_ids]
                rows, embeddings = embed(missing) if missing else ([], np.empty(0))
                if rows:
                    ids = [item_ids[row] for row in rows]
                    index.add(ids, embeddings=embeddings, columns=items.drop_columns([ITEM_ID]).take(rows))
                progress.update(len(item_ids))
            progress.set_description("Building the index")
            index.optimize()
        return index.count(), index.schema


def _listed(schema: IndexSchema) -> str:
    return ", ".join(schema.attributes) if schema.has_attributes else "one embedding without attributes"


def _shared_columns(store: str, source: ItemSource, stored: IndexSchema) -> tuple[list[str], dict[str, str]]:
    """The columns of the source that the index stores, and the others with the reasons."""
    columns, left_out = [], dict(source.left_out)
    for name, kind in source.schema.columns.items():
        there = stored.columns.get(name)
        if there == kind or (there == "number" and kind == "integer"):
            columns.append(name)
        else:
            left_out[name] = "the index has no such column" if there is None else f"it is {kind}, in the index {there}"
    asked_for = set(source.schema.columns) - {IMAGE_REFERENCE} if source.columns_were_named else set()
    if asked_for.intersection(left_out):
        known = ", ".join(f"{name} ({kind})" for name, kind in stored.columns.items())
        raise ValueError(f"the index at {store} has other columns; choose with --columns among {known or 'none'}")
    return columns, left_out


def _check_other_sources(
    index: AttributeIndex, store: str, source: ItemSource, id_prefix: str, *, only_new: bool, replace: bool
) -> None:
    """Remembers a new source, unless its ids are those of items of other sources."""
    if not source.place or source.place in index.sources:
        return
    if index.sources and not replace:
        known = 0
        for ids in source.item_ids():
            known += len(index.ids_among([f"{id_prefix}{item}" for item in ids]))
        others = ", ".join(index.sources[:_SHOWN_SOURCES]) + (", ..." if len(index.sources) > _SHOWN_SOURCES else "")
        counted = f"{known:,} of {len(source):,} items of {source.place} have the ids of items from {others}"
        if known and not only_new:
            raise ValueError(
                f"{counted}, which they would replace in the index at {store}. Give them other ids with --id_prefix, "
                "or with another --id_column, or replace the items with --replace"
            )
        if known:
            logger.warning("%s, and are skipped", counted)
    index.remember_source(source.place)


def _as_stored(table: pa.Table, features: Features) -> pa.Table:
    """The table with names instead of the ids of `ClassLabel` (-1 becomes missing), and with dates as text."""
    for place, name in enumerate(table.column_names):
        feature, column = features.get(name), table.column(name)
        if isinstance(feature, ClassLabel):
            labels = pc.if_else(pc.less(column, 0), None, column)
            table = table.set_column(place, name, pc.take(pa.array(feature.names, pa.string()), labels))
        elif name != ITEM_ID and pa.types.is_date(column.type):
            table = table.set_column(place, name, column.cast(pa.date32()).cast(pa.string()))
        elif name != ITEM_ID and pa.types.is_timestamp(column.type):
            table = table.set_column(place, name, _times(column))
        elif name != ITEM_ID and pa.types.is_decimal(column.type):
            exact = column.cast(pa.string()).cast(pa.float64())  # Arrow's own cast makes 19.990000000000002 of 19.99
            table = table.set_column(place, name, exact)
    return table


def _times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """ISO 8601 in seconds: 2024-01-31T12:00:00, in UTC with a Z at the end if the column has a time zone."""
    utc = pc.floor_temporal(column.cast(pa.timestamp(column.type.unit)), unit="second").cast(pa.timestamp("s"))
    return pc.strftime(utc, format="%Y-%m-%dT%H:%M:%S" + ("Z" if column.type.tz else ""))


def _stored_types(
    features: Features,
    columns: Sequence[str] | None,
    attributes: Sequence[str],
    read: Callable[[str], pa.ChunkedArray],
) -> tuple[dict[str, ColumnType], dict[str, str]]:
    """The types of the `columns` of an index, by default of all that it can store; and the others with the reasons.

    `read` returns the values of a column. It is called only if the type does not tell whether they fit.
    """
    types: dict[str, ColumnType] = {}
    left_out: dict[str, str] = {}
    for field in features.arrow_schema:
        kind = "text" if isinstance(features[field.name], ClassLabel) else _type_of(field.type)
        reason = _reason_against(field.name, features[field.name], kind, attributes)
        if reason is None and pa.types.is_uint64(field.type):
            largest = pc.max(read(field.name)).as_py()
            reason = "it contains integers beyond 63 bits" if largest is not None and largest >= 2**63 else None
        if reason is not None:
            left_out[field.name] = reason
        elif kind is not None:
            types[field.name] = kind
    if columns is None:
        return types, left_out
    for name in columns:
        if name in left_out:
            raise ValueError(f"an index cannot store the column {name!r}: {left_out[name]}")
        if name not in types:
            raise ValueError(missing_message("column", [name], types))
    return {name: types[name] for name in columns}, {}


def _reason_against(name: str, feature: object, kind: ColumnType | None, attributes: Sequence[str]) -> str | None:
    if name == IMAGE_REFERENCE:
        return "the index stores the path or URL of the image under this name"
    if name == IMAGE_COLUMN:
        return "the images have this name"
    if name in map(vector_column, attributes):
        return "the index stores embeddings under this name"
    if kind is None:
        shown = {List: "lists", LargeList: "lists", dict: "several fields", Image: "images"}.get(type(feature))
        return f"it contains {shown or f'values of type {feature.dtype}'}, not text, numbers or booleans"  # type: ignore[attr-defined]
    return reason_against_name(name)


def _type_of(kind: pa.DataType) -> ColumnType | None:
    types = pa.types
    if any(test(kind) for test in (types.is_string, types.is_large_string, types.is_date, types.is_timestamp)):
        return "text"
    if types.is_boolean(kind):
        return "boolean"
    if types.is_integer(kind):
        return "integer"
    return "number" if types.is_floating(kind) or types.is_decimal(kind) else None
