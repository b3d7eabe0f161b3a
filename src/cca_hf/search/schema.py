"""The schema of an index (attributes, columns, and the checkpoint that computed the embeddings), and its errors."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeAlias, get_args

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from .conditions import ColumnType, unknown

if TYPE_CHECKING:
    from cca_hf.models.encoding import ImageEncoder

Vectors: TypeAlias = NDArray[np.float32]

ITEM_ID = "item_id"
SIMILARITY = "similarity"
_VECTOR = "embedding_"
_FORMAT = 1  # changes when the layout of the stored data changes
_ARROW = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}


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
    """The attributes and columns of an index, and the checkpoint whose embeddings it stores."""

    attributes: tuple[str, ...]  # in the order of the model
    dim: int  # width of an embedding
    columns: dict[str, ColumnType]  # further columns of an item, to filter by and to show
    checkpoint: CheckpointId  # embeddings of another model are refused

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
            if not name or re.search(r'[.`"\[\]\\]|^_', name) or name in (SIMILARITY, "query_index"):
                raise ValueError(f'a column cannot be called {name!r}: rename it (no leading _, none of . ` " [ ] \\)')

    def vector_column(self, attribute: str) -> str:
        """The name of the column with the embeddings of an attribute."""
        if attribute not in self.attributes:
            raise ValueError(f"the index has {unknown('attribute', attribute, self.attributes)}")
        return _VECTOR + re.sub(r"\W", "_", attribute)

    def arrow(self, columns: Sequence[str] | None = None, attributes: Sequence[str] | None = None) -> pa.Schema:
        """The Arrow schema of items: `item_id`, the columns and an fp32 vector per attribute (default: all)."""
        names = list(self.columns) if columns is None else columns
        return pa.schema(
            [
                pa.field(ITEM_ID, pa.string(), nullable=False),
                *(pa.field(name, _ARROW[self.columns[name]]) for name in names),
                *(
                    pa.field(self.vector_column(attribute), pa.list_(pa.float32(), self.dim), nullable=False)
                    for attribute in (self.attributes if attributes is None else attributes)
                ),
            ]
        )

    @classmethod
    def of_model(cls, model: "ImageEncoder", name: str, columns: Mapping[str, ColumnType]) -> "IndexSchema":
        """The schema for the embeddings of `model`, which can be loaded again from `name`."""
        return cls(
            attributes=tuple(model.config.attributes),
            dim=model.config.embedding_dim or model.config.hidden_size,
            columns=dict(columns),
            checkpoint=CheckpointId(name, model.fingerprint()),
        )

    @property
    def filterable(self) -> dict[str, ColumnType]:
        """The columns that a filter can use."""
        return {ITEM_ID: "text", **self.columns}

    def to_json(self) -> str:
        return json.dumps({"format": _FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str | bytes) -> "IndexSchema":
        """Raises ValueError for a format of another version of this package."""
        fields = json.loads(text)
        found = fields.pop("format")
        if found != _FORMAT:
            raise ValueError(f"the index has format {found}, this version of cca_hf reads format {_FORMAT}")
        checkpoint = CheckpointId(**fields.pop("checkpoint"))
        return cls(tuple(fields["attributes"]), fields["dim"], fields["columns"], checkpoint)


def column_types(schema: pa.Schema, *, skip: Sequence[str] = ()) -> tuple[dict[str, ColumnType], list[str]]:
    """The types of the columns that an index can store, and the names of the columns that it cannot store."""
    types: dict[str, ColumnType] = {}
    unfit: list[str] = []
    for field in schema:
        if field.name not in (ITEM_ID, *skip):
            if (kind := _type_of(field.type)) is None:
                unfit.append(field.name)
            else:
                types[field.name] = kind
    return types, unfit


def _type_of(kind: pa.DataType) -> ColumnType | None:
    if pa.types.is_dictionary(kind):
        return _type_of(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind):
        return "integer"
    return "number" if pa.types.is_floating(kind) else None
