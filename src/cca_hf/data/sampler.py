"""Batches of P values times K images of one attribute after the other.

One pass of CCA embeds an image under all attributes, so every batch yields triplets of every attribute. What a batch
must guarantee is pairs: it is built for one attribute, from P of its values with K images each (P x K sampling:
Hermans et al., 2017, arXiv 1703.07737). What is our own:

- every value of every drawn attribute is reached in every epoch. A value with one image makes no pair; it is dealt out
  over the epoch as a negative;
- an epoch is a pure function of (seed, epoch), and so is every picture's augmentation, through the seed in its
  `SampleKey`: a batch is the same whatever the number of workers and ranks, and after a resume in its middle;
- told what a model confuses (`hard_negatives.py`), it draws that together: values with those that are like them, in
  the same rounds, and images that lie with another value. The epoch is then a function of that as well.
"""

import logging
import math
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from .hard_negatives import HardNegatives

logger = logging.getLogger(__name__)


class SampleKey(NamedTuple):
    """One picture of a batch: its row in the data set, and the seed of its augmentation."""

    index: int  # type: ignore[assignment]  # tuples have a method of this name, which nobody needs here
    seed: int


class AttributeBatchSampler(Sampler[list[SampleKey]]):
    """Yields batches of `SampleKey`s, all of the same size, no image twice in one.

    This is the stream of all processes together: accelerate's `BatchSamplerShard` deals the batches out to the ranks.

    A batch takes up to P values of its attribute, in rounds over all values. With fewer values than that, each gives
    more images; with fewer images than asked for, all it has. Places that are left go to images of the whole set, in
    rounds as well. A set of fewer labelled images than `batch_size` makes smaller batches.

    Args:
        labels: (images, attributes) integers, -1 where not labelled.
        batch_size: images of a batch, on one process.
        images_per_value: K, at least 2.
        values_per_batch: P. Default: as many as fill a batch. With fewer, images of the whole set fill it up: the
            batch then looks more like the data, which the retrieval of frequent values is the better for.
        batches_per_epoch: of all processes together. Default: enough to draw as many images as are labelled.
        attribute_weights: share of the batches built for each attribute; 0 leaves it to the chance of the other
            attributes' batches. Default: equal.
        hard_share: of the places that the values of a batch leave, how many go to `hard_negatives.images`.

    Raises:
        ValueError: if no attribute can give a triplet, or `batches_per_epoch` is too few to reach every value.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        batch_size: int,
        images_per_value: int,
        values_per_batch: int | None = None,
        seed: int = 0,
        batches_per_epoch: int | None = None,
        attribute_weights: Sequence[float] | None = None,
        hard_share: float = 0.5,
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
        if batch_size > len(self._labelled):
            logger.warning(
                "batch_size %d is more than the %d labelled images: using %d",
                batch_size,
                len(self._labelled),
                len(self._labelled),
            )
        self.batch_size = min(batch_size, len(self._labelled))
        if self.batch_size < 2 * images_per_value:
            raise ValueError(
                f"a batch needs two values of {images_per_value} images each; got batch_size {batch_size} "
                f"and {len(self._labelled)} labelled images"
            )
        if values_per_batch is not None and values_per_batch < 2:
            raise ValueError(f"values_per_batch must be at least 2, or there are no negatives; got {values_per_batch}")
        # places of a batch that its attribute's values have a claim to
        self._claimed = min(self.batch_size, images_per_value * (values_per_batch or self.batch_size))
        self.drop_last = False  # read by accelerate: the last batches are evened out over the ranks, none is dropped
        self.images_per_value = images_per_value
        self.seed = seed
        self.epoch = 0
        self.hard_negatives: HardNegatives | None = None  # of the epoch that is drawn next
        self.hard_share = hard_share
        self._labels = labels
        self._values = [_Values.of(column) for column in labels.T]
        self._alone = _images_alone(labels)
        self._batches = self._batches_per_attribute(batches_per_epoch, attribute_weights)

    @property
    def sampler(self) -> "AttributeBatchSampler":
        """Itself: where accelerate looks for `set_epoch` once it has wrapped a batch sampler for several ranks."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Every epoch has batches of its own. The Trainer and accelerate call this before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return int(self._batches.sum())

    def __iter__(self) -> Iterator[list[SampleKey]]:
        draw = np.random.default_rng([self.seed, self.epoch, 0])
        # a stream of its own, so that the augmentation does not change with how a batch was put together
        augmentation = np.random.default_rng([self.seed, self.epoch, 1])
        order = draw.permutation(np.repeat(np.arange(len(self._batches)), self._batches))
        hard = self.hard_negatives
        likeness = [None] * len(self._values) if hard is None or hard.values is None else hard.values
        rounds = [_Rounds(values, draw, like) for values, like in zip(self._values, likeness, strict=True)]
        alone = np.array_split(draw.permutation(self._alone), len(order))
        rest = _Fillers(self._labelled, draw)
        for attribute, singles in zip(order, alone, strict=True):
            places = min(self._claimed, self.batch_size - len(singles))
            batch = rounds[attribute].draw(places, self.images_per_value)
            batch = np.concatenate([batch, np.setdiff1d(singles, batch)])
            if hard is not None and hard.images is not None:
                places = int(self.hard_share * (self.batch_size - len(batch)))
                near = _images_near(hard.images[attribute], self._labels[batch, attribute])
                batch = np.concatenate([batch, draw.permutation(np.setdiff1d(near, batch))[:places]])
            batch = np.concatenate([batch, rest.draw(self.batch_size - len(batch), batch)])
            seeds = augmentation.integers(2**63, size=len(batch))
            yield [SampleKey(index, seed) for index, seed in zip(batch.tolist(), seeds.tolist(), strict=True)]

    def _batches_per_attribute(self, wanted: int | None, weights: Sequence[float] | None) -> np.ndarray:
        """(attributes,) how many batches of an epoch are built for each."""
        attributes = len(self._values)
        share = np.ones(attributes) if weights is None else np.asarray(weights, dtype=np.float64)
        if share.shape != (attributes,) or not np.isfinite(share).all() or (share < 0).any() or share.sum() == 0:
            raise ValueError(
                f"attribute_weights must be {attributes} numbers, none negative, not all 0; got {weights}"
            )
        gives_triplets = np.array([values.give_triplets for values in self._values])
        share = np.where(gives_triplets, share, 0.0)
        if share.sum() == 0:
            raise ValueError(
                "no attribute (of those with a weight) has a value with two images and another value beside it"
            )
        # images alone with their value take a quarter of a batch at most; the values with pairs get the other places
        singles = math.ceil(len(self._alone) / max(self.batch_size // 4, 1))
        slots = min(self._claimed, self.batch_size - math.ceil(len(self._alone) / max(singles, 1)))
        least = np.array(
            [
                math.ceil(values.number / max(min(slots // self.images_per_value, values.number), 1)) if weight else 0
                for values, weight in zip(self._values, share, strict=True)
            ]
        )
        needed = max(int(least.sum()), singles)
        total = max(math.ceil(len(self._labelled) / self.batch_size), needed) if wanted is None else wanted
        if total < needed:
            raise ValueError(f"batches_per_epoch={wanted} cannot reach every value of every attribute; {needed} can")
        batches = least.copy()
        for _ in range(total - int(least.sum())):
            # to whoever is furthest below its share
            batches[np.argmax(np.where(share > 0, total * share / share.sum() - batches, -np.inf))] += 1
        return batches


class _Values(NamedTuple):
    """The values of one attribute that have at least two images."""

    ids: np.ndarray  # (count,)
    images: np.ndarray  # rows, value after value
    starts: np.ndarray  # (count + 1,) where each value's rows start
    give_triplets: bool

    @property
    def number(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def of(cls, labels: np.ndarray) -> "_Values":
        order = np.argsort(labels, kind="stable")
        counts = np.bincount(labels[labels >= 0])
        order = order[len(labels) - counts.sum() :]  # -1 sorts first
        several = counts >= 2
        sizes = counts[several]
        return cls(
            ids=np.flatnonzero(several),
            images=order[np.repeat(several, counts)],
            starts=np.concatenate([[0], np.cumsum(sizes)]),
            give_triplets=bool(several.any() and (counts > 0).sum() > 1),
        )


class _Rounds:
    """Deals the values of an attribute in rounds, and the images of each value in rounds, in random order.

    With the likeness of all its values, a batch takes the values of the round that are most like its first.
    """

    def __init__(self, values: _Values, random: np.random.Generator, likeness: np.ndarray | None = None) -> None:
        self.random = random
        self.likeness = None if likeness is None else likeness[np.ix_(values.ids, values.ids)]
        self.count = values.number
        self.starts = values.starts
        self.sizes = np.diff(values.starts)
        # random order inside each value: sorting by value, then by a random number
        of_value = np.repeat(np.arange(values.number), self.sizes)
        self.images = values.images[np.argsort(of_value + random.random(len(of_value)))]
        self.next = np.zeros(values.number, dtype=np.int64)
        self.queue: list[int] = []

    def draw(self, places: int, images_per_value: int) -> np.ndarray:
        """At most `places` different images."""
        planned = min(places // images_per_value, self.count)
        # one value alone leaves room for its negatives
        share, extra = divmod(places, max(planned, 2))
        share = max(share, images_per_value)
        drawn: list[np.ndarray] = []
        taken: dict[int, None] = {}  # in the order in which they were
        while places and len(taken) < self.count:
            if not self.queue:
                # a new round; what this batch has already comes last in it, that is, in later batches
                fresh = self.random.permutation(self.count).tolist()
                fresh.sort(key=taken.__contains__)
                self.queue = fresh[::-1]
            place = self._next_place(taken)
            value = self.queue[place]
            size = int(self.sizes[value])
            wanted = share + (len(taken) < extra) if len(taken) < planned else images_per_value
            if places < min(size, images_per_value):
                break
            self.queue.pop(place)
            taken[value] = None
            drawn.append(self._next_images(value, min(wanted, size, places)))
            places -= len(drawn[-1])
        return np.concatenate(drawn) if drawn else np.empty(0, dtype=np.int64)

    def _next_place(self, taken: Collection[int]) -> int:
        """Where in the queue the next value of a batch stands."""
        last = len(self.queue) - 1
        if self.likeness is None or not taken:
            return last
        likeness = self.likeness[next(iter(taken)), self.queue]
        likeness[np.isin(self.queue, list(taken))] = -np.inf
        return last - int(np.argmax(likeness[::-1])) if likeness.max() > -np.inf else last

    def _next_images(self, value: int, wanted: int) -> np.ndarray:
        own = self.images[self.starts[value] : self.starts[value + 1]]
        start = self.next[value]
        self.next[value] += wanted
        if self.next[value] <= len(own):
            return own[start : start + wanted].copy()
        # the round ends: its last images, then the first of a new round, which has the last ones at its end
        last, others = own[start:].copy(), self.random.permutation(own[:start])
        own[:] = np.concatenate([others, last])
        self.next[value] = wanted - len(last)
        return np.concatenate([last, own[: self.next[value]]])


class _Fillers:
    """Deals all labelled images in rounds, for the places that the values of a batch leave."""

    def __init__(self, images: np.ndarray, random: np.random.Generator) -> None:
        self.random = random
        self.images = images
        self.round = random.permutation(images)
        self.next = 0

    def draw(self, places: int, batch: np.ndarray) -> np.ndarray:
        """`places` different images that are not in `batch`; there must be as many."""
        drawn = self._from_this_round(places, batch)
        if len(drawn) < places:
            self.round = self.random.permutation(self.images)
            self.next = 0
            batch = np.concatenate([batch, drawn])
            drawn = np.concatenate([drawn, self._from_this_round(places - len(drawn), batch)])
        return drawn

    def _from_this_round(self, places: int, batch: np.ndarray) -> np.ndarray:
        head = self.round[self.next : self.next + places + len(batch)]
        found = np.flatnonzero(~np.isin(head, batch))[:places]
        # those passed over are in this very batch: they have had their turn
        self.next += int(found[-1]) + 1 if len(found) == places > 0 else len(head) if places else 0
        return head[found]


def _images_alone(labels: np.ndarray) -> np.ndarray:
    """Rows that are the only image of one of their values."""
    rows: list[np.ndarray] = []
    for column in labels.T:
        labelled = column[column >= 0]
        alone = np.bincount(labelled) == 1 if len(labelled) else np.empty(0, dtype=bool)
        known = np.flatnonzero(column >= 0)
        rows.append(known[alone[labelled]])
    return np.unique(np.concatenate(rows))


def _images_near(images: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rows that lie near any of `values` (-1 = none) and have another; `images` are those of each value."""
    near = images[np.unique(values[values >= 0])]
    return np.unique(near[near >= 0])
