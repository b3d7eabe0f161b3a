"""Search a catalogue by attribute: an index of embeddings in a folder, in a bucket or on a server."""

from .conditions import column
from .filter_text import parse
from .index import AttributeIndex
from .lance_store import LanceSettings
from .qdrant_store import QdrantSettings
from .schema import CheckpointId, Hit, IndexLockedError, IndexSchema, NoIndexError
from .store import copy_index

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
