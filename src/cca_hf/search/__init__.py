"""Search a catalogue by attribute: an index of embeddings in a folder, in a bucket or on a server."""

from .conditions import column, parse
from .index import AttributeIndex
from .items import Hit
from .lance_store import LanceSettings
from .moving import copy_index
from .qdrant_store import QdrantSettings
from .schema import CheckpointId, IndexLockedError, IndexSchema, NoIndexError

__all__ = [
    "AttributeIndex",
    "CheckpointId",
    "Hit",
    "IndexLockedError",
    "IndexSchema",
    "LanceSettings",
    "NoIndexError",
    "QdrantSettings",
    "column",
    "copy_index",
    "parse",
]
