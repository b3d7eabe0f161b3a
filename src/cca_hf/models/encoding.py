"""From images and attribute names to arrays: reading ahead, batching and the progress bar around a forward pass.

Threads read images while the model computes (decoders release Python's lock), at most two batches ahead. On an
accelerator the result of a batch is fetched after the next batch has been started, and all batches have one size.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set, Sized, ValuesView
from concurrent.futures import Future, ThreadPoolExecutor
from functools import singledispatch
from io import IOBase
from os import PathLike
from threading import Lock
from typing import Any, ClassVar, Literal, NamedTuple, Never, Self

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.utils import logging

from .configuration_images import AttributeConfig, one_of, refuse_unknown
from .images import ImageInput, ImageReader, UnreadableImageError, load_image

_MOST_WORKERS = 8  # beyond, threads wait for each other
# what to write instead of parameters of sentence-transformers that `encode` does not have
_HINTS = {
    "prompt": "The condition of an image is an attribute, such as attribute='colour'",
    "prompt_name": "The condition of an image is an attribute, such as attribute='colour'",
    "precision": "Convert the model first, such as model.half(), or export it in 8 bits with cca_hf.export_model",
    "truncate_dim": "Set embedding_dim in CCAModel.from_backbone, before the training",
}


class ImageBatch(NamedTuple):
    """Some images in order: their rows, their pixel values or embeddings, and the errors of unreadable ones by row."""

    rows: list[int]
    values: torch.Tensor
    unreadable: dict[int, UnreadableImageError]


class ImageEncoder:
    """`encode` and `encode_batches` for a model that embeds pixel values by attribute, or for an export of it."""

    config: AttributeConfig
    image_processor: BaseImageProcessor
    dtype: torch.dtype
    default_attribute: ClassVar[str | None] = None  # of `encode`, for a model with one space that has no name
    # pixel values and ids (batch, k) -> an output with `embeddings` (batch, k, dim)
    __call__: Callable[..., Any]

    @property
    def device(self) -> torch.device:
        """Where pixel values go."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A hash that is stored with embeddings, so that those of two models are never mixed."""
        raise NotImplementedError

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether embeddings that were stored under `fingerprint` were computed by this model."""
        return fingerprint == self.fingerprint()

    def checkpoint_fingerprint(self) -> str:
        """The fingerprint of the checkpoint that this encoder was made from, to store with an index."""
        return self.fingerprint()

    def shares_space(self, fingerprint: str) -> bool:
        """Whether embeddings that were stored under `fingerprint` can be compared with those of this encoder.

        They can if the weights are the same, also in another precision.
        """
        return self.has_fingerprint(fingerprint)

    def in_precision(self, precision: str) -> Self:
        """This object, converted to a number type such as "bfloat16"; "auto" changes nothing."""
        return self

    def in_eval_mode(self) -> Self:
        """This object, or a copy of a model that is in training mode."""
        return self

    def on_device(self, device: str | torch.device) -> Self:
        """This object, moved to a device.

        Raises:
            ValueError: if it cannot be moved.
        """
        if torch.device(device).type != self.device.type:
            raise ValueError(f"this {type(self).__name__} runs on {self.device} only; got device={str(device)!r}")
        return self

    def get_embedding_dimension(self) -> int:
        """The length of an embedding."""
        return self.config.embedding_dim or self.config.hidden_size

    get_sentence_embedding_dimension = get_embedding_dimension  # its name in sentence-transformers before version 6

    @property
    def has_prototypes(self) -> bool:
        """Whether [`value_prototypes`] returns prototypes."""
        return False

    def value_prototypes(self, attribute: str) -> dict[str, np.ndarray]:
        """The prototypes of the values of one attribute: (dim,) float32, L2-normalised, by the name of the value.

        They can be compared with the embeddings that `encode` returns. Values that no training image showed have none.

        Raises:
            ValueError: for an unknown attribute, or if there are no prototypes.
        """
        raise ValueError(f"{type(self).__name__} has no prototypes of values")

    @torch.inference_mode()
    def _embed(self, pixel_values: torch.Tensor, attribute_ids: torch.Tensor) -> torch.Tensor:
        """Ids (k,) -> (batch, k, dim)."""
        return self(pixel_values, attribute_ids=attribute_ids.expand(len(pixel_values), -1)).embeddings

    def encode(
        self,
        images: ImageInput | Sequence[ImageInput],
        attributes: str | Sequence[str] | None = None,
        *,
        attribute: str | Sequence[str] | None = None,
        batch_size: int = 32,
        show_progress: bool | None = None,
        output: Literal["numpy", "torch"] = "numpy",
        num_workers: int | None = None,
        show_progress_bar: bool | None = None,
        convert_to_tensor: bool = False,
        convert_to_numpy: bool = True,
        normalize_embeddings: bool = True,
        device: str | torch.device | None = None,
        **unknown: Never,
    ) -> np.ndarray | torch.Tensor:
        """Embed images under attributes given by name.

        Args:
            images: one image or several: paths, URLs, bytes, PIL images, arrays, or the image column of a `Dataset`.
                A column cast to `datasets.Image(decode=False)` is read faster, because the threads decode it.
            attributes: one name or several; all attributes by default, in the order of `config.attributes`.
            attribute: one name, for a result without the axis of the attributes, as in sentence-transformers. A list
                of names means the same as `attributes`.
            batch_size: images per forward pass.
            show_progress: whether to show a progress bar; by default if there is more than one batch.
            output: `"numpy"` or `"torch"` (on the CPU).
            num_workers: threads that read images while the model computes; 0 reads and computes in turns. The
                default is 1 for a model on the CPU, which needs the cores itself, and up to 8 for an accelerator.
            show_progress_bar: the name of `show_progress` in sentence-transformers.
            convert_to_tensor, convert_to_numpy: `convert_to_tensor=True` or `convert_to_numpy=False` is
                `output="torch"`.
            normalize_embeddings: True, because all embeddings are normalised.
            device: moves the model to this device first.

        Returns:
            float32, L2-normalised. (images, attributes, dim), also for one image or one name in `attributes`:
            (1, attributes, dim) or (images, 1, dim). With one name as `attribute`, (images, dim), or (dim,) for one
            image.

        Raises:
            ValueError: for an unknown attribute (the message names the closest one) or `output`, or if an embedding
                is NaN or infinite; if both `attribute` and `attributes` are given; for `normalize_embeddings=False`.
            TypeError: for an unknown parameter; the message names the right one.
            UnreadableImageError: if an image cannot be read; the message names its row and its source.
        """
        refuse_unknown(self.encode, unknown, _HINTS)
        if output not in ("numpy", "torch"):
            raise ValueError(f"output must be 'numpy' or 'torch'; got {output!r}")
        if not normalize_embeddings:
            raise ValueError("embeddings are always L2-normalised: leave out normalize_embeddings=False")
        if attribute is None and attributes is None:
            attribute = self.default_attribute
        names = one_of(attribute, attributes)
        sequence = as_sequence(images)
        encoder = self if device is None else self.on_device(device)
        batches = encoder.encode_batches(sequence, names, batch_size=batch_size, num_workers=num_workers)
        num_attributes = len(self.config.attribute_ids(names))
        embeddings = torch.empty(len(sequence), num_attributes, self.get_embedding_dimension())
        if show_progress is None:
            show_progress = len(sequence) > batch_size if show_progress_bar is None else show_progress_bar
        with logging.tqdm(total=len(sequence), desc="Encoding", unit="image", disable=not show_progress) as progress:
            for batch in batches:
                embeddings[batch.rows] = batch.values
                progress.update(len(batch.rows))
        if isinstance(attribute, str):
            are_several = sequence is images or (isinstance(images, np.ndarray) and images.ndim == 4)
            embeddings = embeddings[:, 0] if are_several else embeddings[0, 0]
        return embeddings if output == "torch" or convert_to_tensor or not convert_to_numpy else embeddings.numpy()

    def similarity(self, embeddings: np.ndarray | torch.Tensor, others: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Compute the cosine similarity of each image with each of the others, as in sentence-transformers.

        Args:
            embeddings, others: (images, dim), (dim,) or (images, attributes, dim), as [`encode`] returns them.

        Returns:
            (images, others), or (images, others, attributes): one similarity under each attribute.

        Raises:
            ValueError: if the shapes differ in more than the number of images.
        """
        first, second = (torch.atleast_2d(torch.as_tensor(each)).float() for each in (embeddings, others))
        if first.shape[1:] != second.shape[1:] or first.ndim > 3:
            raise ValueError(
                "embeddings to compare must both be (images, dim), or both (images, attributes, dim) with the same "
                f"attributes; got {tuple(first.shape)} and {tuple(second.shape)}"
            )
        first, second = (torch.nn.functional.normalize(each, dim=-1) for each in (first, second))
        return torch.einsum("i...d,j...d->ij...", first, second)

    def encode_batches(
        self,
        images: Sequence[ImageInput],
        attributes: str | Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        num_workers: int | None = None,
        on_unreadable: Literal["error", "skip"] = "error",
    ) -> Iterator[ImageBatch]:
        """As [`encode`], one batch after the other, for results that do not fit into memory.

        Args:
            on_unreadable: `"skip"` leaves out images that cannot be read, and reports them in `unreadable`.

        Yields:
            An [`ImageBatch`] for every `batch_size` images, with `values` (images, attributes, dim) on the CPU.
        """
        ids = self.config.attribute_ids(attributes)  # here, so that a wrong name raises at once
        sequence = as_sequence(images)
        return self._encode_batches(pixel_batches(self, sequence, batch_size, num_workers, on_unreadable), ids)

    def embed_pixels(self, pixel_values: torch.Tensor, attribute_ids: Sequence[int]) -> torch.Tensor:
        """As [`encode`], for images that have been read already, as in a server.

        Args:
            pixel_values: (batch, 3, height, width) from `ImageReader.scale`, on the model's device.
            attribute_ids: indices into `config.attributes`.
        """
        ids = torch.tensor(list(attribute_ids), dtype=torch.long, device=self.device)
        return _finite(self.in_eval_mode()._embed(pixel_values, ids).float().cpu(), range(len(pixel_values)))

    def _encode_batches(self, batches: Iterator[ImageBatch], ids: list[int]) -> Iterator[ImageBatch]:
        model = self.in_eval_mode()
        attribute_ids = torch.tensor(ids, dtype=torch.long, device=self.device)
        running: ImageBatch | None = None
        for batch in batches:
            if batch.rows:
                values = model._embed(batch.values, attribute_ids)
            else:  # none of the images could be read
                values = torch.empty(0, len(ids), self.get_embedding_dimension())
            if running is not None:
                yield _fetch(running)
            running = batch._replace(values=values)
        if running is not None:
            yield _fetch(running)


def pixel_batches(
    model: ImageEncoder | PreTrainedModel,
    images: Sequence[ImageInput],
    batch_size: int,
    num_workers: int | None = None,
    on_unreadable: Literal["error", "skip"] = "error",
) -> Iterator[ImageBatch]:
    """Images as `pixel_values` on the model's device; batch i has the rows from i * batch_size on.

    On an accelerator an incomplete batch, as the last one may be, is filled up with copies of an image, so that
    nothing is compiled or tuned again for it. `values` may then have more rows than `rows` has entries.
    """
    if on_unreadable not in ("error", "skip"):
        raise ValueError(f"on_unreadable must be 'error' or 'skip'; got {on_unreadable!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    reader, device = ImageReader(model.image_processor), model.device
    if num_workers is None:
        num_workers = 1 if device.type == "cpu" else min(_MOST_WORKERS, os.cpu_count() or 1)
    fill_up = device.type != "cpu" and len(images) > batch_size
    rows: list[int] = []
    pixels: list[torch.Tensor] = []
    unreadable: dict[int, UnreadableImageError] = {}
    for row, read in enumerate(_read_ahead(reader, images, num_workers, 2 * batch_size)):
        if isinstance(read, UnreadableImageError):
            if on_unreadable == "error":
                raise UnreadableImageError(f"images[{row}]: {read}") from read
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
    """All images in order; up to `ahead` of them are read before the consumer needs them."""
    lock = Lock()

    def read(row: int) -> torch.Tensor | UnreadableImageError:
        image = images[row]
        try:
            if isinstance(image, Image.Image):
                with lock:  # the list may contain it twice, and PIL decodes an opened file at its first use
                    levels = np.array(load_image(image))
                return reader.resize(levels)
            return reader.read(image)
        except UnreadableImageError as error:
            return error

    if num_workers == 0:
        yield from map(read, range(len(images)))
        return
    with ThreadPoolExecutor(num_workers, thread_name_prefix="read-images") as pool:
        waiting: deque[Future[torch.Tensor | UnreadableImageError]] = deque()
        try:
            for row in range(len(images)):
                waiting.append(pool.submit(read, row))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also if the consumer stops early
            for future in waiting:
                future.cancel()


def _fetch(batch: ImageBatch) -> ImageBatch:
    return batch._replace(values=_finite(batch.values[: len(batch.rows)].float().cpu(), batch.rows))


def _finite(embeddings: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """The embeddings (images, attributes, dim) of some rows, if no number is NaN or infinite."""
    # both ends are finite if all numbers are, and are ten times faster to find than isfinite of each number
    if embeddings.numel() and not all(torch.isfinite(end) for end in embeddings.aminmax()):
        place = int(torch.isfinite(embeddings).flatten(1).all(dim=1).logical_not().nonzero()[0])
        raise ValueError(
            f"the embedding of images[{rows[place]}] is NaN or infinite: try a higher precision, such as float32"
        )
    return embeddings


@singledispatch  # `data/decoded_images.py` registers the columns of a split
def as_sequence(images: ImageInput | Sequence[ImageInput]) -> Sequence[ImageInput]:
    """A list of the image if it is a single one; a column of a data set is returned as it is, and read lazily.

    Raises:
        TypeError: for an open file, and for what has no order or length, such as a generator.
    """
    if isinstance(images, (str, PathLike, bytes, dict, Image.Image)):
        return [images]
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, IOBase):
        raise TypeError("images must be an image or a list of images; got an open file, pass its path or file.read()")
    if not isinstance(images, Sized) or isinstance(images, Set | ValuesView):
        hint = ", pass list(images)" if isinstance(images, Iterable) else ""
        raise TypeError(f"images must be an image or a list of images; got {type(images).__name__}{hint}")
    return images
