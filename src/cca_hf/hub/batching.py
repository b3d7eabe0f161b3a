"""Embeds the images of many requests together.

A pool of threads reads the images. One more thread runs the model, each time on all images that have been read in the
meantime, up to `max_batch`, and under every attribute that one of the requests needs. No image waits for others.
Images of different clients are read in turn, and one client may hold only a part of the room for waiting images.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import NamedTuple, TypeAlias

import torch
from PIL import Image

from cca_hf.models.encoding import ImageEncoder
from cca_hf.models.images import ImageInput, ImageReader

from .clients import FairExecutor

_CLOSING_SECONDS = 1.0

_Observe: TypeAlias = Callable[[int, float], None]


class BusyError(Exception):
    """Too many requests are waiting; the client should try again later."""


class _Waiting(NamedTuple):
    pixels: torch.Tensor  # (3, height, width)
    attribute_ids: list[int]
    embeddings: "Future[torch.Tensor]"  # (attributes, dim)


class Batcher:
    """Shares a model among coroutines; `max_batch` and `max_waiting` are as in `ServerSettings`.

    Args:
        per_client: maximum number of waiting images of one client.
        num_readers: number of threads that read images.
        observe: called in the model's thread after each forward pass, with its number of images and its seconds.
    """

    def __init__(
        self,
        model: ImageEncoder,
        max_batch: int,
        max_waiting: int,
        per_client: int,
        num_readers: int,
        observe: _Observe,
    ):
        self.model, self.max_batch, self.max_waiting, self.per_client = model, max_batch, max_waiting, per_client
        self.waiting = 0
        self._waiting_of: Counter[str] = Counter()  # client -> images
        self._reader = ImageReader(model.image_processor)
        self._observe = observe
        self._readers = FairExecutor(num_readers, "read-requests")
        self._read: SimpleQueue[_Waiting | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._embed([self._reader.read(Image.new("RGB", (8, 8)))], list(range(len(model.config.attributes))))
        self.thread.start()

    async def embed(
        self,
        images: Sequence[ImageInput],
        attribute_ids: list[int],
        client: str,
        readers: FairExecutor | None = None,
    ) -> list[torch.Tensor | Exception]:
        """The embeddings of each image, (attributes, dim) float32 on the CPU, or its error.

        The images are accessed one by one in the threads that read them, by default the threads of the batcher.

        Raises:
            BusyError: at once, if too many images are waiting, of all clients or of this one.
        """
        if self.waiting + len(images) > self.max_waiting:
            raise BusyError(f"{self.waiting} images are waiting, and at most {self.max_waiting} may wait")
        if self._waiting_of[client] + len(images) > self.per_client:
            waiting = f"{self._waiting_of[client]} images of this client are waiting"
            raise BusyError(f"{waiting}, and at most {self.per_client} of one client may wait")
        self.waiting += len(images)
        self._waiting_of[client] += len(images)
        try:
            rows = (self._embed_one(images, row, attribute_ids, client, readers) for row in range(len(images)))
            return await asyncio.gather(*rows)
        finally:
            self.waiting -= len(images)
            self._waiting_of[client] -= len(images)
            if not self._waiting_of[client]:
                del self._waiting_of[client]

    async def _embed_one(
        self,
        images: Sequence[ImageInput],
        row: int,
        attribute_ids: list[int],
        client: str,
        readers: FairExecutor | None,
    ) -> torch.Tensor | Exception:
        embeddings: Future[torch.Tensor] = Future()

        def read() -> None:
            self._read.put(_Waiting(self._reader.read(images[row]), attribute_ids, embeddings))

        try:
            await asyncio.wrap_future((readers or self._readers).submit(client, read))
            return await asyncio.wrap_future(embeddings)
        except Exception as error:
            return error

    def close(self) -> None:
        """Ends the threads; waits a few seconds for those that are still busy, and the process does not need them."""
        self._readers.close(_CLOSING_SECONDS)
        self._read.put(None)
        self.thread.join(_CLOSING_SECONDS)

    def _run(self) -> None:
        while (first := self._read.get()) is not None:
            batch = [first]
            while len(batch) < self.max_batch and not self._read.empty():
                if (following := self._read.get()) is None:
                    self._read.put(None)  # ends the outer loop
                    break
                batch.append(following)
            batch = [waiting for waiting in batch if waiting.embeddings.set_running_or_notify_cancel()]
            if not batch:
                continue
            started = time.perf_counter()
            ids = sorted({attribute for waiting in batch for attribute in waiting.attribute_ids})
            try:
                rows = self._embed([waiting.pixels for waiting in batch], ids)
            except Exception as error:  # the next batch may succeed: a smaller one fits into memory
                for waiting in batch:
                    waiting.embeddings.set_exception(error)
                continue
            self._observe(len(batch), time.perf_counter() - started)
            for waiting, row in zip(batch, rows, strict=True):
                waiting.embeddings.set_result(row[[ids.index(attribute) for attribute in waiting.attribute_ids]])

    def _embed(self, pixels: list[torch.Tensor], attribute_ids: list[int]) -> torch.Tensor:
        pixel_values = self._reader.scale(torch.stack(pixels), self.model.device, self.model.dtype)
        return self.model.embed_pixels(pixel_values, attribute_ids)
