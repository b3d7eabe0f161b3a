"""Embeddings of which it is known what they tell: the fixture `plant`."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest


class Planted(NamedTuple):
    """One set of pictures: their labels, vectors that tell all of them, and vectors that tell their own attribute."""

    labels: np.ndarray  # (N, A)
    features: np.ndarray  # (N, F)
    disentangled: np.ndarray  # (N, A, D)

    @property
    def entangled(self) -> np.ndarray:
        """Under every attribute all that the features tell."""
        return np.repeat(self.features[:, None], self.labels.shape[1], axis=1)


def _plant(
    count: int,
    values: tuple[int, ...],
    *,
    dim: int = 16,
    correlation: float = 0.0,
    imbalance: float = 0.0,
    missing: float = 0.0,
    seed: int = 0,
) -> Planted:
    """
    Args:
        values: of each attribute.
        correlation: share of the pictures whose value follows from the attribute before.
        imbalance: value v is drawn in proportion to (v + 1) ** -imbalance.
        missing: share of the labels that are -1; the vectors know them all the same.
    """
    random = np.random.default_rng(seed)
    labels = np.zeros((count, len(values)), dtype=np.int64)
    for column, number in enumerate(values):
        shares = (np.arange(number) + 1.0) ** -imbalance
        labels[:, column] = random.choice(number, count, p=shares / shares.sum())
        if column:
            follows = random.random(count) < correlation
            labels[follows, column] = labels[follows, column - 1] % number
    one_hot = [np.eye(number)[column] for number, column in zip(values, labels.T, strict=True)]
    everything = np.concatenate(one_hot, axis=1)

    def spread(told: np.ndarray) -> np.ndarray:
        """Told along random directions, with noise a tenth as strong."""
        return told @ random.standard_normal((told.shape[1], dim)) + 0.1 * random.standard_normal((count, dim))

    disentangled = np.stack([spread(each) for each in one_hot], axis=1)
    features = np.concatenate([spread(everything), everything], axis=1)
    labels[random.random(labels.shape) < missing] = -1
    return Planted(labels, features, disentangled)


@pytest.fixture(scope="session")
def plant() -> Callable[..., Planted]:
    """`plant(count, values, ...)` draws a set; see `_plant`."""
    return _plant
