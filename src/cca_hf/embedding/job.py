"""From a model and a catalogue to a folder of embeddings, in one process or several, and on after a kill."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import Features
from transformers.utils import logging

from cca_hf.models.encoding import ImageEncoder
from cca_hf.models.images import ImageInput

from .catalogue import ITEM_ID, Catalogue
from .shards import DTYPES, DType, Manifest, ShardNote, features_of, model_of, read_note, write_shard


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


@dataclass(frozen=True)
class EmbeddingJob:
    """What is to be embedded and how, without the model; made by `begin`. A shard is its unit of work: whoever has the
    model makes some of the missing ones, in any order and place.

    Args:
        folder: holds `manifest.json` and the shards that are finished.
    """

    catalogue: Catalogue
    folder: Path
    manifest: Manifest
    num_workers: int | None
    on_unreadable: Literal["error", "skip"]

    @classmethod
    def begin(
        cls,
        model: ImageEncoder,
        catalogue: Catalogue,
        folder: str | PathLike[str],
        *,
        attributes: Sequence[str] | None = None,
        dtype: DType = "float32",
        shard_size: int = 4096,
        num_workers: int | None = None,
        on_unreadable: Literal["error", "skip"] = "error",
    ) -> "EmbeddingJob":
        """Claims the folder, or goes on with what an earlier job left there; see `embed_catalogue`."""
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(map(repr, DTYPES))}; got {dtype!r}")
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1; got {shard_size}")
        ids = model.config.attribute_ids(None if attributes is None else list(attributes))
        earlier = model_of(folder)
        manifest = Manifest(
            model=earlier if earlier is not None and model.has_fingerprint(earlier) else model.fingerprint(),
            attributes=[model.config.attributes[place] for place in ids],
            dim=model.config.embedding_dim or model.config.hidden_size,
            dtype=dtype,
            num_items=len(catalogue),
            shard_size=shard_size,
            columns=[name for name in catalogue.features if name != ITEM_ID],
        )
        job = cls(catalogue, Path(folder), manifest, num_workers, on_unreadable)
        _ = job.features  # two columns of one name are an error before anything is written
        manifest.write_or_compare(job.folder)
        for shard, _, note in job._finished():
            if note.made_from != catalogue.fingerprint(*manifest.range_of(shard)):
                raise ValueError(
                    f"{manifest.path_of(job.folder, shard)} was made from other pictures, or other ids, than those in "
                    "its place now: give another folder, or delete this one"
                )
        return job

    @property
    def features(self) -> Features:
        """Of the columns of a shard."""
        manifest = self.manifest
        return features_of(self.catalogue.features, manifest.attributes, manifest.dim, manifest.dtype)

    def missing(self) -> list[int]:
        """The shards that are not there yet."""
        return [s for s in range(self.manifest.num_shards) if not self.manifest.path_of(self.folder, s).exists()]

    def make(self, model: ImageEncoder, shards: Sequence[int], batch_size: int) -> Iterator[int]:
        """Embeds and writes shards, one behind the other; pictures are read ahead across their borders, and a shard is
        written while the next is embedded. All are on the disk when the iterator is exhausted.

        Args:
            shards: in rising order.
            batch_size: pictures a pass; if there are several shards, a divisor of their size.

        Yields:
            Pictures done, batch by batch.
        """
        manifest = self.manifest
        images = _Rows(self.catalogue.images, [manifest.range_of(shard) for shard in shards])
        batches = model.encode_batches(
            images,
            manifest.attributes,
            batch_size=batch_size,
            num_workers=self.num_workers,
            on_unreadable=self.on_unreadable,
        )
        features = self.features
        with ThreadPoolExecutor(1, thread_name_prefix="write-shards") as writer:
            writing: Future[None] | None = None
            for shard in shards:
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
                    yield len(batch.rows) + len(batch.unreadable)
                items = self.catalogue.rows(start, stop)
                ids = items[ITEM_ID].to_pylist()
                note = ShardNote(
                    self.catalogue.fingerprint(start, stop),
                    {str(ids[row]): reason for row, reason in unreadable.items()},
                )
                if writing is not None:
                    writing.result()
                writing = writer.submit(
                    write_shard,
                    manifest.path_of(self.folder, shard),
                    items.take(rows),
                    np.concatenate(vectors),
                    manifest.attributes,
                    features,
                    note,
                )
            if writing is not None:
                writing.result()

    def describe(self) -> EmbeddedFolder:
        """What is in the folder now, whoever made it."""
        items = 0
        unreadable: dict[str, str] = {}
        for shard, _, note in self._finished():
            start, stop = self.manifest.range_of(shard)
            items += stop - start
            unreadable |= note.unreadable
        return EmbeddedFolder(self.folder, self.manifest.num_items, items, unreadable)

    def pictures_in(self, shards: Sequence[int]) -> int:
        return sum(stop - start for start, stop in map(self.manifest.range_of, shards))

    def _finished(self) -> Iterator[tuple[int, int, ShardNote]]:
        for shard in range(self.manifest.num_shards):
            path = self.manifest.path_of(self.folder, shard)
            if path.exists():
                yield shard, *read_note(path)


def embed_catalogue(
    model: ImageEncoder,
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
    """Embeds what is not embedded yet, in this process.

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
    if batch_size < 1 or shard_size % batch_size:
        raise ValueError(f"shard_size must be a multiple of batch_size; got {shard_size} and {batch_size}")
    job = EmbeddingJob.begin(
        model,
        catalogue,
        folder,
        attributes=attributes,
        dtype=dtype,
        shard_size=shard_size,
        num_workers=num_workers,
        on_unreadable=on_unreadable,
    )
    own = [shard for shard in job.missing() if shard % num_ranks == rank]
    with logging.tqdm(
        total=job.pictures_in(own), desc="Embedding", unit="picture", disable=not show_progress
    ) as progress:
        for pictures in job.make(model, own, batch_size):
            progress.update(pictures)
    return job.describe()


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
