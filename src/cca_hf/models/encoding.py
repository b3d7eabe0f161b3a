"""From pictures and names to arrays: reading ahead, batching and the progress bar around a model's forward pass.

Pictures are read by threads (their decoders let go of Python's lock) while the model is at work, two batches ahead at
most, and taken from `images` one by one: a million pictures need no more memory than a thousand, but for their result.
On an accelerator a batch is fetched when the next one has been started, and batches are of one size.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from threading import Lock
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.utils import logging

from .configuration_cca import CCAConfig
from .images import ImageInput, ImageReader, UnreadableImageError

_MOST_WORKERS = 8  # beyond, threads wait for each other
_BATCHES_AHEAD = 2


class ImageBatch(NamedTuple):
    """Some pictures as they come: their rows, what was read or computed of them, and what could not be read."""

    rows: list[int]
    values: torch.Tensor
    unreadable: dict[int, UnreadableImageError]


class ImageEncoder:
    """`encode` and `encode_batches` for whatever embeds pixel values under conditions: a model, or an export of it."""

    config: CCAConfig
    image_processor: BaseImageProcessor
    device: torch.device
    dtype: torch.dtype

    def fingerprint(self) -> str:
        """A hash to keep beside embeddings, so that those of two models are never mixed."""
        raise NotImplementedError

    def _embed(self, pixel_values: torch.Tensor, attribute_ids: torch.Tensor) -> torch.Tensor:
        """`pixel_values` (batch, 3, height, width), `attribute_ids` (k,) -> (batch, k, dim), without gradient."""
        raise NotImplementedError

    def encode(
        self,
        images: ImageInput | Sequence[ImageInput],
        attributes: str | Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        show_progress: bool | None = None,
        output: Literal["numpy", "torch"] = "numpy",
        num_workers: int | None = None,
    ) -> np.ndarray | torch.Tensor:
        """Embeds pictures under attributes given by name.

        Args:
            images: pictures, or one: paths, URLs, bytes, PIL images, arrays, or the image column of a `Dataset`. A
                column cast to `datasets.Image(decode=False)` is read faster: in the threads, and not by PIL.
            attributes: names of attributes, or one; defaults to all of them, in the order of `config.attributes`.
            batch_size: pictures a pass.
            show_progress: a progress bar; by default where there is more than one batch.
            output: `"numpy"` or `"torch"` (on the CPU).
            num_workers: threads that read pictures while the model is at work; 0 reads and computes in turns. By
                default one beside a model on the CPU, which needs the cores itself, and up to 8 beside an accelerator.

        Returns:
            (images, attributes, dim) float32, L2-normalised.

        Raises:
            ValueError: for an unknown attribute (names the closest) or `output`.
            UnreadableImageError: for a picture that cannot be read; names it.
        """
        if output not in ("numpy", "torch"):
            raise ValueError(f"output must be 'numpy' or 'torch'; got {output!r}")
        pictures = as_sequence(images)
        batches = self.encode_batches(pictures, attributes, batch_size=batch_size, num_workers=num_workers)
        num_attributes = len(self.config.attribute_ids(_names(attributes)))
        dim = self.config.embedding_dim or self.config.hidden_size
        embeddings = torch.empty(len(pictures), num_attributes, dim)
        show = len(pictures) > batch_size if show_progress is None else show_progress
        with logging.tqdm(total=len(pictures), desc="Encoding", unit="picture", disable=not show) as progress:
            for batch in batches:
                embeddings[batch.rows] = batch.values
                progress.update(len(batch.rows))
        return embeddings.numpy() if output == "numpy" else embeddings

    def encode_batches(
        self,
        images: Sequence[ImageInput],
        attributes: str | Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        num_workers: int | None = None,
        on_unreadable: Literal["error", "skip"] = "error",
    ) -> Iterator[ImageBatch]:
        """As [`encode`], batch after batch, for more than fits into memory.

        Args:
            on_unreadable: `"skip"` leaves out pictures that cannot be read, and tells them in `unreadable`.

        Yields:
            A [`ImageBatch`] for each `batch_size` pictures in turn, less those that cannot be read; its `values` are
            (pictures, attributes, dim) float32 on the CPU.
        """
        ids = self.config.attribute_ids(_names(attributes))  # here, so that a wrong name is an error at once
        return self._encode_batches(images, ids, batch_size, num_workers, on_unreadable)

    def embed_pixels(self, pixel_values: torch.Tensor, attribute_ids: Sequence[int]) -> torch.Tensor:
        """What remains of [`encode`] for pictures that have been read already, as a server's have.

        Args:
            pixel_values: (batch, 3, height, width) as `ImageReader.scale` makes them, on the model's device.
            attribute_ids: places in `config.attributes`.

        Returns:
            (batch, attributes, dim) float32 on the CPU, L2-normalised.
        """
        ids = torch.tensor(list(attribute_ids), dtype=torch.long, device=self.device)
        return self._embed(pixel_values, ids).float().cpu()

    def _encode_batches(
        self,
        images: Sequence[ImageInput],
        ids: list[int],
        batch_size: int,
        num_workers: int | None,
        on_unreadable: Literal["error", "skip"],
    ) -> Iterator[ImageBatch]:
        attribute_ids = torch.tensor(ids, dtype=torch.long, device=self.device)
        running: ImageBatch | None = None
        for batch in pixel_batches(
            self, images, batch_size=batch_size, num_workers=num_workers, on_unreadable=on_unreadable
        ):
            if batch.rows:
                values = self._embed(batch.values, attribute_ids)
            else:  # none of them could be read
                values = torch.empty(0, len(ids), self.config.embedding_dim or self.config.hidden_size)
            if running is not None:
                yield _fetch(running)
            running = batch._replace(values=values)
        if running is not None:
            yield _fetch(running)


def pixel_batches(
    model: ImageEncoder | PreTrainedModel,
    images: Sequence[ImageInput],
    *,
    batch_size: int,
    num_workers: int | None = None,
    on_unreadable: Literal["error", "skip"] = "error",
) -> Iterator[ImageBatch]:
    """Pictures as `pixel_values` on the model's device; batch i is of the rows from i * batch_size on.

    On an accelerator a batch that lacks pictures, as the last one may, is filled up with copies of one, so that
    nothing is compiled or tuned again for it: `values` may have more rows than there are in `rows`.
    """
    if on_unreadable not in ("error", "skip"):
        raise ValueError(f"on_unreadable must be 'error' or 'skip'; got {on_unreadable!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    reader, device = ImageReader(model.image_processor), model.device
    workers = _default_workers(device) if num_workers is None else num_workers
    fill_up = device.type != "cpu" and len(images) > batch_size
    rows: list[int] = []
    pixels: list[torch.Tensor] = []
    unreadable: dict[int, UnreadableImageError] = {}
    for row, read in enumerate(_read_ahead(reader, images, workers, _BATCHES_AHEAD * batch_size)):
        if isinstance(read, UnreadableImageError):
            if on_unreadable == "error":
                raise read
            unreadable[row] = read
        else:
            rows.append(row)
            pixels.append(read)
        if (row + 1) % batch_size == 0 or row == len(images) - 1:
            if fill_up and pixels:
                pixels += [pixels[-1]] * (batch_size - len(pixels))
            stacked = torch.stack(pixels) if pixels else torch.empty(0, 3, 1, 1)
            if device.type == "cuda":
                stacked = stacked.pin_memory()
            yield ImageBatch(rows, reader.scale(stacked, device, model.dtype), unreadable)
            rows, pixels, unreadable = [], [], {}


def _read_ahead(
    reader: ImageReader, images: Sequence[ImageInput], num_workers: int, ahead: int
) -> Iterator[torch.Tensor | UnreadableImageError]:
    """Every picture in turn, up to `ahead` of them read before they are asked for."""
    lock = Lock()

    def read(row: int) -> torch.Tensor | UnreadableImageError:
        image = images[row]
        try:
            if isinstance(image, Image.Image):
                with lock:  # it may stand in the list twice, and PIL decodes an opened file at its first use
                    image.load()
            return reader.read(image)
        except UnreadableImageError as error:
            return error
        except OSError as error:  # of a file that PIL had opened
            return UnreadableImageError(f"the picture in place {row} cannot be read: {error}")

    if num_workers == 0:
        yield from map(read, range(len(images)))
        return
    with ThreadPoolExecutor(num_workers, thread_name_prefix="read-pictures") as pool:
        waiting: deque[Future[torch.Tensor | UnreadableImageError]] = deque()
        try:
            for row in range(len(images)):
                waiting.append(pool.submit(read, row))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # whoever asked has stopped asking
            for future in waiting:
                future.cancel()


def _default_workers(device: torch.device) -> int:
    return 1 if device.type == "cpu" else min(_MOST_WORKERS, os.cpu_count() or 1)


def _fetch(batch: ImageBatch) -> ImageBatch:
    return batch._replace(values=batch.values[: len(batch.rows)].float().cpu())


def compute_attention_maps(
    model: PreTrainedModel,
    images: ImageInput | Sequence[ImageInput],
    attributes: str | Sequence[str] | None,
    *,
    batch_size: int,
) -> np.ndarray:
    """See `CCAModel.attention_maps`."""
    attribute_ids = torch.tensor(model.config.attribute_ids(_names(attributes)), dtype=torch.long)
    maps = []
    for batch in pixel_batches(model, as_sequence(images), batch_size=batch_size):
        conditions = attribute_ids.to(batch.values.device).expand(len(batch.values), -1)
        maps.append(_attend(model, batch.values, conditions)[: len(batch.rows)].cpu().numpy())
    if not maps:
        raise ValueError("no pictures to attend to: images is empty")
    return np.concatenate(maps)


@torch.inference_mode()
def _attend(model: PreTrainedModel, pixel_values: torch.Tensor, attribute_ids: torch.Tensor) -> torch.Tensor:
    training = model.training
    model.eval()
    try:
        tokens, grids = model.tokens_and_grids(pixel_values)
        weights = model.condition_tokens(tokens, attribute_ids, output_attentions=True).attentions
    finally:
        model.train(training)
    if weights is None:
        raise RuntimeError("the conditional layer returned no attention weights")
    # the rows of tokens are: summary or prefix, the output's grid, then the grids of earlier levels (see ImageTokens)
    place = max(1, model.config.num_prefix_tokens)
    height, width = max(grids)
    total = torch.zeros(*weights.shape[:3], height, width, dtype=torch.float32, device=weights.device)
    for level, (rows, columns) in enumerate(grids):
        if level > 0:
            place += model.config.num_prefix_tokens
        cells = weights[..., place : place + rows * columns].float().unflatten(-1, (rows, columns))
        place += rows * columns
        total += _spread(cells, height, width)
    return total


def _spread(cells: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(..., rows, columns) onto a finer grid: what a coarse cell holds, its finer ones share; the sum stays."""
    rows, columns = cells.shape[-2:]
    row = torch.arange(height, device=cells.device) * rows // height  # of each finer row, the coarse one it lies in
    column = torch.arange(width, device=cells.device) * columns // width
    sharing = torch.bincount(row, minlength=rows)[:, None] * torch.bincount(column, minlength=columns)
    return (cells / sharing)[..., row[:, None], column]


def as_sequence(images: ImageInput | Sequence[ImageInput]) -> Sequence[ImageInput]:
    """One picture is a list of one; a column of a data set is taken as it is, and read picture by picture."""
    if isinstance(images, (str, PathLike, bytes, dict, Image.Image)):
        return [images]
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    return images


def _names(attributes: str | Sequence[str] | None) -> list[str] | None:
    if attributes is None:
        return None
    names = [attributes] if isinstance(attributes, str) else list(attributes)
    if not names:
        raise ValueError("attributes is empty: name at least one, or leave it out for all")
    return names


__all__ = ["ImageBatch", "ImageEncoder", "as_sequence", "compute_attention_maps", "pixel_batches"]
