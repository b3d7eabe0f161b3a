"""Batches of questions: what an epoch contains, which negatives are allowed, and that a seed decides everything."""

import numpy as np
import pytest

from cca_hf.data.outfit_sampler import OutfitBatchSampler

CATEGORIES = np.array([0, 1, 2] * 10)
OUTFITS = [[0, 1, 2], [0, 4, 5], [6, 7], [9, 10, 11, 12], [15, 16, 17]]


def make(**changes) -> OutfitBatchSampler:
    settings = {"batch_size": 4, "num_negatives": 2, "num_random_negatives": 3, "seed": 1} | changes
    return OutfitBatchSampler(OUTFITS, CATEGORIES, **settings)


def test_an_epoch_asks_for_each_item_once() -> None:
    batches = list(make())
    assert len(batches) == len(make()) == 4 and all(len(batch) == 4 for batch in batches)
    keys = [key for batch in batches for key in batch]
    asked = [(frozenset(key.items), key.candidates[0]) for key in keys]
    expected = {(frozenset(outfit) - {row}, row) for outfit in OUTFITS for row in outfit}
    assert set(asked[:15]) == expected and asked[15] == asked[0]  # the last batch is filled up


def test_negatives() -> None:
    """Never an item that stands in a training outfit with an item of the question; only items of training outfits."""
    joined = {row: {other for outfit in OUTFITS if row in outfit for other in outfit} for row in range(30)}
    kinds = []
    for key in (key for batch in make() for key in batch):
        answer, *negatives = key.candidates
        same = [row for row in negatives[:2] if CATEGORIES[row] == CATEGORIES[answer]]
        assert not set(negatives) & set().union({answer}, *(joined[row] for row in key.items))
        assert len(set(negatives)) == len(negatives) and set(negatives) <= {row for o in OUTFITS for row in o}
        kinds.append(len(same))
    assert set(kinds) == {2}
    only = next(iter(make(num_negatives=0, num_random_negatives=2, batch_size=15)))
    assert {len(key.candidates) for key in only} == {3}


def test_few_negatives() -> None:
    """A category has fewer items than negatives are asked for, or none that is allowed."""
    keys = [key for batch in make(num_negatives=9, num_random_negatives=0) for key in batch]
    sizes = {key.candidates[0]: len(key.candidates) - 1 for key in keys}
    assert sizes[6] == 4  # the items 0, 9, 12 and 15 of its category
    alone = OutfitBatchSampler([[0, 1], [3, 4]], np.array([0, 1, 0, 2, 1]), batch_size=4, num_negatives=1)
    assert {key.candidates for batch in alone for key in batch} == {(0,), (1, 4), (3,), (4, 1)}


def test_a_seed_and_an_epoch_decide() -> None:
    first, same, other = make(), make(), make(seed=2)
    assert list(first) == list(first) == list(same) != list(other)
    same.set_epoch(1)
    assert list(first) != list(same)


@pytest.mark.parametrize(
    ("outfits", "negatives", "message"),
    [
        ([[0, 1], [2]], 1, "outfit 1 has 1 item: without it, nothing is left to complete"),
        ([[0, 0]], 1, "outfit 0 has 1 item"),
        ([], 1, "there are no training outfits"),
        ([[0, 1]], 0, "needs negatives"),
    ],
)
def test_wrong_outfits(outfits: list[list[int]], negatives: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OutfitBatchSampler(outfits, CATEGORIES, batch_size=2, num_negatives=negatives)
