"""Embeds a catalogue into a folder of parquet files: in one process or several, and resumable after a kill."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from transformers.utils import logging

from cca_hf.models.encoding import ImageEncoder
from cca_hf.models.images import ImageInput, UnreadableImageError

from .catalogue import ITEM_ID, Catalogue
from .shards import DTYPES, DType, Manifest, features_of, model_of, read_note, write_shard


@dataclass(frozen=True)
class EmbeddingSettings:
    """How to embed a catalogue.

    Args:
        attributes: default: all attributes of the model.
        dtype: type of the embeddings in the files.
        shard_size: images per file, a multiple of `batch_size`. A killed process loses at most the work of one file.
        batch_size: images per forward pass. Default: 32; with Ray, as many as fit.
        num_workers: threads that read images, as in `encode`.
        on_unreadable: "skip" leaves out images that cannot be read, and reports them in the result.
    """

    attributes: Sequence[str] | None = None
    dtype: DType = "float32"
    shard_size: int = 4096
    batch_size: int | None = None
    num_workers: int | None = None
    on_unreadable: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(map(repr, DTYPES))}; got {self.dtype!r}")
        if self.on_unreadable not in ("error", "skip"):
            raise ValueError(f"on_unreadable must be 'error' or 'skip'; got {self.on_unreadable!r}")
        for name in ("shard_size", "batch_size"):
            if vars(self)[name] is not None and vars(self)[name] < 1:
                raise ValueError(f"{name} must be at least 1; got {vars(self)[name]}")


@dataclass(frozen=True)
class EmbeddedFolder:
    """The content of a folder: `items` images of the catalogue are done; those in `unreadable` have no embedding."""

    folder: Path
    num_items: int  # in the catalogue
    items: int
    unreadable: dict[str, str]  # item id -> reason

    @property
    def complete(self) -> bool:
        return self.items == self.num_items


@dataclass(frozen=True)
class EmbeddingJob:
    """A catalogue, a folder and the settings, without the model; made by `begin`.

    The unit of work is a shard. Any process with the model can make any missing shards, in any order.
    """

    catalogue: Catalogue
    folder: Path
    manifest: Manifest
    settings: EmbeddingSettings

    @classmethod
    def begin(
        cls, model: ImageEncoder, catalogue: Catalogue, folder: str | PathLike[str], settings: EmbeddingSettings
    ) -> "EmbeddingJob":
        """Starts a job in a new folder, or resumes the job of this folder; see `embed_catalogue`."""
        ids = model.config.attribute_ids(settings.attributes)
        earlier, made_from = model_of(folder), model.checkpoint_fingerprint()
        fingerprint = earlier if earlier is not None and model.has_fingerprint(earlier) else model.fingerprint()
        manifest = Manifest(
            model=fingerprint,
            attributes=[model.config.attributes[place] for place in ids],
            dim=model.config.embedding_dim or model.config.hidden_size,
            dtype=settings.dtype,
            num_items=len(catalogue),
            shard_size=settings.shard_size,
            columns=[name for name in catalogue.features if name != ITEM_ID],
            checkpoint=None if made_from == fingerprint else made_from,
        )
        job = cls(catalogue, Path(folder), manifest, settings)
        features_of(catalogue.features, manifest)  # raises for two columns with the same name, before all writing
        manifest.write_or_compare(job.folder)
        for shard, note in job._finished():
            if note["made_from"] != catalogue.fingerprint(*manifest.range_of(shard)):
                raise ValueError(
                    f"{job.path_of(shard)} was made from other images or ids than the catalogue now contains: choose "
                    "another folder, or delete this one"
                )
        return job

    def path_of(self, shard: int) -> Path:
        return self.folder / f"embeddings-{shard:05}-of-{self.manifest.num_shards:05}.parquet"

    def missing(self) -> list[int]:
        """The shards that are not finished."""
        return [shard for shard in range(self.manifest.num_shards) if not self.path_of(shard).exists()]

    def make(self, model: ImageEncoder, shards: Sequence[int], batch_size: int) -> Iterator[int]:
        """Embeds and writes shards, and skips those that another process finishes in the meantime.

        If another process is at work, this one continues from the back, so that the two meet in the middle. The
        shards are in rising order; for several, `batch_size` must divide their size.

        Yields:
            The number of images of each finished batch, or of the skipped shards.
        """
        waiting = list(shards)
        while waiting:
            made = yield from self._make_until_overtaken(model, waiting, batch_size)
            rest = waiting[made:]
            waiting = [shard for shard in rest if not self.path_of(shard).exists()]
            # from the back, but the shorter last shard stays last, or batches would contain images of two shards
            waiting.sort(key=lambda shard: (shard == self.manifest.num_shards - 1, -shard))
            skipped = self.images_in(rest) - self.images_in(waiting)
            if skipped:
                yield skipped

    def _make_until_overtaken(
        self, model: ImageEncoder, shards: Sequence[int], batch_size: int
    ) -> Generator[int, None, int]:
        """Makes shards until another process has finished one of them; returns how many were made here."""
        manifest, features = self.manifest, features_of(self.catalogue.features, self.manifest)
        batches = model.encode_batches(
            _Rows(self.catalogue.images, [manifest.range_of(shard) for shard in shards]),
            manifest.attributes,
            batch_size=batch_size,
            num_workers=self.settings.num_workers,
            on_unreadable="skip",  # errors are raised here, by the row of the catalogue
        )
        made = before = 0  # shards, and images in them
        overtaken = False
        writing: Future[bool] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="write-shards") as writer:
            for shard in shards:
                if overtaken or self.path_of(shard).exists():
                    break
                start, stop = manifest.range_of(shard)
                rows: list[int] = []
                vectors: list[np.ndarray] = []
                unreadable: dict[int, str] = {}
                for _ in range(-(-(stop - start) // batch_size)):  # no batch contains images of two shards
                    batch = next(batches)
                    rows += [row - before for row in batch.rows]
                    vectors.append(batch.values.numpy())
                    unreadable |= {row - before: str(error) for row, error in batch.unreadable.items()}
                    if unreadable and self.settings.on_unreadable == "error":
                        row, reason = next(iter(unreadable.items()))
                        item = self.catalogue.ids[start + row]
                        raise UnreadableImageError(f"row {start + row}, item {item}: {reason}")
                    yield len(batch.rows) + len(batch.unreadable)
                made, before = made + 1, before + stop - start
                items, kept = self.catalogue.rows(start, stop), pa.array(rows, pa.int64())
                reasons = {str(items[ITEM_ID][row]): reason for row, reason in unreadable.items()}
                note = {"made_from": self.catalogue.fingerprint(start, stop), "unreadable": reasons}
                overtaken = writing is not None and not writing.result()
                content = items.take(kept), np.concatenate(vectors), manifest.attributes, features, note
                writing = writer.submit(write_shard, self.path_of(shard), *content)
            if writing is not None:
                writing.result()
        return made

    def describe(self) -> EmbeddedFolder:
        """The present content of the folder, made by any process."""
        notes = dict(self._finished())
        unreadable = {item: reason for note in notes.values() for item, reason in note["unreadable"].items()}
        return EmbeddedFolder(self.folder, self.manifest.num_items, self.images_in(notes), unreadable)

    def images_in(self, shards: Iterable[int]) -> int:
        return sum(stop - start for start, stop in map(self.manifest.range_of, shards))

    def _finished(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for shard in range(self.manifest.num_shards):
            if self.path_of(shard).exists():
                yield shard, read_note(self.path_of(shard))


def embed_catalogue(
    model: ImageEncoder,
    catalogue: Catalogue,
    folder: str | PathLike[str],
    settings: EmbeddingSettings | None = None,
    *,
    rank: int = 0,
    num_ranks: int = 1,
    show_progress: bool = True,
) -> EmbeddedFolder:
    """Embeds the images that have no embedding yet, in this process, and returns the content of the folder.

    Several processes can work on one folder: with ranks, or simply at the same time.

    Args:
        folder: where `manifest.json` and the shards go, see `embedding/shards.py`. An interrupted job is resumed.
        rank, num_ranks: this process makes the shards rank, rank + num_ranks, ...

    Raises:
        ValueError: if the folder contains embeddings of another model, other images, or another form.
        UnreadableImageError: for an image that cannot be read. Finished shards are kept.
    """
    settings = settings or EmbeddingSettings()
    batch_size = settings.batch_size or 32
    if settings.shard_size % batch_size:
        raise ValueError(f"shard_size must be a multiple of batch_size; got {settings.shard_size} and {batch_size}")
    job = EmbeddingJob.begin(model, catalogue, folder, settings)
    shards = [shard for shard in job.missing() if shard % num_ranks == rank]
    total = job.images_in(shards)
    with logging.tqdm(total=total, desc="Embedding", unit="image", disable=not show_progress) as progress:
        for images in job.make(model, shards, batch_size):
            progress.update(images)
    return job.describe()


class _Rows(Sequence[ImageInput]):
    """Ranges of a long sequence, one after the other; memory grows with the ranges, not with the images."""

    def __init__(self, images: Sequence[ImageInput], ranges: Sequence[tuple[int, int]]) -> None:
        self.images = images
        sizes = np.array([stop - start for start, stop in ranges], dtype=np.int64)
        self.ends = np.cumsum(sizes)
        self.offsets = np.array([start for start, _ in ranges], dtype=np.int64) - (self.ends - sizes)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, place: int) -> ImageInput:  # type: ignore[override]
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.images[place + int(self.offsets[np.searchsorted(self.ends, place, side="right")])]
