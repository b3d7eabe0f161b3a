"""Pictures of many requests at a time, embedded together.

Threads read the pictures; one thread more runs the model, each time on all that has been read meanwhile, up to
`max_batch`. Nobody waits for company: a picture that comes alone is embedded alone, and while the model is at work on
it the next batch gathers by itself. A batch is asked under every attribute that any of its pictures is asked for,
which costs next to nothing, and each request gets its own.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import NamedTuple

import torch
from PIL import Image

from cca_hf.models.encoding import ImageEncoder
from cca_hf.models.images import ImageInput, ImageReader


class BusyError(Exception):
    """More is waiting already than the server takes in."""


class _Waiting(NamedTuple):
    pixels: torch.Tensor  # (3, height, width), as it was read
    attribute_ids: list[int]
    embeddings: "Future[torch.Tensor]"  # (attributes, dim)


class Batcher:
    """A model that coroutines share.

    Args:
        max_batch: pictures a pass of the model, at most.
        max_waiting: pictures that have been taken in and not been answered, at most.
        num_readers: threads that read pictures.
        observe: told of each pass, in the model's thread: its pictures and seconds.
    """

    def __init__(
        self,
        model: ImageEncoder,
        *,
        max_batch: int,
        max_waiting: int,
        num_readers: int,
        observe: Callable[[int, float], None],
    ):
        self.model = model
        self.max_batch = max_batch
        self.max_waiting = max_waiting
        self.waiting = 0
        self._reader = ImageReader(model.image_processor)
        self._observe = observe
        self._readers = ThreadPoolExecutor(num_readers, thread_name_prefix="read-pictures")
        self._read: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._embed([self._reader.read(Image.new("RGB", (8, 8)))], list(range(len(model.config.attributes))))
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the model's thread is there to answer."""
        return self._thread.is_alive()

    async def embed(
        self, pictures: Sequence[ImageInput], attribute_ids: list[int], readers: ThreadPoolExecutor | None = None
    ) -> list[torch.Tensor | Exception]:
        """For each picture (attributes, dim), float32 on the CPU, or why there is none.

        Args:
            pictures: are taken one by one, in the threads that read them; what that raises counts as the picture's.
            readers: other threads to read them in, where they have to be waited for.

        Raises:
            BusyError: at once, if too much is waiting.
        """
        if self.waiting + len(pictures) > self.max_waiting:
            raise BusyError(f"{self.waiting} pictures are waiting, and no more than {self.max_waiting} may")
        self.waiting += len(pictures)
        try:
            rows = (self._embed_one(pictures, row, attribute_ids, readers) for row in range(len(pictures)))
            return await asyncio.gather(*rows)
        finally:
            self.waiting -= len(pictures)

    async def _embed_one(
        self,
        pictures: Sequence[ImageInput],
        row: int,
        attribute_ids: list[int],
        readers: ThreadPoolExecutor | None,
    ) -> torch.Tensor | Exception:
        embeddings: Future[torch.Tensor] = Future()

        def read() -> None:
            self._read.put(_Waiting(self._reader.read(pictures[row]), attribute_ids, embeddings))

        try:
            await asyncio.get_running_loop().run_in_executor(readers or self._readers, read)
            return await asyncio.wrap_future(embeddings)
        except Exception as error:
            return error

    def close(self) -> None:
        """Ends the threads, when what has been taken in is answered."""
        self._readers.shutdown()
        self._read.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            wanted = [each for each in batch if each.embeddings.set_running_or_notify_cancel()]
            if not wanted:
                continue
            started = time.perf_counter()
            ids = sorted({attribute for each in wanted for attribute in each.attribute_ids})
            try:
                rows = self._embed([each.pixels for each in wanted], ids)
            except Exception as error:  # the next batch may do better: a smaller one fits into the memory
                for each in wanted:
                    each.embeddings.set_exception(error)
                continue
            self._observe(len(wanted), time.perf_counter() - started)
            for each, row in zip(wanted, rows, strict=True):
                each.embeddings.set_result(row[[ids.index(attribute) for attribute in each.attribute_ids]])

    def _next_batch(self) -> list[_Waiting] | None:
        first = self._read.get()
        if first is None:
            return None
        batch = [first]
        while len(batch) < self.max_batch:
            try:
                following = self._read.get_nowait()
            except Empty:
                break
            if following is None:
                self._read.put(None)  # for the next turn
                break
            batch.append(following)
        return batch

    def _embed(self, pixels: list[torch.Tensor], attribute_ids: list[int]) -> torch.Tensor:
        pixel_values = self._reader.scale(torch.stack(pixels), self.model.device, self.model.dtype)
        return self.model.embed_pixels(pixel_values, attribute_ids)
