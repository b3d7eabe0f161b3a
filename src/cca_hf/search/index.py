"""`AttributeIndex`: a catalogue's embeddings, one for each attribute, kept and searched; see docs/search.md."""

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import ArrayLike, NDArray

from .condition_text import parse
from .conditions import AnyOf, ColumnType, Condition, check
from .hits import Hit, hits_of
from .items import item_table
from .mixtures import nearest_to_mixture
from .queries import centroid_of, check_there, embeddings_of, shares_of, targets_of
from .schema import ITEM_ID, CheckpointId, IndexSchema
from .store import VectorStore
from .stores import Settings, create_store, open_store

if TYPE_CHECKING:
    from cca_hf.models.encoding import ImageEncoder
    from cca_hf.models.images import ImageInput

Where: TypeAlias = str | Condition | None
_IMAGES_AT_ONCE = 1024
_IDS_AT_ONCE = 4096


class AttributeIndex:
    """Items with an embedding for each attribute: added, filtered and searched, in a folder, a bucket or on a server.

    An index takes the vectors of one checkpoint and refuses those of another. What `add` and `delete` have returned
    from survives the death of the process; one process writes at a time, any number read.

    Made by `create` or `open`; a context manager, or closed by `close`.

    Example:

    ```python
    >>> with AttributeIndex.create("shoes.index", model, columns={"price": "number"}) as index:
    ...     index.add(item_ids, images=pictures, columns={"price": prices})
    ...     index.optimize()
    ...     index.search(image="query.jpg", attribute="heel_height", where="price < 50")
    ```
    """

    def __init__(self, store: VectorStore, model: "ImageEncoder | None", *, writable: bool, trusted: bool) -> None:
        self._store = store
        self._model = model
        self._writable = writable
        self._trusted = trusted  # whether the caller has said whose vectors it brings

    @classmethod
    def create(
        cls,
        location: str | PathLike[str],
        model: "ImageEncoder",
        *,
        columns: Mapping[str, ColumnType] | None = None,
        settings: Settings | None = None,
    ) -> "AttributeIndex":
        """A new index for what `model` embeds.

        Args:
            model: a `CCAModel`, or an `ExportedModel`.
            location: a folder, a bucket (`s3://...`), or `http(s)://host:6333/collection` on a Qdrant server.
            columns: what else is kept of each item, to filter by and to show: name -> "text", "integer", "number" or
                "boolean". A text column named like an attribute holds its values (see `centroid`).
            settings: `LanceSettings` or `QdrantSettings`.

        Raises:
            FileExistsError: if there is something at this place.
            ImportError: naming the extra to install.
        """
        schema = IndexSchema.of_model(model, model.config.name_or_path, columns or {})
        return cls(create_store(fspath(location), schema, settings), model, writable=True, trusted=True)

    @classmethod
    def create_from_schema(
        cls, location: str | PathLike[str], schema: IndexSchema, *, settings: Settings | None = None
    ) -> "AttributeIndex":
        """A new index for embeddings that are made already; `schema.checkpoint` says by whom. As `create`."""
        return cls(create_store(fspath(location), schema, settings), None, writable=True, trusted=True)

    @classmethod
    def open(
        cls,
        location: str | PathLike[str],
        checkpoint: "ImageEncoder | CheckpointId | None" = None,
        *,
        writable: bool = False,
        settings: Settings | None = None,
    ) -> "AttributeIndex":
        """The index at `location`.

        Args:
            checkpoint: the model, which then embeds pictures, or the identity of the one whose embeddings are brought.
                Without it the index is searched by its own items and values alone.
            writable: whether to add and delete; keeps other writers out until `close`.

        Raises:
            NoIndexError: if there is none.
            IndexLockedError: if another process writes to it.
            ValueError: if another checkpoint made it, or a move into it was interrupted.
        """
        store = open_store(fspath(location), settings, writable=writable)
        try:
            if store.note:
                raise ValueError(f"the index at {store.location} is not whole: {store.note}")
            made_by = store.schema.checkpoint
            model = None if checkpoint is None or isinstance(checkpoint, CheckpointId) else checkpoint
            given = checkpoint
            if model is not None and not model.has_fingerprint(made_by.fingerprint):
                given = CheckpointId(model.config.name_or_path, model.fingerprint())
            if isinstance(given, CheckpointId) and given.fingerprint != made_by.fingerprint:
                raise ValueError(
                    f"the index at {store.location} was made by {made_by}; it takes no vectors of {given}"
                )
        except BaseException:
            store.close()
            raise
        return cls(store, model, writable=writable, trusted=checkpoint is not None)

    @property
    def schema(self) -> IndexSchema:
        """Attributes, columns, width, and the checkpoint that made the embeddings."""
        return self._store.schema

    def __enter__(self) -> "AttributeIndex":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes write. What was added is on disk already."""
        self._store.close()

    def add(
        self,
        item_ids: Sequence[str | int],
        *,
        images: "Sequence[ImageInput] | None" = None,
        embeddings: ArrayLike | None = None,
        columns: Mapping[str, Sequence[object]] | pa.Table | None = None,
        batch_size: int = 32,
    ) -> None:
        """Writes items over those of the same id; doing it twice changes nothing.

        Args:
            item_ids: unique; numbers become text.
            images: the items' pictures, or
            embeddings: (items, attributes, dim), the attributes in the order of `schema.attributes`.
            columns: name -> (items,); a column that is left out, None and NaN are missing values.
            batch_size: pictures a pass of the model.

        Raises:
            ValueError: for ids that are not unique, lengths, shapes or types that do not fit, vectors without a
                direction or of an unsaid checkpoint, an index opened for reading. Nothing is written then.
            OSError: if the disk is full; items written before, in whole batches, stay.
        """
        self._check_writable()
        if (images is None) == (embeddings is None):
            raise ValueError("give either images or embeddings, and not both")
        if images is None:
            self._check_trusted()
            self._store.upsert(item_table(self.schema, item_ids, np.asarray(embeddings), columns))
            return
        model = self._need_model()
        prepared = item_table(self.schema, item_ids, None, columns)  # its errors come before the work
        if len(images) != len(item_ids):
            raise ValueError(f"there are {len(item_ids)} item_ids and {len(images)} images")
        known = prepared.select(list(self.schema.columns))
        done, vectors = 0, list[NDArray[np.float32]]()
        for batch in model.encode_batches(images, list(self.schema.attributes), batch_size=batch_size):
            vectors.append(batch.values.numpy())
            end = done + sum(map(len, vectors))
            if end - done >= _IMAGES_AT_ONCE or end == len(item_ids):
                part = known.slice(done, end - done)
                self._store.upsert(item_table(self.schema, item_ids[done:end], np.concatenate(vectors), part))
                done, vectors = end, []

    def delete(self, item_ids: Sequence[str | int] | None = None, *, where: Where = None) -> None:
        """Removes the items with these ids, or those that fulfil a condition; ids that are not there are no error.

        Raises:
            ValueError: unless one of the two is given, or if the index was opened for reading.
        """
        self._check_writable()
        if (item_ids is None) == (where is None):
            raise ValueError("give either item_ids or where, and not both")
        if item_ids is None:
            condition = self._condition(where)
            assert condition is not None
            self._store.delete(condition)
        else:
            names = list(map(str, item_ids))
            for start in range(0, len(names), _IDS_AT_ONCE):
                self._store.delete(AnyOf(ITEM_ID, tuple(names[start : start + _IDS_AT_ONCE])))

    def search(
        self,
        *,
        image: "ImageInput | None" = None,
        embedding: ArrayLike | None = None,
        item: str | int | None = None,
        values: Mapping[str, str | int | bool] | None = None,
        attribute: str | None = None,
        weights: Mapping[str, float] | None = None,
        top: int = 10,
        where: Where = None,
    ) -> list[Hit]:
        """The nearest items, the nearest first.

        Args:
            image: a picture, or
            embedding: (dim,) of the one attribute asked for, or (attributes, dim) as `encode` gives, or
            item: the id of an item of the index, which is not found itself.
            values: attribute -> value: what to look for under this attribute, in place of the picture's own ("this
                one, but red"), or without any picture ("red").
            attribute: under which attribute. Default: that of the only value.
            weights: several attributes at once, attribute -> weight; ranked by the weighted mean of the similarities.
                Default with a picture and values: all attributes alike; with values alone: these.
            top: how many.
            where: `"price < 50 and colour != 'red'"`, or the same by `column(...)`.

        Raises:
            ValueError: for an unknown attribute, column, item or value (names the closest), or what is no query.
        """
        found = self.search_many(
            images=None if image is None else [image],
            embeddings=None if embedding is None else np.asarray(embedding)[None],
            items=None if item is None else [item],
            values=values,
            attribute=attribute,
            weights=weights,
            top=top,
            where=where,
        )
        return found[0]

    def search_many(
        self,
        *,
        images: "Sequence[ImageInput] | None" = None,
        embeddings: ArrayLike | None = None,
        items: Sequence[str | int] | None = None,
        values: Mapping[str, str | int | bool] | None = None,
        attribute: str | None = None,
        weights: Mapping[str, float] | None = None,
        top: int = 10,
        where: Where = None,
    ) -> list[list[Hit]]:
        """As `search`, for many queries at once: pictures, or embeddings (queries, dim) or (queries, attributes, dim),
        or ids of items."""
        given = [
            name
            for name, query in (("images", images), ("embeddings", embeddings), ("items", items))
            if query is not None
        ]
        if len(given) > 1 or not (given or values):
            raise ValueError(f"a query is an image, an embedding, an item, or values alone; got {given or 'none'}")
        if top < 1:
            raise ValueError(f"top must be at least 1; got {top}")
        shares = shares_of(self.schema, attribute, weights, values or {}, has_picture=bool(given))
        condition = self._condition(where)
        replaced = {name: centroid_of(self._store, name, value) for name, value in (values or {}).items()}
        asked = [name for name in shares if name not in replaced]
        own: dict[str, NDArray[np.float32]] = {}
        if asked and images is not None:
            vectors = np.asarray(self._need_model().encode(images, asked, show_progress=False))
            own = {name: vectors[:, place] for place, name in enumerate(asked)}
        elif asked and items is not None:
            own = embeddings_of(self._store, [str(item) for item in items], asked)
        elif asked:
            self._check_trusted()
            own = targets_of(self.schema, np.asarray(embeddings), asked)
        queries = len(next(query for query in (images, embeddings, items, [None]) if query is not None))  # type: ignore[arg-type]
        targets = {
            name: own[name] if name in own else np.broadcast_to(replaced[name], (queries, self.schema.dim))
            for name in shares
        }
        excluded = [str(item) for item in items] if items is not None else [None] * queries
        return self._ranked(targets, shares, condition, top, excluded)

    def count(self, where: Where = None) -> int:
        """Items in the index, or those that fulfil a condition."""
        return self._store.count(self._condition(where))

    def optimize(self) -> None:
        """Builds or completes what makes searches fast, and clears away old versions. Call it after much was added.

        Raises:
            ValueError: if the index was opened for reading.
            OSError: if the disk is full; the index stays as it was.
        """
        self._check_writable()
        self._store.optimize()

    def get(self, item_ids: Sequence[str | int]) -> list[Hit]:
        """These items with their columns, similarity 1.

        Raises:
            ValueError: for an id that is not in the index.
        """
        names = [str(item) for item in item_ids]
        condition = AnyOf(ITEM_ID, tuple(names))
        there = {
            row.pop(ITEM_ID): row
            for table in self._store.scan(condition, list(self.schema.columns), ())
            for row in table.to_pylist()
        }
        check_there(names, there)
        return [Hit(name, 1.0, there[name]) for name in names]

    def ids_among(self, item_ids: Sequence[str | int]) -> set[str]:
        """Which of these ids are in the index."""
        if not len(item_ids):
            return set()
        condition = AnyOf(ITEM_ID, tuple(map(str, item_ids)))
        return {item for table in self._store.scan(condition, (), ()) for item in table.column(ITEM_ID).to_pylist()}

    def tables(self, *, where: Where = None, embeddings: bool = False) -> Iterator[pa.Table]:
        """All items, or those that fulfil a condition, in any order, some thousands a table.

        Args:
            embeddings: whether to read them too: of each attribute a column, called as `schema.vector_column` says.
        """
        attributes = self.schema.attributes if embeddings else ()
        return self._store.scan(self._condition(where), list(self.schema.columns), attributes)

    def centroid(self, attribute: str, value: str | int | bool) -> NDArray[np.float32]:
        """(dim,) the direction in which the items labelled with a value of an attribute lie; normalised.

        Reads their embeddings from the index, 10^5 of 128 dimensions in a tenth of a second.

        Raises:
            ValueError: if the index has no column of this attribute's values, or no item with the value (names the
                closest).
        """
        return centroid_of(self._store, attribute, value)

    def _condition(self, where: Where) -> Condition | None:
        if where is None:
            return None
        return check(parse(where) if isinstance(where, str) else where, self.schema.filterable)

    def _ranked(
        self,
        targets: Mapping[str, NDArray[np.float32]],
        shares: Mapping[str, float],
        condition: Condition | None,
        top: int,
        excluded: Sequence[str | None],
    ) -> list[list[Hit]]:
        columns = list(self.schema.columns)
        wanted = top + (excluded[0] is not None)
        if len(shares) == 1:
            ((attribute, vectors),) = targets.items()
            tables = self._store.nearest(attribute, vectors, wanted, condition, columns)
        else:
            tables = [
                self._with_columns(
                    nearest_to_mixture(
                        self._store, {name: each[row] for name, each in targets.items()}, shares, wanted, condition
                    )
                )
                for row in range(len(excluded))
            ]
        return [hits_of(table, columns, itself)[:top] for table, itself in zip(tables, excluded, strict=True)]

    def _with_columns(self, found: pa.Table) -> pa.Table:
        condition = AnyOf(ITEM_ID, tuple(found.column(ITEM_ID).to_pylist()))
        empty = self.schema.arrow(None, ()).empty_table()
        rows = [*self._store.scan(condition, list(self.schema.columns), ())] if len(found) else []
        return found.join(pa.concat_tables([empty, *rows]), ITEM_ID, join_type="inner")

    def _need_model(self) -> "ImageEncoder":
        if self._model is None:
            raise ValueError(
                "pictures need the model that made the index: AttributeIndex.open(location, model); it was "
                f"{self.schema.checkpoint}"
            )
        return self._model

    def _check_trusted(self) -> None:
        if not self._trusted:
            raise ValueError(
                "whose embeddings are these? AttributeIndex.open(location, checkpoint) with the model, or its "
                f"CheckpointId; this index was made by {self.schema.checkpoint}"
            )

    def _check_writable(self) -> None:
        if not self._writable:
            raise ValueError(f"the index at {self._store.location} was opened for reading; open it with writable=True")
