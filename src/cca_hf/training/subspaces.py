"""Fits the map of each attribute, see `AttributeSubspaces`: a projection in closed form, and probabilities of values.

Let M (dim, values) be the means of an attribute's values minus their mean m, and S the covariance of the images around
these means, shrunk: S = (1 - a) S + a tr(S) / dim I. For an embedding e, generalised least squares gives the part of
e - m that the values explain, with noise of covariance S:

    P = S^1/2 B B' S^-1/2,        B an orthonormal basis of S^-1/2 M

P preserves every difference between the values' means, and has rank values - 1. All other content of an embedding, of
any attribute, is removed, except for its part along those few directions, which the metric S makes small. With

    b = -P m + d u,        u orthogonal to the range of P, d a tenth of the length of P (e - m)

P e + b has a small length even if an image shows no value clearly. Without d, an attribute with two values would give
each image a cosine of +1 or -1 to all others, and no order among them.

The probabilities of the values are softmax_v(x . p_v / t - c log(share of v)). p_v is the value's proxy, which the
loss has learned, or the direction of the value's mean if the loss has no proxies. For the map "values", x is the
projection P (e - m) + m, so that nothing else has an influence on the probabilities. For "retrieval", x is e. The
temperature t has the greatest likelihood on the validation images, which the embeddings were not fitted to. Proxies
prefer frequent values, and c takes a part of this back. For "retrieval", an image resembles no value if its evidence,
log(sum_v(exp(e . w_v))) with w_v the weights of the probabilities, is below that of 99 % of the validation images.
"""

import logging

import numpy as np
import torch
from numpy.typing import NDArray

from cca_hf.models.modeling_conditional import AttributeSubspaces

logger = logging.getLogger(__name__)

# measured on validation, see docs/entanglement.md
_SHRINKAGE = 0.01  # a
_DOUBT = 0.1  # d, relative to the root mean square of |P (e - m)| over the training images
_FREQUENT = 0.5  # c, with proxies
_UNLIKE = 0.01  # share of the validation images that resemble no value
_NO_THRESHOLD = -1e4
_NARROW, _WIDE = 120.0, 3.0  # the standard deviation of the frequencies F, for "values" and "retrieval"
_TEMPERATURES = np.geomspace(0.02, 0.6, 50)
_LEAST_SINGULAR_VALUE = 1e-3  # of S^-1/2 M, relative to the greatest


@torch.no_grad()
def fit_subspaces(
    subspaces: AttributeSubspaces,
    embeddings: NDArray,
    labels: NDArray[np.int64],
    *,
    held_out: tuple[NDArray, NDArray[np.int64]] | None = None,
    proxies: NDArray | None = None,
    temperature: float = 0.1,
) -> None:
    """Sets the map of every attribute that has at least two values; the others stay as they are.

    Args:
        embeddings: (N, A, dim), L2-normalised, computed with reset `subspaces`.
        labels: (N, A) value ids, -1 = not labelled: the image is ignored for that attribute.
        held_out: embeddings and labels of images that were not trained on, for temperature and threshold.
        proxies: (A, most values, dim), a row for each value id, of any length.
        temperature: of the probabilities, where `held_out` has no image with a known value.
    """
    kind = subspaces.kind
    if kind != "project":
        width = _NARROW if kind == "values" else _WIDE
        normal = torch.randn(subspaces.frequencies.shape, generator=torch.Generator().manual_seed(0))
        subspaces.frequencies.copy_(width * normal)
    for attribute_id, column in enumerate(labels.T):
        labelled = column >= 0
        values, counts = np.unique(column[labelled], return_counts=True)
        if len(values) < 2:
            logger.warning("Attribute %d has fewer than two values: its embeddings stay as they are", attribute_id)
            continue
        vectors, ids = np.asarray(embeddings[labelled, attribute_id], dtype=np.float64), column[labelled]
        if kind == "project":
            projection, offset = discriminant_projection(vectors, ids)
            subspaces.set(attribute_id, torch.from_numpy(projection), torch.from_numpy(offset))
            continue
        means = _means(vectors, np.searchsorted(values, ids), len(values))
        prototypes, biases = means, np.zeros(len(values))
        if proxies is not None:
            prototypes, biases = proxies[attribute_id][values], -_FREQUENT * np.log(counts / counts.sum())
        weights = prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)
        constants = np.zeros(len(values))
        if kind == "values":
            centre, (projection, _) = means.mean(axis=0), discriminant_projection(vectors, ids)
            constants = weights @ (centre - projection @ centre)
            weights = weights @ projection
        most_likely, threshold = temperature, _NO_THRESHOLD
        if held_out is not None and (known := np.isin(held_out[1][:, attribute_id], values)).any():
            scores = held_out[0][known, attribute_id] @ weights.T
            targets = np.searchsorted(values, held_out[1][known, attribute_id])
            most_likely = _most_likely_temperature(scores + constants, targets)
            if kind == "retrieval":
                threshold = float(np.quantile(np.logaddexp.reduce(scores / most_likely, axis=1), _UNLIKE))
        rows = torch.from_numpy(weights / most_likely)
        subspaces.set_values(attribute_id, rows, torch.from_numpy(biases + constants / most_likely), threshold)


def _means(vectors: NDArray, value: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """(n, dim) vectors with value ids 0..count - 1 -> (count, dim)."""
    sums = np.zeros((count, vectors.shape[1]))
    np.add.at(sums, value, np.asarray(vectors, dtype=np.float64))
    return sums / np.bincount(value, minlength=count)[:, None]


def _most_likely_temperature(scores: NDArray, targets: NDArray[np.int64]) -> float:
    """For (n, values) scores and (n,) ids of the right values."""

    def negative_log_likelihood(temperature: float) -> float:
        logits = scores / temperature
        right = logits[np.arange(len(targets)), targets]
        return float((np.logaddexp.reduce(logits, axis=1) - right).mean())

    return float(min(_TEMPERATURES, key=negative_log_likelihood))


def discriminant_projection(
    vectors: NDArray, labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n, dim) vectors and (n,) labels with at least two values -> P (dim, dim) and b (dim,)."""
    rows = np.asarray(vectors, dtype=np.float64)
    values, value = np.unique(labels, return_inverse=True)
    means = _means(rows, value, len(values))
    centre = means.mean(axis=0)  # rare values have the same weight
    around = rows - means[value]
    covariance = around.T @ around / len(rows)
    level = max(np.trace(covariance) / len(covariance), np.finfo(np.float32).eps)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * level * np.eye(len(centre))
    scales, axes = np.linalg.eigh(covariance)
    to_white, from_white = (axes * scales**power @ axes.T for power in (-0.5, 0.5))
    basis, size, _ = np.linalg.svd(to_white @ (means - centre).T, full_matrices=False)
    basis = basis[:, size > _LEAST_SINGULAR_VALUE * size[0]]
    projection = from_white @ basis @ basis.T @ to_white
    offset = -projection @ centre
    if basis.shape[1] < len(centre):
        spread = np.sqrt(np.mean(np.sum((rows @ projection.T + offset) ** 2, axis=1)))
        aside = np.linalg.svd(from_white @ basis)[0][:, -1]  # orthogonal to the range of P
        offset += _DOUBT * spread * aside
    return projection, offset
