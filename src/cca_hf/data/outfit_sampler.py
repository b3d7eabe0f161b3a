"""Batches of questions for outfit completion: an outfit without one item, that item, and items that do not belong.

An epoch asks for each item of each training outfit once. It is a pure function of (seed, epoch).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class OutfitKey(NamedTuple):
    """Rows of the items of an outfit, and of the candidates: first the item that was left out, then negatives."""

    items: tuple[int, ...]
    candidates: tuple[int, ...]


class OutfitBatchSampler(Sampler[list[OutfitKey]]):
    """Yields batches of `OutfitKey`s, all of the same size.

    The sampler yields the batches of all processes; accelerate's `BatchSamplerShard` distributes them over the ranks.
    A negative is an item of the training outfits that stands in no training outfit with an item of the question. If a
    category has too few, the question has fewer negatives.

    Args:
        outfits: rows of the items of each training outfit, at least two.
        categories: (all items,) ids.
        batch_size: questions of a batch, on one process.
        num_negatives: negatives of the category of the item that was left out.
        num_random_negatives: negatives of any category.
        seed: seed of the order and of the negatives.

    Raises:
        ValueError: for an outfit of fewer than two items, no outfit, or no negative.
    """

    def __init__(
        self,
        outfits: Sequence[Sequence[int]],
        categories: np.ndarray,
        *,
        batch_size: int,
        num_negatives: int,
        num_random_negatives: int = 0,
        seed: int = 0,
    ) -> None:
        if num_negatives + num_random_negatives < 1:
            raise ValueError("the outfit ranking loss needs negatives: set num_negatives or num_random_negatives")
        self.outfits = [tuple(dict.fromkeys(int(row) for row in outfit)) for outfit in outfits]
        for index, outfit in enumerate(self.outfits):
            if len(outfit) < 2:
                raise ValueError(f"outfit {index} has {len(outfit)} item: without it, nothing is left to complete")
        if not self.outfits:
            raise ValueError("there are no training outfits")
        rows = np.unique([row for outfit in self.outfits for row in outfit])
        self._pools = {category: rows[categories[rows] == category] for category in np.unique(categories[rows])}
        self._rows = rows
        self._categories = categories
        self._joined: dict[int, set[int]] = {row: set() for row in rows.tolist()}
        for outfit in self.outfits:
            for row in outfit:
                self._joined[row].update(outfit)
        self._questions = [(index, row) for index, outfit in enumerate(self.outfits) for row in outfit]
        self.batch_size = min(batch_size, len(self._questions))
        self.num_negatives, self.num_random_negatives = num_negatives, num_random_negatives
        self.seed = seed
        self.epoch = 0
        self.drop_last = False  # accelerate reads it

    @property
    def sampler(self) -> "OutfitBatchSampler":
        """This object: accelerate looks here for `set_epoch` when it has wrapped a batch sampler for several ranks."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch whose batches are drawn next. The Trainer and accelerate call this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._questions) // self.batch_size)

    def __iter__(self) -> Iterator[list[OutfitKey]]:
        draw = np.random.default_rng([self.seed, self.epoch])
        order = draw.permutation(len(self._questions))
        # the last batch is filled up with the first questions
        for places in np.resize(order, (len(self), self.batch_size)).tolist():
            yield [self._key(*self._questions[place], draw) for place in places]

    def _key(self, outfit: int, answer: int, draw: np.random.Generator) -> OutfitKey:
        items = tuple(row for row in self.outfits[outfit] if row != answer)
        excluded = {answer}.union(*(self._joined[row] for row in items))
        same = _draw(self._pools[self._categories[answer]], excluded, self.num_negatives, draw)
        others = _draw(self._rows, excluded.union(same), self.num_random_negatives, draw)
        return OutfitKey(items, (answer, *same, *others))


def _draw(pool: np.ndarray, excluded: set[int], count: int, draw: np.random.Generator) -> list[int]:
    """Up to `count` different rows of the pool that are not excluded."""
    if count == 0:
        return []
    found: dict[int, None] = {}
    for row in pool[draw.integers(len(pool), size=4 * count)].tolist():  # in a large pool, few are excluded
        if row not in excluded:
            found[row] = None
    if len(found) < count:
        allowed = np.array([row for row in pool.tolist() if row not in excluded], dtype=np.int64)
        found = dict.fromkeys(draw.permutation(allowed).tolist())
    return list(found)[:count]
