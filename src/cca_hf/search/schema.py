"""The schema of an index, its errors, and the conversion of items to the tables of a store and of results to hits."""

import base64
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, get_args

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from numpy.typing import NDArray

from cca_hf.data.values import same_value

from .conditions import ColumnType, unknown

if TYPE_CHECKING:
    from cca_hf.models.encoding import ImageEncoder

Vectors: TypeAlias = NDArray[np.float32]
Prototypes: TypeAlias = dict[str, dict[str, Vectors]]  # attribute -> value -> (dim,)

ITEM_ID = "item_id"
SIMILARITY = "similarity"
_QUERY_INDEX = "query_index"  # a column of LanceDB's answers
_VECTOR = "embedding"
WITHOUT_NAME = ""  # the space of a model that has no attributes, in the place of an attribute
_FORMAT = 1  # changes when the layout of the stored data changes
_LENGTH_ROUNDING = 1e-3  # of a prototype that was computed in half precision
_ARROW = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}


def vector_column(attribute: str) -> str:
    """The name of the column with the embeddings of an attribute, or of the space without a name."""
    return _VECTOR + "_" + re.sub(r"\W", "_", attribute) if attribute else _VECTOR


def reason_against_name(name: str) -> str | None:
    """Why no column of an index can have this name; None if one can."""
    if name in (ITEM_ID, SIMILARITY, _QUERY_INDEX):
        return "an index uses this name itself"
    if not name or re.search(r'[.`"\[\]\\]|^_', name):
        return 'a name has no leading _ and none of . ` " [ ] \\'
    return None


class IndexLockedError(RuntimeError):
    """Another process is writing to the index; the message names the index."""


class NoIndexError(FileNotFoundError):
    """The location contains no index; the message says what it contains."""


@dataclass(frozen=True)
class CheckpointId:
    """The checkpoint that computed some embeddings. Embeddings of two checkpoints cannot be compared."""

    name: str  # id on the Hub or folder, to load the checkpoint again
    fingerprint: str  # `CCAModel.fingerprint`: of weights, attributes and preprocessing

    def __str__(self) -> str:
        return f"{self.name or 'a model'} (fingerprint {self.fingerprint[:12]})"


@dataclass(frozen=True)
class IndexSchema:
    """The attributes and columns of an index, and the checkpoint whose embeddings it stores.

    Args:
        prototypes: attribute -> value -> (dim,) L2-normalised, the embedding that the model has for a value itself.
            They belong to the checkpoint, so two schemas that differ in nothing else are equal.
    """

    attributes: tuple[str, ...]  # in the order of the model; one empty name if it has one embedding of an image
    dim: int  # width of an embedding
    columns: dict[str, ColumnType]  # further columns of an item, to filter by and to show
    checkpoint: CheckpointId  # embeddings of another model are refused
    prototypes: Prototypes = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.attributes or self.dim < 1:
            raise ValueError(f"an index needs attributes and a width; got {self.attributes} and {self.dim}")
        names = [ITEM_ID, *map(self.vector_column, self.attributes), *self.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the index would have two columns called {', '.join(twice)}; rename your columns")
        for name, kind in self.columns.items():
            if kind not in get_args(ColumnType):
                raise ValueError(
                    f"the column {name!r} cannot be {kind!r}; types are {', '.join(get_args(ColumnType))}"
                )
            if (reason := reason_against_name(name)) is not None:
                raise ValueError(f"a column cannot be called {name!r}: {reason}; rename it")
        for attribute, vectors in self.prototypes.items():
            self.vector_column(attribute)
            for value, vector in vectors.items():
                if vector.shape != (self.dim,) or not abs(np.linalg.norm(vector) - 1) < _LENGTH_ROUNDING:
                    raise ValueError(
                        f"the prototype of {attribute} {value!r} must be an L2-normalised vector of {self.dim} "
                        f"numbers; got the shape {vector.shape} and the length {np.linalg.norm(vector):.3f}"
                    )

    def vector_column(self, attribute: str) -> str:
        """The name of the column with the embeddings of an attribute."""
        if attribute not in self.attributes:
            if not self.has_attributes:
                raise ValueError(
                    f"the index has one embedding for each item, and none by attribute: leave out {attribute!r}"
                )
            raise ValueError(f"the index has {unknown('attribute', attribute, self.attributes)}")
        return vector_column(attribute)

    def arrow(self, columns: Sequence[str] | None = None, attributes: Sequence[str] | None = None) -> pa.Schema:
        """The Arrow schema of items: `item_id`, the columns and an fp32 vector per attribute (default: all)."""
        vector = pa.list_(pa.float32(), self.dim)
        fields = [
            pa.field(ITEM_ID, pa.string(), nullable=False),
            *(pa.field(name, _ARROW[self.columns[name]]) for name in (self.columns if columns is None else columns)),
        ]
        for attribute in self.attributes if attributes is None else attributes:
            fields.append(pa.field(self.vector_column(attribute), vector, nullable=False))
        return pa.schema(fields)

    @classmethod
    def of_model(cls, model: "ImageEncoder", name: str, columns: Mapping[str, ColumnType]) -> "IndexSchema":
        """The schema for the embeddings of `model`, which can be loaded again from `name`."""
        dim = model.config.embedding_dim or model.config.hidden_size
        checkpoint = CheckpointId(name, model.checkpoint_fingerprint())
        return cls(tuple(model.config.attributes), dim, dict(columns), checkpoint, prototypes_of(model))

    @property
    def has_attributes(self) -> bool:
        """Whether the spaces of the index have names: those of the attributes of its model."""
        return self.attributes != (WITHOUT_NAME,)

    @property
    def filterable(self) -> dict[str, ColumnType]:
        """The columns that a filter can use."""
        return {ITEM_ID: "text", **self.columns}

    def prototype(self, attribute: str, value: object) -> Vectors | None:
        """(dim,) the model's prototype of a value; None if the model has none. 38.0 is the value "38"."""
        vectors = self.prototypes.get(attribute, {})
        return next((vector for name, vector in vectors.items() if same_value(name) == same_value(value)), None)

    def to_json(self) -> str:
        fields = {"format": _FORMAT, **asdict(self)}
        del fields["prototypes"]
        if self.prototypes:  # version 0.1 does not read them
            fields["prototypes"] = {
                attribute: {value: _to_text(vector) for value, vector in vectors.items()}
                for attribute, vectors in self.prototypes.items()
            }
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str | bytes) -> "IndexSchema":
        """Raises ValueError for a format of another version of this package."""
        fields = json.loads(text)
        found = fields.pop("format")
        if found != _FORMAT:
            raise ValueError(f"the index has format {found}, this version of cca_hf reads format {_FORMAT}")
        checkpoint = CheckpointId(**fields.pop("checkpoint"))
        prototypes = {
            attribute: {value: _from_text(vector) for value, vector in vectors.items()}
            for attribute, vectors in fields.get("prototypes", {}).items()
        }
        return cls(tuple(fields["attributes"]), fields["dim"], fields["columns"], checkpoint, prototypes)


def prototypes_of(model: "ImageEncoder") -> Prototypes:
    """The prototypes of the model's values; empty for a model without them."""
    if not model.has_prototypes:
        return {}
    found = {attribute: model.value_prototypes(attribute) for attribute in model.config.attributes}
    return {attribute: vectors for attribute, vectors in found.items() if vectors}


def _to_text(vector: Vectors) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _from_text(text: str) -> Vectors:
    return np.frombuffer(base64.b64decode(text), "<f4")


class Hit(NamedTuple):
    """One item of a result."""

    item_id: str
    similarity: float  # cosine, or a weighted mean of cosines
    columns: dict[str, str | int | float | bool | None]


def hits_of(table: pa.Table, columns: Sequence[str], query_item: str | None) -> list[Hit]:
    """The rows by falling similarity, equal ones by id, without the item that was the query."""
    rows = table.to_pylist()
    hits = [Hit(row[ITEM_ID], row[SIMILARITY], {name: row[name] for name in columns}) for row in rows]
    return sorted((hit for hit in hits if hit.item_id != query_item), key=lambda hit: (-hit.similarity, hit.item_id))


def item_table(
    schema: IndexSchema,
    item_ids: Sequence[str | int],
    embeddings: NDArray | None,
    columns: Mapping[str, Sequence[object]] | pa.Table | None,
) -> pa.Table:
    """The items as a table with the columns of `schema.arrow()`, without vectors if `embeddings` is None."""
    names = _ids(item_ids)
    if isinstance(columns, pa.Table):
        columns = dict(zip(columns.column_names, columns.columns, strict=True))
    given = dict(columns or {})
    for name in given:
        if name not in schema.columns:
            raise ValueError(f"the index has {unknown('column', name, schema.columns)}")
    wanted = schema.arrow()
    columns_given = [_column(name, given.get(name), wanted.field(name).type, len(names)) for name in schema.columns]
    arrays = [pa.array(names, pa.string()), *columns_given]
    if embeddings is not None:
        vectors = _vectors(schema, embeddings, names)
        for place in range(len(schema.attributes)):
            flat = pa.array(np.ascontiguousarray(vectors[:, place]).ravel())
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, schema.dim))
    return pa.Table.from_arrays(arrays, schema=pa.schema(list(wanted)[: len(arrays)]))


def _ids(item_ids: Sequence[str | int]) -> list[str]:
    if isinstance(item_ids, str):
        raise TypeError(f"item_ids must be a list; got the string {item_ids!r}")
    for item in item_ids:
        if not isinstance(item, (str, int, np.integer)) or isinstance(item, bool) or item == "":
            raise ValueError(f"an item id is a non-empty string or an integer; got {item!r}")
    names = [str(item) for item in item_ids]
    if len(set(names)) < len(names):
        twice, _ = Counter(names).most_common(1)[0]
        raise ValueError(f"the item id {twice!r} is given twice")
    return names


def _column(name: str, values: Sequence[object] | None, kind: pa.DataType, rows: int) -> pa.Array:
    if values is None:
        return pa.nulls(rows, kind)
    if len(values) != rows:
        raise ValueError(f"got {rows} item_ids, but {len(values)} values for the column {name!r}")
    try:
        array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, from_pandas=True)
        array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        types = pa.types
        fits = types.is_boolean(array.type) == types.is_boolean(kind)
        if types.is_string(kind):
            fits = any(test(array.type) for test in (types.is_string, types.is_large_string, types.is_dictionary))
        if not fits and not pa.types.is_null(array.type):
            raise pa.ArrowInvalid(f"they are {array.type}")
        if types.is_floating(kind) and (types.is_float16(array.type) or types.is_float32(array.type)):
            # the number that it prints, so that a filter can name it: 19.99, not 19.989999771118164
            array = pa.array(array.to_numpy(zero_copy_only=False).astype(str).astype(np.float64))
        array = array.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        raise ValueError(f"the column {name!r} has the type {kind}, which does not fit the values: {error}") from error
    if pa.types.is_floating(kind):
        array = pc.if_else(pc.is_finite(array), array, None)
    return array


def _vectors(schema: IndexSchema, embeddings: NDArray, names: list[str]) -> Vectors:
    expected = (len(names), len(schema.attributes), schema.dim)
    if not schema.has_attributes and embeddings.shape == (len(names), schema.dim):
        embeddings = embeddings[:, None]
    if embeddings.shape != expected:
        axes = f"(items, attributes, dim) = {expected} for the attributes {', '.join(schema.attributes)}"
        if not schema.has_attributes:
            axes = f"(items, dim) = {(len(names), schema.dim)}"
        raise ValueError(f"embeddings must have shape {axes}; got {embeddings.shape}")
    vectors = embeddings.astype(np.float32, copy=False)
    lengths = lengths_of(vectors)
    wrong = np.argwhere(~(np.isfinite(lengths[:, :, 0]) & (lengths[:, :, 0] > 0)))
    if len(wrong):
        row, place = wrong[0].tolist()
        kind = f" for {schema.attributes[place]!r}" if schema.has_attributes else ""
        raise ValueError(
            f"the embedding of {names[row]!r}{kind} is zero or not finite, as are {len(wrong) - 1} others"
        )
    return (vectors / lengths).astype(np.float32)


def lengths_of(vectors: Vectors) -> NDArray[np.float64]:
    """(..., 1) of (..., dim), in float64, because squares of float32 numbers may be infinite or 0 in float32."""
    return np.sqrt(np.einsum("...d,...d->...", vectors, vectors, dtype=np.float64))[..., None]


def vectors_of(table: pa.Table, column: str) -> Vectors:
    """(rows, dim), L2-normalised again, since half precision changes the lengths slightly."""
    chunks = table.column(column).combine_chunks()
    vectors = chunks.flatten().to_numpy().reshape(len(table), -1).astype(np.float32, copy=False)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
