"""Entanglement: how much do the embeddings conditioned on attribute a reveal about attribute b?

A simple reader (`readers.py`) that knows the value of a predicts b from the embeddings under a, for images that it has
not seen. Its balanced accuracy E_ab is compared with two others,

    M_ab = (E_ab - F_ab) / (U_ab - F_ab)

F_ab is that of a reader that knows only the value of a, because the labels of attributes may be correlated. U_ab is
that of a reader of the unconditioned features that knows the value of a. 0 means that the embedding reveals no more
about b than a's own label does, 1 that it reveals as much as the features. On the diagonal the readers know no value
and F is chance. If U_ab - F_ab < 0.1, or fewer than 200 images have both labels, M_ab is undefined and no mean
includes it. M_ab is not clipped: without entanglement it varies around 0, and the mean is unbiased.

The *entanglement score* is the mean off the diagonal. The mean of the diagonal is the *informativeness*, above 1 if
training added information to the features. `docs/entanglement.md` explains how to read them.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers.utils.logging import tqdm

from cca_hf.data.schema import AttributeDataset
from cca_hf.evaluation.arrays import (
    check_finite,
    check_positive,
    members,
    scaled,
    to_embeddings,
    to_group_ids,
    to_ids,
    to_numbers,
)
from cca_hf.evaluation.retrieval.evaluator import check_attributes, query_and_gallery
from cca_hf.extras import require
from cca_hf.models.configuration_images import did_you_mean
from cca_hf.models.encoding import pixel_batches
from cca_hf.models.images import ImageInput
from cca_hf.models.modeling_conditional import ConditionalPreTrainedModel

from .readers import (
    FOLDS,
    Reader,
    balanced_accuracy,
    guess_from_label,
    make_folds,
    read_linear,
    read_mlp,
    read_neighbours,
)
from .result import READER_NAMES, EntanglementResult, ReaderEntanglement, mean_off_diagonal

# labels (N,) and the known values (N,) -> guesses (N,), one or several, whose accuracies are averaged
_Guess = Callable[[NDArray[np.int64], NDArray[np.int64]], list[NDArray[np.int64]]]

logger = logging.getLogger(__name__)

READERS = tuple(READER_NAMES)
DEFAULT_READERS = ("linear", "neighbours")  # the others take minutes
LEAST_RANGE = 0.1  # of balanced accuracy, between floor and ceiling
LEAST_IMAGES = 2 * FOLDS  # of a value that is read
LEAST_LABELLED = 200  # images with both labels of a pair; with fewer, M_ab is mostly chance
_BOOTSTRAP_SAMPLES = 200
_CHANCE_DRAWS = 8  # random neighbourhoods for the floor of that reader
_WIDEST = 256  # dimensions of the features for the linear reader


def measure_entanglement(
    model: ConditionalPreTrainedModel,
    dataset: AttributeDataset,
    split: str = "test",
    *,
    batch_size: int = 64,
    num_workers: int | None = None,
    show_progress: bool | None = None,
    readers: Sequence[str] = DEFAULT_READERS,
    max_images: int = 3000,
    seed: int = 0,
) -> EntanglementResult:
    """[`entanglement`] of a split that the model was not trained on, or of `<split>_query` and `<split>_gallery`.

    Raises:
        KeyError: if the split does not exist; the message names the existing ones.
        ValueError: if a reader does not exist, the model does not know an attribute of the data set, or the split is
            too small; see [`check_enough_labels`].
        ImportError: if scikit-learn is missing.
        UnreadableImageError: if an image cannot be read; the message names it.
    """
    attributes = dataset.attributes
    check_readers(readers)
    check_attributes(model, attributes)
    check_enough_labels(dataset, split)
    parts = [part for part in query_and_gallery(dataset, split) if part is not None]
    embed = partial(embed_with_features, batch_size=batch_size, num_workers=num_workers, show_progress=show_progress)
    embedded = [embed(model, dataset.splits[part]["image"], list(attributes)) for part in parts]
    return entanglement_of_parts(dataset, parts, embedded, readers=readers, max_images=max_images, seed=seed)


def entanglement_of_parts(
    dataset: AttributeDataset,
    parts: Sequence[str],
    embedded: Sequence[tuple[NDArray | torch.Tensor, NDArray]],
    *,
    readers: Sequence[str] = DEFAULT_READERS,
    max_images: int = 3000,
    seed: int = 0,
) -> EntanglementResult:
    """[`entanglement`] of some splits together, with what `embed_with_features` returned for each of them."""
    embeddings, features = map(np.concatenate, zip(*embedded, strict=True))
    labels = np.concatenate([dataset.labels(part) for part in parts])
    groups = [group for part in parts if (group := dataset.groups(part)) is not None]
    joined = np.concatenate(groups) if groups else None
    settings: dict[str, Any] = {"readers": readers, "max_images": max_images, "seed": seed}
    return entanglement(embeddings, labels, dataset.attributes, features, groups=joined, **settings)


def check_enough_labels(dataset: AttributeDataset, split: str) -> None:
    """Raises `ValueError` if a split is too small to measure its entanglement; the message says what is missing."""
    parts = [part for part in query_and_gallery(dataset, split) if part is not None]
    reason = _what_is_missing(np.concatenate([dataset.labels(part) for part in parts]))
    if reason is not None:
        raise ValueError(f"the entanglement of the split {split!r} cannot be measured: {reason}")


def why_not_measured(labels: NDArray[np.int64]) -> str | None:
    """Why the entanglement of some images cannot be measured; None if it can be.

    Args:
        labels: (N, A) value ids, -1 = not labelled.
    """
    if find_spec("sklearn") is None:
        return 'scikit-learn is missing: pip install "cca_hf[analysis]"'
    return _what_is_missing(labels)


def _what_is_missing(labels: NDArray[np.int64]) -> str | None:
    """Why all figures of some images would be undefined; None if they would not be.

    One pair of attributes must have `LEAST_LABELLED` images with both labels. With 200 images the standard deviation
    of a balanced accuracy is about 0.035, a tenth of the usual range between floor and ceiling or less.
    """
    count = labels.shape[1]
    if count < 2:
        return "it is between attributes, and there is only one"
    pairs = [_to_read(labels, row, column) for row, column in np.ndindex(count, count) if row != column]
    largest = max((int((pair >= 0).sum()) for pair in pairs if len(_read_values(pair)) >= 2), default=0)
    if largest < LEAST_LABELLED:
        return (
            f"it needs {LEAST_LABELLED} images that are labelled with two attributes, with at least {LEAST_IMAGES} "
            f"of a value, and there are {largest}"
        )
    return None


@torch.inference_mode()
def embed_with_features(
    model: ConditionalPreTrainedModel,
    images: Sequence[ImageInput],
    attributes: Sequence[str],
    *,
    batch_size: int = 64,
    num_workers: int | None = None,
    show_progress: bool | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embeddings (N, A, D), L2-normalised, and the backbone's features (N, F) that the conditional layer attends to.

    The features of a level are its prefix tokens (CLS) and the mean over its cells. Raises as `model.encode`.
    """
    model = model.in_eval_mode()
    ids = torch.tensor(model.config.attribute_ids(list(attributes)), device=model.device)
    prefix = model.config.num_prefix_tokens
    show = len(images) > batch_size if show_progress is None else show_progress
    embeddings, features = [], []
    with tqdm(total=len(images), desc="Encoding", unit="image", disable=not show) as progress:
        for batch in pixel_batches(model, images, batch_size=batch_size, num_workers=num_workers):
            count = len(batch.rows)
            levels = model.get_backbone_features(batch.values[:count])
            output = model(backbone_features=levels, attribute_ids=ids.expand(count, -1))
            embeddings.append(output.embeddings.float().cpu())
            # (B, cells, channels) -> (B, prefix * channels) and (B, channels), side by side for all levels
            parts = [(cells[:, :prefix].flatten(1), cells[:, prefix:].mean(dim=1)) for cells in levels]
            features.append(torch.cat([part for pair in parts for part in pair], dim=1).float().cpu())
            progress.update(count)
    return torch.cat(embeddings).numpy(), torch.cat(features).numpy()


def entanglement(
    embeddings: NDArray | torch.Tensor,
    labels: NDArray | torch.Tensor,
    attributes: Mapping[str, Sequence[str]] | Sequence[str],
    features: NDArray | torch.Tensor,
    *,
    groups: ArrayLike | None = None,
    readers: Sequence[str] = DEFAULT_READERS,
    max_images: int = 3000,
    seed: int = 0,
) -> EntanglementResult:
    """Predict every attribute from the embeddings under every attribute; see the head of the file.

    Args:
        embeddings, groups: as in [`evaluate_embeddings`]; a group is always on the same side of a reader.
        labels: (N, A) value ids, -1 = not labelled. A pair of attributes is measured on the images that have both,
            if they are at least `LEAST_LABELLED`; values with fewer than `LEAST_IMAGES` of them are left out.
        attributes: attribute names, or attribute name -> value names.
        features: (N, F) unconditioned features of the images, as `embed_with_features` returns them.
        readers: "linear" and any of "neighbours" and "mlp"; see `readers.py`.
        max_images: of more images, a random sample of whole groups is used.

    Raises:
        ValueError: if a reader does not exist, "linear" is missing, shapes do not fit, there are fewer than two
            attributes, vectors are not finite, or `max_images` is below 1.
        ImportError: if scikit-learn is missing.
    """
    names = tuple(attributes)
    check_readers(readers)
    check_positive("max_images", max_images)
    require("analysis", "entanglement needs")
    from threadpoolctl import threadpool_limits  # scikit-learn depends on it

    images = _Images.checked(embeddings, labels, features, groups, names).at_most(max_images, seed)
    folds = make_folds(images.groups, seed)
    samples = _bootstrap(images.groups, seed)
    narrow = images._replace(features=_principal_components(images.features))

    def from_label(labels: NDArray[np.int64], known: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [guess_from_label(labels, folds, known)]

    ways: dict[str, tuple[_Images, Reader, _Guess]] = {
        "linear": (narrow, read_linear, from_label),
        "neighbours": (images, read_neighbours, _by_chance(folds, seed)),
        "mlp": (narrow, read_mlp, from_label),
    }
    measured = {}
    with threadpool_limits(1):  # for such small matrices more threads mostly wait for each other
        for name in sorted(set(readers), key=READERS.index):
            vectors, read, guess = ways[name]
            measured[name] = _measure(vectors, folds, samples, read, guess)
    values = {name: len(_read_values(images.labels[:, column])) for column, name in enumerate(names)}
    warning = "%r has %d values with at least %d images: it cannot be predicted"
    for name, count in values.items():
        if count < 2:
            logger.warning(warning, name, count, LEAST_IMAGES)
    return EntanglementResult(names, measured, len(images.labels), values)


def check_readers(readers: Sequence[str]) -> None:
    """Raises `ValueError` if a reader does not exist, or the linear one is missing, which gives the score."""
    for name in readers:
        if name not in READERS:
            raise ValueError(f"unknown reader {name!r}.{did_you_mean(name, READERS)} The readers are {list(READERS)}")
    if "linear" not in readers:
        raise ValueError(f"the readers must include 'linear', whose figure is the entanglement; got {list(readers)}")


class _Images(NamedTuple):
    """Embeddings (N, A, D) or (N, D), labels (N, A), features (N, F), groups (N,) with -1 = none."""

    embeddings: NDArray
    labels: NDArray[np.int64]
    features: NDArray
    groups: NDArray[np.int64]

    @classmethod
    def checked(
        cls, embeddings: object, labels: object, features: object, groups: object | None, names: tuple[str, ...]
    ) -> "_Images":
        if len(names) < 2:
            raise ValueError(f"entanglement is between attributes: give at least two, got {len(names)}")
        vectors = to_embeddings("embeddings", to_numbers("embeddings", embeddings), names)
        unconditioned = to_numbers("features", features)
        count = len(vectors)
        if not count:
            raise ValueError(f"embeddings must have shape (images, ...) with at least one image, got {vectors.shape}")
        ids = to_ids("labels", labels, (count, len(names)), " = (images, attributes)")
        if unconditioned.ndim != 2 or len(unconditioned) != count:
            raise ValueError(f"features must have shape ({count}, dim), got {unconditioned.shape}")
        check_finite("embeddings", vectors)
        check_finite("features", unconditioned)
        vectors, unconditioned = scaled(vectors, np.float32), scaled(unconditioned, np.float32)
        return cls(vectors, ids, unconditioned, to_group_ids(groups, count))

    def at_most(self, count: int, seed: int) -> "_Images":
        """A random sample of whole groups, as many as fit into `count` images, in their old order."""
        if len(self.labels) <= count:
            return self
        member, sizes = members(self.groups)
        order = np.random.default_rng(seed).permutation(len(sizes))
        drawn = np.zeros(len(sizes), dtype=bool)
        drawn[order[np.cumsum(sizes[order]) <= count]] = True
        rows = np.flatnonzero(drawn[member])
        return _Images(*(array[rows] for array in self))

    def under(self, attribute: int) -> NDArray:
        """(N, D)"""
        return self.embeddings if self.embeddings.ndim == 2 else self.embeddings[:, attribute]

    def to_read(self, row: int, column: int) -> NDArray[np.int64]:
        """(N,) labels of attribute `column`, -1 for images without a label of `row` and for rare values."""
        return _to_read(self.labels, row, column)


def _to_read(labels: NDArray[np.int64], row: int, column: int) -> NDArray[np.int64]:
    """As `_Images.to_read`, from labels (N, A)."""
    both = np.where(labels[:, row] >= 0, labels[:, column], -1)
    return np.where(np.isin(both, _read_values(both)), both, -1)


def _measure(
    images: _Images, folds: NDArray[np.int64], samples: NDArray[np.float64], read: Reader, guess: _Guess
) -> ReaderEntanglement:
    """`read` on every pair of attributes; the mean accuracy of `guess`, from the row's value alone, is the floor."""
    count = images.labels.shape[1]
    figures = np.full((3, 1 + len(samples), count, count), math.nan)  # of all images, then of each bootstrap sample
    weights = np.concatenate([np.ones((1, samples.shape[1])), samples])
    for row, column in np.ndindex(count, count):
        labels = images.to_read(row, column)
        values = len(_read_values(labels))
        if values < 2 or (labels >= 0).sum() < LEAST_LABELLED:
            continue
        known = None if row == column else images.labels[:, row]
        floor = np.full(len(labels), 1 / values)
        if known is not None:
            floor = np.mean([guesses == labels for guesses in guess(labels, known)], axis=0)
        vectors = images.under(row), images.features
        embedded, unconditioned = (read(each, labels, folds, known) == labels for each in vectors)
        for place, correct in enumerate((embedded, floor, unconditioned)):
            figures[place, :, row, column] = balanced_accuracy(correct, labels, weights)
    accuracy, floors, ceiling = figures
    measurable = ceiling[0] - floors[0] >= LEAST_RANGE  # False where NaN
    matrices = np.full_like(accuracy, math.nan)
    matrices[:, measurable] = (accuracy - floors)[:, measurable] / (ceiling - floors)[:, measurable]
    spread = matrices[1:].std(axis=0)
    score_spread = float(np.std([mean_off_diagonal(matrix) for matrix in matrices[1:]]))
    return ReaderEntanglement(accuracy[0], floors[0], ceiling[0], matrices[0], spread, score_spread)


def _principal_components(features: NDArray) -> NDArray[np.float32]:
    """(N, F) -> (N, at most _WIDEST), for which a linear reader is as accurate and ten times faster."""
    centred = np.asarray(features, dtype=np.float32) - features.mean(axis=0, dtype=np.float32)
    if centred.shape[1] <= _WIDEST:
        return centred
    *_, directions = np.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:_WIDEST].T


def _by_chance(folds: NDArray[np.int64], seed: int) -> _Guess:
    """The votes of random images that share the known value."""
    random = np.random.default_rng(seed)

    def guess(labels: NDArray[np.int64], known: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        draws = (random.standard_normal((len(labels), 16)) for _ in range(_CHANCE_DRAWS))
        return [read_neighbours(places, labels, folds, known) for places in draws]

    return guess


def _bootstrap(groups: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """(samples, N) how often each image is in each bootstrap sample; groups are drawn whole."""
    member, sizes = members(groups)
    shares = np.full(len(sizes), 1 / len(sizes))
    return np.random.default_rng(seed).multinomial(len(sizes), shares, _BOOTSTRAP_SAMPLES)[:, member].astype(float)


def _read_values(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The values with enough images to be predicted."""
    return np.flatnonzero(np.bincount(labels[labels >= 0]) >= LEAST_IMAGES)
