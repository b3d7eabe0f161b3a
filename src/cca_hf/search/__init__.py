"""Search a catalogue by attribute: an index of embeddings in a folder, in a bucket or on a server."""

from .condition_text import parse
from .conditions import column
from .hits import Hit
from .index import AttributeIndex
from .lance_store import LanceSettings
from .moving import copy_index
from .qdrant_store import QdrantSettings
from .schema import CheckpointId, IndexSchema
from .store import IndexLockedError, NoIndexError

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
