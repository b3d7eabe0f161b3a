"""Batches of P values times K images of one attribute after the other.

P x K sampling: Hermans et al., 2017, arXiv 1703.07737. Beyond the paper, every epoch contains every value of every
attribute; a value with a single image makes no pair, and is distributed over the epoch as a negative. An epoch is a
pure function of (seed, epoch), and so is the augmentation of every image, through the seed in its `SampleKey`: a batch
is the same for any number of workers and ranks, and after a resume in the middle of an epoch.
"""

import logging
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

logger = logging.getLogger(__name__)


class SampleKey(NamedTuple):
    """One image of a batch: its row in the data set, and the seed of its augmentation."""

    index: int  # type: ignore[assignment]  # hides a method of tuple, which no caller needs
    seed: int


class AttributeBatchSampler(Sampler[list[SampleKey]]):
    """Yields batches of `SampleKey`s, all of the same size and without repeated images.

    The sampler yields the batches of all processes; accelerate's `BatchSamplerShard` distributes them over the ranks.

    A batch takes up to P values of its attribute, in rounds over all values. If the attribute has fewer values, each
    value gives more images; a value with fewer images than requested gives all it has. The remaining places are filled
    with images of the whole set, also in rounds. If the set has fewer labelled images than `batch_size`, the batches
    are smaller.

    Args:
        labels: (images, attributes) integers, -1 where not labelled.
        batch_size: images of a batch, on one process.
        images_per_value: K, at least 2.
        values_per_batch: P. Default: as many as fill a batch. With fewer, images of the whole set fill the batch, so
            that it follows the distribution of the data more closely, which improves the retrieval of frequent values.
        seed: seed of the order and of the augmentation.

    Raises:
        ValueError: if no attribute can give a triplet.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        batch_size: int,
        images_per_value: int,
        values_per_batch: int | None = None,
        seed: int = 0,
    ) -> None:
        labels = np.asarray(labels)
        if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels must be integers (images, attributes); got {labels.dtype} {labels.shape}")
        if images_per_value < 2:
            raise ValueError(
                f"images_per_value must be at least 2, or there are no positive pairs; got {images_per_value}"
            )
        if seed < 0:
            raise ValueError(f"seed must not be negative; got {seed}")
        self._labelled = np.flatnonzero((labels >= 0).any(axis=1))
        count = len(self._labelled)
        if batch_size > count:
            logger.warning("batch_size %d is more than the %d labelled images: using %d", batch_size, count, count)
        self.batch_size = min(batch_size, count)
        if self.batch_size < 2 * images_per_value:
            raise ValueError(
                f"a batch needs two values of {images_per_value} images each; got batch_size {batch_size} "
                f"and {count} labelled images"
            )
        if values_per_batch is not None and values_per_batch < 2:
            raise ValueError(f"values_per_batch must be at least 2, or there are no negatives; got {values_per_batch}")
        # places of a batch that are reserved for the values of its attribute
        self._claimed = min(self.batch_size, images_per_value * (values_per_batch or self.batch_size))
        self.drop_last = False  # accelerate reads it: the last batches are evened out over the ranks, none is dropped
        self.images_per_value = images_per_value
        self.seed = seed
        self.epoch = 0
        self._values = [_Values.of(column) for column in labels.T]
        # the rows that are the only image of one of their values
        self._alone = np.unique(np.concatenate([values.alone for values in self._values]))
        self._batches = self._batches_per_attribute()

    @property
    def sampler(self) -> "AttributeBatchSampler":
        """This object: accelerate looks here for `set_epoch` when it has wrapped a batch sampler for several ranks."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch whose batches are drawn next. The Trainer and accelerate call this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return int(self._batches.sum())

    def __iter__(self) -> Iterator[list[SampleKey]]:
        draw = np.random.default_rng([self.seed, self.epoch, 0])
        # a separate generator: the augmentation must not depend on how a batch was assembled
        augmentation = np.random.default_rng([self.seed, self.epoch, 1])
        order = draw.permutation(np.repeat(np.arange(len(self._batches)), self._batches))
        rounds = [_Rounds(values, draw) for values in self._values]
        alone = np.array_split(draw.permutation(self._alone), len(order))
        rest = _Fillers(self._labelled, draw)
        for attribute, singles in zip(order, alone, strict=True):
            places = min(self._claimed, self.batch_size - len(singles))
            batch = rounds[attribute].draw(places, self.images_per_value)
            batch = np.concatenate([batch, np.setdiff1d(singles, batch)])
            batch = rest.fill(batch, self.batch_size)
            seeds = augmentation.integers(2**63, size=len(batch))
            yield [SampleKey(index, seed) for index, seed in zip(batch.tolist(), seeds.tolist(), strict=True)]

    def _batches_per_attribute(self) -> np.ndarray:
        """(attributes,) batches of an epoch per attribute; together they have as many places as the set has images."""
        drawn = np.array([values.give_triplets for values in self._values])
        if not drawn.any():
            raise ValueError("no attribute has a value with two images and another value beside it")
        # single images of a value take at most a quarter of a batch; the values with pairs get the other places
        singles = math.ceil(len(self._alone) / max(self.batch_size // 4, 1))
        slots = min(self._claimed, self.batch_size - math.ceil(len(self._alone) / max(singles, 1)))
        counts = np.array([len(values.sizes) for values in self._values])
        at_once = np.clip(slots // self.images_per_value, 1, np.maximum(counts, 1))  # values in a batch
        batches = np.where(drawn, -(-counts // at_once), 0)
        needed = int(batches.sum())
        total = max(math.ceil(len(self._labelled) / self.batch_size), needed, singles)
        share = np.where(drawn, total / drawn.sum(), -np.inf)
        for _ in range(total - needed):
            batches[np.argmax(share - batches)] += 1  # the attribute that is furthest below its share
        return batches


class _Values(NamedTuple):
    """The values of one attribute that have at least two images."""

    images: np.ndarray  # rows, value after value
    sizes: np.ndarray  # number of rows of each value
    alone: np.ndarray  # rows of the other values, which have one image
    give_triplets: bool

    @classmethod
    def of(cls, labels: np.ndarray) -> "_Values":
        order = np.argsort(labels, kind="stable")
        counts = np.bincount(labels[labels >= 0])
        order = order[len(labels) - counts.sum() :]  # -1 sorts first
        several = counts >= 2
        return cls(
            images=order[np.repeat(several, counts)],
            sizes=counts[several],
            alone=order[np.repeat(counts == 1, counts)],
            give_triplets=bool(several.any() and (counts > 0).sum() > 1),
        )


class _Rounds:
    """Draws the values of an attribute in rounds, and the images of each value in rounds, in random order."""

    def __init__(self, values: _Values, random: np.random.Generator) -> None:
        self.random = random
        self.sizes = values.sizes
        self.count = len(self.sizes)
        self.ends = np.cumsum(self.sizes)
        # random order inside each value: sorting by value, then by a random number
        of_value = np.repeat(np.arange(self.count), self.sizes)
        self.images = values.images[np.argsort(of_value + random.random(len(of_value)))]
        self.next = np.zeros(self.count, dtype=np.int64)
        self.queue: list[int] = []

    def draw(self, places: int, images_per_value: int) -> np.ndarray:
        """At most `places` different images."""
        planned = min(places // images_per_value, self.count)
        # one value alone leaves room for its negatives
        share, extra = divmod(places, max(planned, 2))
        share = max(share, images_per_value)
        drawn: list[np.ndarray] = []
        taken: set[int] = set()
        while places and len(taken) < self.count:
            if not self.queue:
                # a new round; the values that this batch has already come last in it, that is, in later batches
                fresh = self.random.permutation(self.count).tolist()
                self.queue = sorted(fresh, key=taken.__contains__)[::-1]
            value = self.queue[-1]
            size = int(self.sizes[value])
            wanted = share + (len(taken) < extra) if len(taken) < planned else images_per_value
            if places < min(size, images_per_value):
                break
            self.queue.pop()
            taken.add(value)
            drawn.append(self._next_images(value, min(wanted, size, places)))
            places -= len(drawn[-1])
        return np.concatenate(drawn) if drawn else np.empty(0, dtype=np.int64)

    def _next_images(self, value: int, wanted: int) -> np.ndarray:
        images = self.images[self.ends[value] - self.sizes[value] : self.ends[value]]
        start = self.next[value]
        self.next[value] += wanted
        if self.next[value] <= len(images):
            return images[start : start + wanted].copy()
        # the round ends: take its last images, then the first of a new round, in which the last ones come at the end
        last, others = images[start:].copy(), self.random.permutation(images[:start])
        images[:] = np.concatenate([others, last])
        self.next[value] = wanted - len(last)
        return np.concatenate([last, images[: self.next[value]]])


class _Fillers:
    """Draws all labelled images in rounds, for the places of a batch that its values leave."""

    def __init__(self, images: np.ndarray, random: np.random.Generator) -> None:
        self.random = random
        self.images = images
        self.round = random.permutation(images)
        self.next = 0

    def fill(self, batch: np.ndarray, size: int) -> np.ndarray:
        """`batch` with other images up to `size`; there must be as many."""
        while missing := size - len(batch):
            if self.next == len(self.round):
                self.round, self.next = self.random.permutation(self.images), 0
            head = self.round[self.next : self.next + missing + len(batch)]
            found = np.flatnonzero(~np.isin(head, batch))[:missing]
            # the images that were passed over are in this batch already: they are not drawn again in this round
            self.next += int(found[-1]) + 1 if len(found) == missing else len(head)
            batch = np.concatenate([batch, head[found]])
        return batch
