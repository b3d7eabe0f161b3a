"""Entanglement: how much of attribute b do the embeddings conditioned on attribute a tell?

A simple reader (`readers.py`) reads b from the embeddings under a, for pictures that it has not seen, and is told a's
value beside them. Its balanced accuracy E_ab is set between two others,

    M_ab = (E_ab - F_ab) / (U_ab - F_ab)

F_ab: what a's value alone tells of b, since attributes may be correlated in the labels. U_ab: what the unconditioned
features and a's value tell. So 0 is an embedding that holds nothing of b beyond its own attribute, and 1 one that has
kept all that the features held. On the diagonal nothing is told and F is chance. Where U_ab - F_ab < 0.1 there is
nothing to be entangled with: M_ab is undefined and part of no mean. M_ab is not clipped: where there is nothing to
read it falls on either side of 0, and the mean stays unbiased.

The *entanglement score* is the mean off the diagonal, the diagonal is the *informativeness*: above 1 where training
taught more than the features held. `docs/entanglement.md` says how to read it.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cca_hf.evaluation.retrieval.candidates import to_numpy

from .readers import (
    FOLDS,
    Reader,
    balanced_accuracy,
    guess_from_label,
    make_folds,
    members,
    read_linear,
    read_neighbours,
)
from .result import EntanglementResult, ReaderEntanglement, mean_off_diagonal

# labels (N,) and the known values (N,) -> guesses (N,), of which the mean is taken
_Guess = Callable[[NDArray[np.int64], NDArray[np.int64]], list[NDArray[np.int64]]]

logger = logging.getLogger(__name__)

LEAST_RANGE = 0.1  # of balanced accuracy, between floor and ceiling
LEAST_IMAGES = 2 * FOLDS  # of a value that is read
_BOOTSTRAP_SAMPLES = 200
_CHANCE_DRAWS = 8  # of neighbours by chance, for the floor of that reader
_WIDEST = 256  # dimensions of the features that the linear reader is given


def entanglement(
    embeddings: NDArray | torch.Tensor,
    labels: NDArray | torch.Tensor,
    attributes: Mapping[str, Sequence[str]] | Sequence[str],
    features: NDArray | torch.Tensor,
    *,
    groups: ArrayLike | None = None,
    max_images: int = 3000,
    seed: int = 0,
) -> EntanglementResult:
    """Reads every attribute from the embeddings under every attribute; see the head of the file.

    Args:
        embeddings: (N, A, D), one for each attribute in the order of `attributes`; or (N, D), the same for all.
        labels: (N, A) value ids, -1 = not labelled. A pair of attributes is measured on the pictures that have both;
            values with fewer than `LEAST_IMAGES` of them are not read.
        attributes: attribute names, or attribute name -> value names.
        features: (N, F) what is known of the pictures unconditionally; `embed_with_features` gives it.
        groups: (N,) ids of near copies, which never stand on both sides of a reader; -1 = none.
        max_images: of more pictures as many are drawn by chance, whole groups; the cost grows with their number.

    Raises:
        ValueError: shapes that do not fit each other, less than two attributes, or vectors that are not finite.
        ImportError: where scikit-learn is missing.
    """
    names = tuple(attributes)
    pictures = _Pictures.checked(embeddings, labels, features, groups, len(names))
    pictures = pictures.at_most(max_images, seed)
    folds = make_folds(pictures.groups, seed)
    samples = _bootstrap(pictures.groups, seed)
    narrow = pictures._replace(features=_principal_components(pictures.features))
    readers = {
        "linear": _measure(narrow, folds, samples, read_linear, lambda b, a: [guess_from_label(b, folds, a)]),
        "neighbours": _measure(pictures, folds, samples, read_neighbours, _by_chance(folds, seed)),
    }
    values = {name: len(_read_values(pictures.labels[:, column])) for column, name in enumerate(names)}
    for name, count in values.items():
        if count < 2:
            logger.warning("%r has %d values with %d pictures or more: it cannot be read", name, count, LEAST_IMAGES)
    return EntanglementResult(names, readers, len(pictures.labels), values)


class _Pictures(NamedTuple):
    """Embeddings (N, A, D) or (N, D), labels (N, A), features (N, F), groups (N,) with -1 = none."""

    embeddings: NDArray
    labels: NDArray[np.int64]
    features: NDArray
    groups: NDArray[np.int64]

    @classmethod
    def checked(
        cls, embeddings: object, labels: object, features: object, groups: object | None, attributes: int
    ) -> "_Pictures":
        vectors, ids, unconditioned = to_numpy(embeddings), to_numpy(labels), to_numpy(features)
        count = len(ids)
        if attributes < 2:
            raise ValueError(f"entanglement is between attributes: give at least two, got {attributes}")
        if ids.shape != (count, attributes):
            raise ValueError(f"labels must have shape (images, {attributes}), got {ids.shape}")
        if vectors.ndim not in (2, 3) or len(vectors) != count or vectors.ndim == 3 and vectors.shape[1] != attributes:
            raise ValueError(
                f"embeddings must have shape ({count}, {attributes}, dim), or ({count}, dim) for one space; "
                f"got {vectors.shape}"
            )
        if unconditioned.ndim != 2 or len(unconditioned) != count:
            raise ValueError(f"features must have shape ({count}, dim), got {unconditioned.shape}")
        for name, array in (("embeddings", vectors), ("features", unconditioned)):
            if not np.isfinite(array).all():
                raise ValueError(f"{name} are not finite")
        members = np.full(count, -1) if groups is None else to_numpy(groups)
        if members.shape != (count,):
            raise ValueError(f"groups must have shape ({count},), got {members.shape}")
        return cls(vectors, ids.astype(np.int64), unconditioned, members.astype(np.int64))

    def at_most(self, count: int, seed: int) -> "_Pictures":
        """Whole groups by chance, as many as fit into `count` pictures, in their old order."""
        if len(self.labels) <= count:
            return self
        member, sizes = members(self.groups)
        order = np.random.default_rng(seed).permutation(len(sizes))
        drawn = np.zeros(len(sizes), dtype=bool)
        drawn[order[np.cumsum(sizes[order]) <= count]] = True
        rows = np.flatnonzero(drawn[member])
        return _Pictures(*(array[rows] for array in self))

    def under(self, attribute: int) -> NDArray:
        """(N, D)"""
        return self.embeddings if self.embeddings.ndim == 2 else self.embeddings[:, attribute]

    def to_read(self, asked: int, read: int) -> NDArray[np.int64]:
        """(N,) labels of `read`, -1 for pictures without a label of `asked` or with a value too rare."""
        labels = np.where(self.labels[:, asked] >= 0, self.labels[:, read], -1)
        return np.where(np.isin(labels, _read_values(labels)), labels, -1)


def _measure(
    pictures: _Pictures, folds: NDArray[np.int64], samples: NDArray[np.float64], read: Reader, guess: _Guess
) -> ReaderEntanglement:
    """`read` on every pair; `guess` are the readers of the row's value alone, whose mean is the floor."""
    count = pictures.labels.shape[1]
    figures = np.full((3, 1 + len(samples), count, count), math.nan)  # of all pictures, then of each bootstrap sample
    weights = np.concatenate([np.ones((1, samples.shape[1])), samples])
    for asked in range(count):
        for column in range(count):
            labels = pictures.to_read(asked, column)
            values = len(_read_values(labels))
            if values < 2:
                continue
            known = None if asked == column else pictures.labels[:, asked]
            floor = np.full(len(labels), 1 / values)
            if known is not None:
                floor = np.mean([told == labels for told in guess(labels, known)], axis=0)
            right = (
                read(pictures.under(asked), labels, folds, known) == labels,
                floor,
                read(pictures.features, labels, folds, known) == labels,
            )
            for place, each in enumerate(right):
                figures[place, :, asked, column] = balanced_accuracy(each, labels, weights)
    accuracy, floors, ceiling = figures
    measurable = ceiling[0] - floors[0] >= LEAST_RANGE  # False where NaN
    matrices = np.full_like(accuracy, math.nan)
    parts = accuracy - floors, ceiling - floors
    matrices[:, measurable] = parts[0][:, measurable] / parts[1][:, measurable]
    return ReaderEntanglement(
        accuracy=accuracy[0],
        floor=floors[0],
        ceiling=ceiling[0],
        matrix=matrices[0],
        spread=matrices[1:].std(axis=0),
        score_spread=float(np.std([mean_off_diagonal(matrix) for matrix in matrices[1:]])),
    )


def _principal_components(features: NDArray) -> NDArray[np.float32]:
    """(N, F) -> (N, at most _WIDEST), without a look at any label.

    A linear reader of a thousand pictures reads these better than the thousands of channels that a backbone may have
    (on `set_cards` 1.00 against 0.99), which makes the ceiling, and takes a tenth of the time.
    """
    centred = np.asarray(features, dtype=np.float32) - features.mean(axis=0, dtype=np.float32)
    if centred.shape[1] <= _WIDEST:
        return centred
    *_, directions = np.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:_WIDEST].T


def _by_chance(folds: NDArray[np.int64], seed: int) -> _Guess:
    """Neighbours drawn by chance among the pictures that share the known value: what that value alone votes for."""
    random = np.random.default_rng(seed)

    def guess(labels: NDArray[np.int64], known: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        draws = (random.standard_normal((len(labels), 16)) for _ in range(_CHANCE_DRAWS))
        return [read_neighbours(places, labels, folds, known) for places in draws]

    return guess


def _bootstrap(groups: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """(samples, N) how often each picture is in each bootstrap sample; groups are drawn whole."""
    member, sizes = members(groups)
    shares = np.full(len(sizes), 1 / len(sizes))
    return np.random.default_rng(seed).multinomial(len(sizes), shares, _BOOTSTRAP_SAMPLES)[:, member].astype(float)


def _read_values(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The values with pictures enough to be read."""
    return np.flatnonzero(np.bincount(labels[labels >= 0]) >= LEAST_IMAGES)
