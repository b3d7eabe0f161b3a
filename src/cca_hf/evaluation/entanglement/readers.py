"""Simple readers: how well can a value be predicted from vectors, for images that the reader has not seen?

The readers are evaluated by *balanced* accuracy (the mean over the values of the share of correct predictions), so
that a frequent value does not hide the others and a random reader scores 1 / values:

- linear: multinomial logistic regression on standardised vectors, with balanced values and a penalty that is selected
  on a part of the training images;
- k nearest neighbours by cosine, as in a search, with votes weighted by the rarity of their values;
- mlp: a network with one hidden layer on standardised vectors. An epoch draws all values equally often, and the number
  of epochs is selected as the penalty of the linear reader is.

All can know the value of another attribute (`known`): the linear reader and the network get it as one-hot columns, and
the neighbours are those that share it. This is conditional probing (Hewitt et al. 2021,
https://arxiv.org/abs/2109.09234). `guess_from_label` knows only that value.

Every image is predicted once, by a reader that was trained on the other folds; images of a group share a fold.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cca_hf.evaluation.arrays import BoolArray, FloatArray, IntArray, members, normalised
from cca_hf.extras import require

# vectors (N, D), labels (N,), folds (N,), known (N,) or None -> guesses (N,); see `read_linear`
Reader = Callable[[NDArray, IntArray, IntArray, IntArray | None], IntArray]
Setting = TypeVar("Setting", int, float)

FOLDS = 5
NEIGHBOURS = 10
# Inverse strengths of the L2 penalty, as in scikit-learn: larger ones detect weaker signals.
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
_MOST_ITERATIONS = 200
HIDDEN_UNITS = 128
EPOCHS = (5, 15, 40)  # of the network: it stops early where more would only learn the training images
_WEIGHT_DECAY = 1.0  # in the units of scikit-learn: divided by the images of a batch (200)


def make_folds(groups: IntArray, seed: int) -> IntArray:
    """(N,) a random fold for each image; images of a group share it, -1 = a group of its own."""
    member, sizes = members(groups)
    return np.random.default_rng(seed).permutation(len(sizes))[member] % FOLDS


def balanced_accuracy(right: NDArray, labels: IntArray, weights: FloatArray | None = None) -> FloatArray:
    """Mean over the values of the share of their images that are predicted correctly: (B,), or (1,) without weights.

    Args:
        right: (N,), 1 = correct, 0 = wrong, or the probability of correct; ignored where the label is -1.
        labels: (N,) value ids, -1 = not labelled.
        weights: (B, N) how often each image counts, for B results at once; values without an image are left out.
    """
    labelled = labels >= 0
    _, value = np.unique(labels[labelled], return_inverse=True)
    of_value = np.eye(value.max(initial=-1) + 1)[value]  # (n, values)
    counted = np.ones((1, len(value))) if weights is None else weights[:, labelled]
    totals = counted @ of_value  # (B, values)
    shares = (counted * right[labelled]) @ of_value / np.where(totals > 0, totals, np.nan)
    return np.nanmean(shares, axis=1)


def read_linear(vectors: NDArray, labels: IntArray, folds: IntArray, known: IntArray | None = None) -> IntArray:
    """The values (N,) that logistic regression predicts, -1 where the label is -1.

    Args:
        vectors: (N, D).
        labels: (N,) value ids, -1 = not labelled: neither trained on nor predicted.
        folds: (N,), from `make_folds`.
        known: (N,) value ids, at least 0 for a labelled image.

    Raises:
        ImportError: if scikit-learn is missing; the message says what to install.
    """
    require("analysis", "the linear reader needs")
    rows = _with_known(vectors, known)

    def fit(train: BoolArray, test: BoolArray, strength: float) -> IntArray:
        return _fit_and_guess(rows, labels, train, test, strength)

    def fit_each(train: BoolArray, test: BoolArray) -> Iterator[tuple[float, IntArray]]:
        return ((strength, fit(train, test, strength)) for strength in STRENGTHS)

    return _read(fit_each, fit, labels, folds, known)


def read_neighbours(vectors: NDArray, labels: IntArray, folds: IntArray, known: IntArray | None = None) -> IntArray:
    """The values that the `NEIGHBOURS` nearest images by cosine vote for; as `read_linear`."""
    rows = normalised(vectors, np.float32)
    guesses = np.full(len(labels), -1)
    for fold in range(FOLDS):
        train, test = np.flatnonzero((labels >= 0) & (folds != fold)), np.flatnonzero((labels >= 0) & (folds == fold))
        nearness = rows[test] @ rows[train].T
        if known is not None:
            nearness[known[test][:, None] != known[train]] = -np.inf
        guesses[test] = _vote(nearness, labels[train])
    return guesses


def read_mlp(vectors: NDArray, labels: IntArray, folds: IntArray, known: IntArray | None = None) -> IntArray:
    """The values that a network with one hidden layer predicts; as `read_linear`."""
    require("analysis", "the mlp reader needs")
    rows = _with_known(vectors, known)

    def train_once(train: BoolArray, test: BoolArray) -> Iterator[tuple[int, IntArray]]:
        after = enumerate(_train_and_guess(rows, labels, train, test, EPOCHS[-1]), start=1)
        return ((epochs, guesses) for epochs, guesses in after if epochs in EPOCHS)

    def train_for(train: BoolArray, test: BoolArray, epochs: int) -> IntArray:
        *_, guesses = _train_and_guess(rows, labels, train, test, epochs)
        return guesses

    return _read(train_once, train_for, labels, folds, known)


def guess_from_label(labels: IntArray, folds: IntArray, known: IntArray) -> IntArray:
    """As `read_linear`, from the known value alone: the value in which it is most over-represented."""
    guesses = np.full(len(labels), -1)
    for fold in range(FOLDS):
        train, test = (labels >= 0) & (folds != fold), (labels >= 0) & (folds == fold)
        table = np.zeros((known.max() + 1, labels.max() + 1))
        np.add.at(table, (known[train], labels[train]), 1)
        guesses[test] = (table / np.maximum(table.sum(axis=0), 1)).argmax(axis=1)[known[test]]
    return guesses


def _with_known(vectors: NDArray, known: IntArray | None) -> NDArray[np.float32]:
    """(N, D) -> (N, D + values): the known values as one-hot columns."""
    rows = np.asarray(vectors, dtype=np.float32)
    if known is None:
        return rows
    return np.concatenate([rows, np.eye(known.max() + 1, dtype=np.float32)[known]], axis=1)


def _read(
    try_each: Callable[[BoolArray, BoolArray], Iterator[tuple[Setting, IntArray]]],
    read: Callable[[BoolArray, BoolArray, Setting], IntArray],
    labels: IntArray,
    folds: IntArray,
    known: IntArray | None,
) -> IntArray:
    """The guesses with the setting that `_choose` prefers, each fold after training on the others.

    Args:
        try_each: as `guesses_of` of `_choose`.
        read: the guesses of the second images with a setting, after training on the first ones.
    """
    setting = _choose(try_each, labels, folds, known)
    if setting is None:
        assert known is not None  # without known values, a setting is always chosen
        return guess_from_label(labels, folds, known)
    guesses = np.full(len(labels), -1)
    for fold in range(FOLDS):
        train, test = (labels >= 0) & (folds != fold), (labels >= 0) & (folds == fold)
        guesses[test] = read(train, test, setting)
    return guesses


def _choose(
    guesses_of: Callable[[BoolArray, BoolArray], Iterator[tuple[Setting, IntArray]]],
    labels: IntArray,
    folds: IntArray,
    known: IntArray | None,
) -> Setting | None:
    """The most accurate setting on the second fold after training on all but the first two; of equals, the first.

    None if the known value alone is more accurate.

    Args:
        guesses_of: settings and their guesses of the second images, after training on the first ones.
    """
    train, held_out = (labels >= 0) & (folds > 1), (labels >= 0) & (folds == 1)
    truth = labels[held_out]
    tried: dict[Setting | None, IntArray] = {}
    if known is not None:
        tried[None] = guess_from_label(np.where(folds > 0, labels, -1), folds, known)[held_out]  # not the first fold
    tried.update(guesses_of(train, held_out))
    return max(tried, key=lambda setting: balanced_accuracy(tried[setting] == truth, truth)[0])


def _train_and_guess(
    rows: NDArray, labels: IntArray, train: BoolArray, test: BoolArray, epochs: int
) -> Iterator[IntArray]:
    """The guesses of a network after each epoch, which draws as many images as `train` has, of all values equally."""
    from sklearn.neural_network import MLPClassifier

    values, counts = np.unique(labels[train], return_counts=True)
    if len(values) < 2:  # nothing to distinguish
        yield np.full(int(test.sum()), values[0] if len(values) else -1)
        return
    seen, unseen = _standardised(rows, train, test)
    shares = (1 / counts / len(values))[np.searchsorted(values, labels[train])]
    random = np.random.default_rng(0)
    reader = MLPClassifier((HIDDEN_UNITS,), alpha=_WEIGHT_DECAY, learning_rate_init=0.003, random_state=0)
    for _ in range(epochs):
        drawn = random.choice(len(seen), len(seen), p=shares)
        reader.partial_fit(seen[drawn], labels[train][drawn], classes=values)
        yield reader.predict(unseen)


def _standardised(rows: NDArray, train: BoolArray, test: BoolArray) -> tuple[NDArray, NDArray]:
    """The rows of `train` and `test` with the means and spreads of `train`."""
    mean, spread = rows[train].mean(axis=0), rows[train].std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    return (rows[train] - mean) / scale, (rows[test] - mean) / scale


def _fit_and_guess(rows: NDArray, labels: IntArray, train: BoolArray, test: BoolArray, strength: float) -> IntArray:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels[train])) < 2:  # nothing to distinguish
        return np.full(int(test.sum()), labels[train][0] if train.any() else -1)
    seen, unseen = _standardised(rows, train, test)
    reader = LogisticRegression(C=strength, class_weight="balanced", max_iter=_MOST_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it still is a linear reader if it stops early
        reader.fit(seen, labels[train])
    return reader.predict(unseen)


def _vote(nearness: NDArray[np.float32], labels: IntArray) -> IntArray:
    """(T, N) similarities, -inf = no neighbour, and (N,) labels -> (T,) the value with the heaviest votes."""
    count = min(NEIGHBOURS, nearness.shape[1])
    nearest = np.argpartition(-nearness, count - 1, axis=1)[:, :count]  # (T, k)
    weight = 1 / np.maximum(np.bincount(labels), 1)  # (values,)
    votes = weight[labels[nearest]] * (np.take_along_axis(nearness, nearest, axis=1) > -np.inf)
    totals = np.zeros((len(nearness), len(weight)))
    np.add.at(totals, (np.arange(len(nearness))[:, None], labels[nearest]), votes)
    return totals.argmax(axis=1)
