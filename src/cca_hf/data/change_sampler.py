"""Batches for the training of manipulation: references, and images that differ from them in one attribute or two."""

import logging
import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from .sampler import SampleKey
from .value_changes import Changes, draw_targets, enumerate_changes

logger = logging.getLogger(__name__)

_TWO_CHANGES = 0.25  # share of the references whose target differs in two attributes
_FOUR = 4  # a reference, its target, and an image with the labels of each


class ChangeBatchSampler(Sampler[list[SampleKey]]):
    """Yields batches of `SampleKey`s, in which the images 2k and 2k + 1 are mostly a reference and its target.

    A target differs from its reference in exactly one attribute, for a quarter of the references in two. A batch has a
    quarter of references with their targets; in its second half follow, for each of these pairs, another image with
    the labels of the reference and another one with those of the target, so that every triplet has a positive. Images
    without such a twin are replaced by random images, so that images without a target are trained on too.

    All possible changes are equally likely, so rare values are targets as often as frequent ones. An epoch has about
    as many images as the data set, and is a pure function of (seed, epoch).

    Args:
        labels: (images, attributes) integers, -1 where not labelled.
        batch_size: images of a batch on one process, rounded down to a multiple of 4.
        seed: seed of the order and of the augmentation.

    Raises:
        ValueError: if no two images differ in one attribute alone, or the batch has fewer than 4 images.
    """

    def __init__(self, labels: np.ndarray, *, batch_size: int, seed: int = 0) -> None:
        self.labels = np.asarray(labels)
        self._labelled = np.flatnonzero((self.labels >= 0).any(axis=1))
        self.batch_size = batch_size - batch_size % _FOUR
        if self.batch_size < _FOUR:
            raise ValueError(f"a batch needs at least {_FOUR} images; got batch_size {batch_size}")
        if not len(enumerate_changes(self.labels, max_queries=1)):
            raise ValueError(
                "no two training images differ in exactly one attribute, so no change of a value can be learned"
            )
        self.seed = seed
        self.epoch = 0
        self.drop_last = False  # accelerate reads it: the last batches are evened out over the ranks, none is dropped
        self._twins = _Twins(self.labels)

    @property
    def sampler(self) -> "ChangeBatchSampler":
        """This object: accelerate looks here for `set_epoch` when it has wrapped a batch sampler for several ranks."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch whose batches are drawn next. The Trainer and accelerate call this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self._labelled) / self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        draw = np.random.default_rng([self.seed, self.epoch, 0])
        # a separate generator: the augmentation must not depend on how a batch was assembled
        augmentation = np.random.default_rng([self.seed, self.epoch, 1])
        pairs = self._pairs(draw)
        for batch in np.split(pairs, len(self)):
            twins = self._twins.draw(batch.ravel(), draw)
            others = draw.choice(self._labelled, len(twins))
            rows = np.concatenate([batch.ravel(), np.where(twins >= 0, twins, others)])
            seeds = augmentation.integers(2**63, size=len(rows))
            yield [SampleKey(index, seed) for index, seed in zip(rows.tolist(), seeds.tolist(), strict=True)]

    def _pairs(self, draw: np.random.Generator) -> np.ndarray:
        """(pairs of an epoch, 2) rows of references and targets, in random order."""
        wanted = len(self) * self.batch_size // _FOUR
        two = self._changes(2, round(_TWO_CHANGES * wanted), draw)
        one = self._changes(1, wanted - len(two), draw)
        changes = Changes.concatenate([one, two])
        # fewer possible changes than an epoch has places: they are repeated
        changes = changes.select(draw.permutation(np.resize(draw.permutation(len(changes)), wanted)))
        return np.stack([changes.reference, draw_targets(changes, self.labels, draw)], axis=1)

    def _changes(self, num_changes: int, count: int, draw: np.random.Generator) -> Changes:
        seed = int(draw.integers(2**31))
        if num_changes > self.labels.shape[1] or not count:
            return enumerate_changes(self.labels[:0])
        return enumerate_changes(self.labels, num_changes=num_changes, max_queries=count, seed=seed)


class _Twins:
    """Images with the same labels."""

    def __init__(self, labels: np.ndarray) -> None:
        _, group, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
        group = group.reshape(-1)  # numpy 2.0 keeps the number of dimensions
        self.order = np.argsort(group, kind="stable")
        starts = np.cumsum(counts) - counts
        self.start, self.size = starts[group], counts[group]
        self.place = np.empty(len(group), dtype=np.int64)  # in its group
        self.place[self.order] = np.arange(len(group)) - self.start[self.order]

    def draw(self, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """For each row another image with its labels; -1 if there is none."""
        size = self.size[rows]
        step = 1 + random.integers(np.maximum(size - 1, 1))
        return np.where(size > 1, self.order[self.start[rows] + (self.place[rows] + step) % size], -1)
