"""`AttributeIndex`: stores the embeddings of a catalogue per attribute, and searches them; see docs/search.md."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Never, TypeAlias

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import ArrayLike

from .conditions import INT64, AnyOf, ColumnType, Condition, check
from .filter_text import parse
from .queries import Value, centroid_of, nearest_to_mixture, rows_of, shares_of, target_of, targets_of
from .schema import ITEM_ID, CheckpointId, Hit, IndexSchema, Vectors, hits_of, item_table, vectors_of
from .store import Settings, VectorStore, create_store, ids_among, open_store

if TYPE_CHECKING:
    from cca_hf.models.encoding import ImageEncoder
    from cca_hf.models.images import ImageInput

Where: TypeAlias = str | Condition | None
_TOP = 10
# what to write instead of words of other libraries and of `encode`
_HINTS = {
    "attributes": "Compare by one attribute='colour', or by several with weights={'colour': 1, 'shape': 1}",
    "filter": "Filter with where=\"price < 50 and colour != 'red'\"",
    "k": "The number of items is top or top_k",
    "limit": "The number of items is top or top_k",
    "query": "A query is an image, an embedding, an item or values",
}
_IMAGES_AT_ONCE = 1024
_IDS_AT_ONCE = 4096


class AttributeIndex:
    """Items with one embedding per attribute, to add, filter and search: in a folder, in a bucket or on a server.

    An index contains the embeddings of one checkpoint and refuses those of another. `add` and `delete` are durable
    when they return. One process writes at a time; any number of processes can read.

    Use `create` or `open` to make one, and `close` it, or use it as a context manager.

    Example:

    ```python
    >>> with AttributeIndex.create("shoes.index", model, columns={"price": "number"}) as index:
    ...     index.add(item_ids, images=images, columns={"price": prices})
    ...     index.optimize()
    ...     index.search(image="query.jpg", attribute="heel_height", where="price < 50")
    ```
    """

    def __init__(self, store: VectorStore, model: "ImageEncoder | None", *, writable: bool, trusted: bool) -> None:
        self._store = store
        self._model = model
        self._writable = writable
        self._trusted = trusted  # whether the caller has named the checkpoint of its embeddings

    @classmethod
    def create(
        cls,
        location: str | PathLike[str],
        model: "ImageEncoder",
        *,
        columns: Mapping[str, ColumnType] | None = None,
        settings: Settings | None = None,
    ) -> "AttributeIndex":
        """Creates an index for the embeddings of a `CCAModel`, an `ExportedModel` or an `ImageEmbedder`.

        Args:
            location: a folder, a bucket (`s3://...`), or `http(s)://host:6333/collection` on a Qdrant server.
            columns: further columns of an item, to filter by and to show: name -> "text", "integer", "number" or
                "boolean". A text column with the name of an attribute contains the values of it (see `centroid`).
            settings: `LanceSettings` or `QdrantSettings`.

        Raises:
            FileExistsError: if the location is not empty.
            ImportError: if a package is missing; names the extra to install.
        """
        name = model.config.name_or_path
        if name and Path(name).is_dir():
            name = str(Path(name).resolve())  # `open` may be called in another folder
        schema = IndexSchema.of_model(model, name, columns or {})
        return cls(create_store(fspath(location), schema, settings), model, writable=True, trusted=True)

    @classmethod
    def create_from_schema(
        cls, location: str | PathLike[str], schema: IndexSchema, *, settings: Settings | None = None
    ) -> "AttributeIndex":
        """Creates an index for embeddings that were computed by `schema.checkpoint`; otherwise like `create`."""
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
        """Opens the index at `location`.

        Args:
            checkpoint: the model, which then embeds images, or the id of the checkpoint whose embeddings you pass.
                Without it, the first image loads the model that the index names, on the accelerator if there is one,
                and you can pass no embeddings.
            writable: whether to add and delete items. No other process can then write until `close`.

        Raises:
            NoIndexError: if the location contains no index.
            IndexLockedError: if another process is writing to the index.
            ValueError: if the index contains embeddings of another checkpoint, or is an unfinished copy.
        """
        store = open_store(fspath(location), settings, writable=writable)
        try:
            if store.note:
                raise ValueError(f"the index at {store.location} is not complete: {store.note}")
            stored = store.schema.checkpoint
            model, given = (None, checkpoint) if isinstance(checkpoint, CheckpointId) else (checkpoint, None)
            if model is not None and not model.shares_space(stored.fingerprint):
                given = CheckpointId(model.config.name_or_path, model.fingerprint())
            if given is not None and given.fingerprint != stored.fingerprint:
                converted = model is not None and str(model.dtype) != "torch.float32"
                raise ValueError(
                    f"the index at {store.location} contains embeddings of {stored}; they cannot be compared with "
                    f"embeddings of {given}"
                    + (". If the model was converted, open the index first and convert it then" if converted else "")
                )
        except BaseException:
            store.close()
            raise
        return cls(store, model, writable=writable, trusted=checkpoint is not None)

    @property
    def schema(self) -> IndexSchema:
        """Attributes, columns, width of an embedding, and the checkpoint that computed the embeddings."""
        return self._store.schema

    def __len__(self) -> int:
        """The number of items."""
        return self.count()

    def __repr__(self) -> str:
        columns = ", ".join(f"{name} ({kind})" for name, kind in self.schema.columns.items())
        kind = f"attributes: {', '.join(self.schema.attributes)}" if self.schema.has_attributes else "no attributes"
        return (
            f"AttributeIndex({self._store.location!r}: {len(self):,} items; {kind}; columns: {columns or 'none'}; "
            f"model: {self.schema.checkpoint})"
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """The folders and splits whose items `cca index` has added."""
        return self._store.sources

    def remember_source(self, name: str) -> None:
        """Adds a name to `sources`."""
        self._check_writable()
        self._store.set_sources([*self.sources, name])

    def __enter__(self) -> "AttributeIndex":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes write. All added items are stored already."""
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
        """Writes items with either images or embeddings, and replaces items with the same ids.

        Args:
            item_ids: unique ids; numbers become text.
            embeddings: (items, attributes, dim), with the attributes in the order of `schema.attributes`; (items, dim)
                for a model without attributes.
            columns: name -> (items,). None, NaN and columns that are left out are missing values.
            batch_size: images per forward pass.

        Raises:
            ValueError: for ids that are not unique, wrong lengths, shapes or types, vectors that are zero or not
                finite, embeddings of an unnamed checkpoint, or an index opened for reading. Nothing is written then.
            OSError: if the disk is full. Batches that were written before remain.
        """
        self._check_writable()
        if (images is None) == (embeddings is None):
            raise ValueError("give either images or embeddings, and not both")
        if images is None:
            self._check_trusted()
            self._store.upsert(item_table(self.schema, item_ids, np.asarray(embeddings), columns))
            return
        model = self._need_model()
        known = item_table(self.schema, item_ids, None, columns).select(list(self.schema.columns))
        if len(images) != len(item_ids):
            raise ValueError(f"got {len(item_ids)} item_ids, but {len(images)} images")
        done, vectors = 0, list[Vectors]()
        for batch in model.encode_batches(images, list(self.schema.attributes), batch_size=batch_size):
            vectors.append(batch.values.numpy())
            end = done + sum(map(len, vectors))
            if end - done >= _IMAGES_AT_ONCE or end == len(item_ids):
                part = known.slice(done, end - done)
                self._store.upsert(item_table(self.schema, item_ids[done:end], np.concatenate(vectors), part))
                done, vectors = end, []

    def delete(self, item_ids: Sequence[str | int] | None = None, *, where: Where = None) -> None:
        """Removes the items with these ids, or those that fulfil a condition. Unknown ids are ignored.

        Raises:
            ValueError: unless exactly one argument is given, or if the index was opened for reading.
        """
        self._check_writable()
        if (item_ids is None) == (where is None):
            raise ValueError("give either item_ids or where, and not both")
        if (condition := self._condition(where)) is not None:
            self._store.delete(condition)
        elif item_ids is not None:
            names = list(map(str, item_ids))
            for start in range(0, len(names), _IDS_AT_ONCE):
                self._store.delete(AnyOf(ITEM_ID, tuple(names[start : start + _IDS_AT_ONCE])))

    def search(
        self,
        image: "ImageInput | None" = None,
        *,
        embedding: ArrayLike | None = None,
        item: str | int | None = None,
        values: Mapping[str, Value | None] | None = None,
        attribute: str | None = None,
        weights: Mapping[str, float] | None = None,
        keep: float = 1.0,
        top: int | None = None,
        where: Where = None,
        top_k: int | None = None,
        **unknown: Never,
    ) -> list[Hit]:
        """The items with the highest similarity to one query, the most similar item first.

        Args:
            image: the query image. Give at most one of image, embedding and item.
            embedding: (dim,) for the one attribute of the search, or (attributes, dim) as `encode` and `manipulate`
                return it. An attribute whose numbers are 0 takes no part in a comparison by several attributes.
            item: the id of an item of the index, which the result does not contain.
            values: attribute -> value, which replaces this attribute of the query ("this shoe, but red"), or is the
                whole query ("red"). An attribute with None takes no part ("in any colour"). A value stands for the
                model's prototype of it or, if the model has none, for the centroid of the items with this value.
            attribute: compares the items by this attribute. Default: the attribute of the only value, or the only one
                of the index. An index of a model without attributes needs none.
            weights: compares the items by several attributes, attribute -> weight; the similarity is the weighted
                mean. Default: equal weights, for all attributes if the query is an image, embedding or item with
                values, and for the attributes of `values` if the query is values alone.
            keep: how much the attributes that stay count beside those that `values` replaces. Their weights are
                multiplied by it.
            top, top_k: the number of items, in either word; 10 by default.
            where: filters the items: `"price < 50 and colour != 'red'"`, or the same made with `column(...)`.

        Raises:
            ValueError: for an unknown attribute, column, item or value (names the closest), or a wrong query.
            TypeError: for an unknown parameter; the message names the right one.
        """
        _refuse_unknown(self.search, unknown)
        dim = self.schema.dim
        if isinstance(image, np.ndarray) and image.shape in ((dim,), (1, dim), (len(self.schema.attributes), dim)):
            raise ValueError(f"an array of shape {image.shape} is an embedding, not an image: search(embedding=...)")
        found = self.search_many(
            images=None if image is None else [image],
            embeddings=None if embedding is None else np.asarray(embedding)[None],
            items=None if item is None else [item],
            values=values,
            attribute=attribute,
            weights=weights,
            keep=keep,
            top=top,
            where=where,
            top_k=top_k,
        )
        return found[0]

    def search_many(
        self,
        *,
        images: "Sequence[ImageInput] | None" = None,
        embeddings: ArrayLike | None = None,
        items: Sequence[str | int] | None = None,
        values: Mapping[str, Value | None] | None = None,
        attribute: str | None = None,
        weights: Mapping[str, float] | None = None,
        keep: float = 1.0,
        top: int | None = None,
        where: Where = None,
        top_k: int | None = None,
        **unknown: Never,
    ) -> list[list[Hit]]:
        """Like `search`, for several queries: images, embeddings (queries, dim) or (queries, attributes, dim), or ids
        of items. The result has one list per query, and is empty without queries."""
        _refuse_unknown(self.search_many, unknown)
        if top is not None and top_k is not None:
            raise ValueError(f"top and top_k mean the same, give one of them; got {top!r} and {top_k!r}")
        if top is None:
            top = _TOP if top_k is None else top_k
        queries = {"images": images, "embeddings": embeddings, "items": items}
        given = [name for name, query in queries.items() if query is not None]
        if len(given) > 1 or not (given or values):
            raise ValueError(f"a query is an image, an embedding, an item or values; got {', '.join(given) or 'none'}")
        if not isinstance(top, (int, np.integer)) or not 1 <= top < INT64.stop:
            raise ValueError(f"top must be an integer of at least 1; got {top!r}")
        values = values or {}
        shares = shares_of(self.schema, attribute, weights, values, has_query=bool(given), keep=keep)
        condition = self._condition(where)
        fixed = {name: target_of(self._store, name, value) for name, value in values.items() if value is not None}
        open_attributes = [name for name in shares if name not in fixed]
        vectors = None if embeddings is None else np.atleast_1d(np.asarray(embeddings))
        count = len(next((rows for rows in (images, items, vectors) if rows is not None), [None]))
        if not count:
            return []
        targets: dict[str, Vectors] = {}
        if open_attributes and images is not None:
            encoded = np.asarray(self._need_model().encode(images, open_attributes, show_progress=False))
            targets = {name: encoded[:, place] for place, name in enumerate(open_attributes)}
        elif open_attributes and items is not None:
            stored = rows_of(self._store, [str(item) for item in items], (), open_attributes)
            targets = {name: vectors_of(stored, self.schema.vector_column(name)) for name in open_attributes}
        elif open_attributes and vectors is not None:
            self._check_trusted()
            targets = targets_of(self.schema, vectors, open_attributes, is_mixture=len(shares) > 1)
        targets |= {name: np.broadcast_to(vector, (count, self.schema.dim)) for name, vector in fixed.items()}
        targets = {name: targets[name] for name in shares}
        if not np.all(np.any([vectors.any(axis=1) for vectors in targets.values()], axis=0)):
            raise ValueError("an embedding must be finite and not zero")
        query_items = [str(item) for item in items] if items is not None else [None] * count
        tables = self._nearest(targets, shares, condition, int(top) + (items is not None))
        columns = list(self.schema.columns)
        return [hits_of(table, columns, item)[:top] for table, item in zip(tables, query_items, strict=True)]

    def count(self, where: Where = None) -> int:
        """The number of items in the index, or of those that fulfil a condition."""
        return self._store.count(self._condition(where))

    def optimize(self) -> None:
        """Builds or completes the graphs that make searches fast, and removes old versions. Call it after large adds.

        Raises:
            ValueError: if the index was opened for reading.
            OSError: if the disk is full. The index is not changed then.
            TimeoutError: if a Qdrant server takes longer than `QdrantSettings.optimize_timeout`.
        """
        self._check_writable()
        self._store.optimize()

    def get(self, item_ids: Sequence[str | int]) -> list[Hit]:
        """The items with these ids and their columns, with similarity 1; ValueError for an unknown id."""
        names = [str(item) for item in item_ids]
        rows = rows_of(self._store, names, list(self.schema.columns), ()).to_pylist()
        return [Hit(row.pop(ITEM_ID), 1.0, row) for row in rows]

    def ids_among(self, item_ids: Sequence[str | int]) -> set[str]:
        """The ids that are in the index."""
        return ids_among(self._store, [str(item) for item in item_ids])

    def tables(self, *, where: Where = None, embeddings: bool = False) -> Iterator[pa.Table]:
        """All items, or those that fulfil a condition, in any order, in tables of some thousand rows.

        With `embeddings` the tables have one more column per attribute (see `schema.vector_column`).
        """
        attributes = self.schema.attributes if embeddings else ()
        return self._store.scan(self._condition(where), list(self.schema.columns), attributes)

    def centroid(self, attribute: str, value: str | int | bool) -> Vectors:
        """(dim,) mean embedding of the items with this value of the attribute, L2-normalised.

        Raises:
            ValueError: if the index has no column with values of this attribute, or no item with this value (names
                the closest).
        """
        return centroid_of(self._store, attribute, value)

    def _repr_html_(self) -> str:
        from cca_hf.data.html_table import html_table  # loads torch, which a search for items does without

        columns = [f"{name} ({kind})" for name, kind in self.schema.columns.items()]
        facts = {
            "items": f"{self.count():,}",
            "attributes": f"{', '.join(self.schema.attributes) or 'none'}; {self.schema.dim} numbers for each",
            "columns": ", ".join(columns) or "none",
            "model": str(self.schema.checkpoint),
        }
        folder = Path(self._store.location)
        if folder.is_dir():
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            facts["size"] = f"{size / 1e6:,.1f} MB"
        if self.sources:
            facts["made from"] = ", ".join(self.sources)
        return html_table(["AttributeIndex", self._store.location], [list(facts.items())], align="left")

    def _condition(self, where: Where) -> Condition | None:
        if where is None:
            return None
        return check(parse(where) if isinstance(where, str) else where, self.schema.filterable)

    def _nearest(
        self, targets: Mapping[str, Vectors], shares: Mapping[str, float], condition: Condition | None, count: int
    ) -> list[pa.Table]:
        columns = list(self.schema.columns)
        if len(shares) == 1:
            ((attribute, vectors),) = targets.items()
            return self._store.nearest(attribute, vectors, count, condition, columns)
        tables = []
        for query in zip(*targets.values(), strict=True):
            target = {name: vector for name, vector in zip(targets, query, strict=True) if vector.any()}
            if len(target) == 1:
                ((attribute, vector),) = target.items()
                tables += self._store.nearest(attribute, vector[None], count, condition, columns)
                continue
            total = sum(shares[name] for name in target)
            shared = {name: shares[name] / total for name in target}
            found = nearest_to_mixture(self._store, target, shared, count, condition)
            these = AnyOf(ITEM_ID, tuple(found.column(ITEM_ID).to_pylist()))
            rows = self._store.scan(these, columns, ()) if len(found) else ()
            stored = pa.concat_tables([self.schema.arrow(None, ()).empty_table(), *rows])
            tables.append(found.join(stored, ITEM_ID, join_type="inner"))
        return tables

    def _need_model(self) -> "ImageEncoder":
        """The model that embeds images: the one that the index was opened with, or else the one that it names.

        Raises:
            ValueError: if the index names no model, or this model cannot be loaded, or has changed since.
        """
        if self._model is None:
            from cca_hf.runtimes.export import load_encoder  # imports torch, which other queries do not need

            stored, remedy = self.schema.checkpoint, "open the index with its model: AttributeIndex.open(place, model)"
            if not stored.name:
                raise ValueError(f"the index at {self._store.location} does not name its model; {remedy}")
            try:
                model = load_encoder(stored.name)
            except (OSError, ValueError) as error:
                raise ValueError(f"the model of the index cannot be loaded; {remedy}. The reason: {error}") from error
            if not model.shares_space(stored.fingerprint):
                raise ValueError(
                    f"the index at {self._store.location} contains embeddings of {stored}, and {stored.name} has "
                    f"changed since (fingerprint {model.fingerprint()[:12]}); {remedy}"
                )
            self._model = model
        return self._model

    def _check_trusted(self) -> None:
        if not self._trusted:
            raise ValueError(
                "name the checkpoint of your embeddings: AttributeIndex.open(location, checkpoint) with the model or "
                f"its CheckpointId; this index contains embeddings of {self.schema.checkpoint}"
            )

    def _check_writable(self) -> None:
        if not self._writable:
            raise ValueError(f"the index at {self._store.location} was opened for reading; open it with writable=True")


def _refuse_unknown(function: Callable[..., object], unknown: Mapping[str, object]) -> None:
    if unknown:
        from cca_hf.models.configuration_images import refuse_unknown  # imports torch, which a search does not need

        refuse_unknown(function, unknown, _HINTS)
