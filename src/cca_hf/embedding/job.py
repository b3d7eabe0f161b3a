"""From a model and a catalogue to a folder of embeddings, in one process or several, and on after a kill."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
from transformers.utils import logging

from ..models.encoding import PictureEncoder
from ..models.images import ImageInput
from .catalogue import ITEM_ID, Catalogue
from .shards import DTYPES, DType, Manifest, ShardNote, features_of, read_note, write_shard


@dataclass(frozen=True)
class EmbeddedFolder:
    """What lies in a folder: `items` of the catalogue are done, of which `unreadable` have no embedding."""

    folder: Path
    num_items: int  # of the catalogue
    items: int
    unreadable: dict[str, str]  # item id -> why

    @property
    def complete(self) -> bool:
        return self.items == self.num_items


def embed_catalogue(
    model: PictureEncoder,
    catalogue: Catalogue,
    folder: str | PathLike[str],
    *,
    attributes: Sequence[str] | None = None,
    dtype: DType = "float32",
    shard_size: int = 4096,
    batch_size: int = 32,
    num_workers: int | None = None,
    on_unreadable: Literal["error", "skip"] = "error",
    rank: int = 0,
    num_ranks: int = 1,
    show_progress: bool = True,
) -> EmbeddedFolder:
    """Embeds what is not embedded yet.

    Args:
        folder: gets `manifest.json` and the shards, see `embedding/shards.py`. One that an earlier call has left
            unfinished is gone on with: what is there stays, what is missing is made.
        dtype: of the embeddings in the files.
        shard_size: pictures a file, a multiple of `batch_size`: what is lost at most when a process is killed.
        num_workers: as in `encode`.
        on_unreadable: `"skip"` leaves pictures out that cannot be read, and says so in the result.
        rank, num_ranks: of several processes that share the work, each makes the shards rank, rank + num_ranks, ...

    Returns:
        What is in the folder now, whoever made it.

    Raises:
        ValueError: the folder holds the embeddings of another model, of other pictures, or in another form.
        UnreadableImageError: for a picture that cannot be read; finished shards are kept.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(repr, DTYPES))}; got {dtype!r}")
    if shard_size < 1 or batch_size < 1 or shard_size % batch_size:
        raise ValueError(f"shard_size must be a multiple of batch_size; got {shard_size} and {batch_size}")
    ids = model.config.attribute_ids(None if attributes is None else list(attributes))
    names = [model.config.attributes[place] for place in ids]
    manifest = Manifest(
        model=model.fingerprint(),
        attributes=names,
        dim=model.config.embedding_dim or model.config.hidden_size,
        dtype=dtype,
        num_items=len(catalogue),
        shard_size=shard_size,
        columns=[name for name in catalogue.features if name != ITEM_ID],
    )
    features = features_of(catalogue.features, names, manifest.dim, dtype)
    target = Path(folder)
    manifest.write_or_compare(target)
    _check_finished(manifest, target, catalogue)
    todo = [s for s in range(rank, manifest.num_shards, num_ranks) if not manifest.path_of(target, s).exists()]
    images = _Rows(catalogue.images, [manifest.range_of(shard) for shard in todo])
    batches = model.encode_batches(
        images, names, batch_size=batch_size, num_workers=num_workers, on_unreadable=on_unreadable
    )
    progress = logging.tqdm(total=len(images), desc="Embedding", unit="picture", disable=not show_progress)
    with ThreadPoolExecutor(1, thread_name_prefix="write-shards") as writer, progress:
        writing: Future[None] | None = None
        for shard in todo:
            start, stop = manifest.range_of(shard)
            before = images.place_of(start)
            rows: list[int] = []
            vectors: list[np.ndarray] = []
            unreadable: dict[int, str] = {}
            for _ in range(-(-(stop - start) // batch_size)):  # no batch is of two shards
                batch = next(batches)
                rows += [row - before for row in batch.rows]
                vectors.append(batch.values.numpy())
                unreadable |= {row - before: str(error) for row, error in batch.unreadable.items()}
                progress.update(len(batch.rows) + len(batch.unreadable))
            items = catalogue.rows(start, stop)
            ids = items[ITEM_ID].to_pylist()
            note = ShardNote(
                catalogue.fingerprint(start, stop), {str(ids[row]): reason for row, reason in unreadable.items()}
            )
            if writing is not None:
                writing.result()
            writing = writer.submit(
                write_shard,
                manifest.path_of(target, shard),
                items.take(rows),
                np.concatenate(vectors),
                names,
                features,
                note,
            )
        if writing is not None:
            writing.result()
    return _describe(manifest, target)


class _Rows(Sequence[ImageInput]):
    """Ranges of a long sequence, one behind the other."""

    def __init__(self, images: Sequence[ImageInput], ranges: Sequence[tuple[int, int]]) -> None:
        self.images = images
        self.starts = np.array([start for start, _ in ranges], dtype=np.int64)
        self.ends = np.cumsum([stop - start for start, stop in ranges], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def place_of(self, start: int) -> int:
        """Where the range that begins with this row begins."""
        own = int(np.searchsorted(self.starts, start))
        return int(self.ends[own - 1]) if own else 0

    def __getitem__(self, place: int) -> ImageInput:  # type: ignore[override]
        if not 0 <= place < len(self):
            raise IndexError(place)
        own = int(np.searchsorted(self.ends, place, side="right"))
        return self.images[int(self.starts[own]) + place - (int(self.ends[own - 1]) if own else 0)]


def _finished(manifest: Manifest, folder: Path) -> Iterator[tuple[int, int, ShardNote]]:
    for shard in range(manifest.num_shards):
        path = manifest.path_of(folder, shard)
        if path.exists():
            yield shard, *read_note(path)


def _check_finished(manifest: Manifest, folder: Path, catalogue: Catalogue) -> None:
    for shard, _, note in _finished(manifest, folder):
        if note.made_from != catalogue.fingerprint(*manifest.range_of(shard)):
            raise ValueError(
                f"{manifest.path_of(folder, shard)} was made from other pictures, or other ids, than those in its "
                "place now: give another folder, or delete this one"
            )


def _describe(manifest: Manifest, folder: Path) -> EmbeddedFolder:
    items = 0
    unreadable: dict[str, str] = {}
    for shard, _, note in _finished(manifest, folder):
        start, stop = manifest.range_of(shard)
        items += stop - start
        unreadable |= note.unreadable
    return EmbeddedFolder(folder, manifest.num_items, items, unreadable)
