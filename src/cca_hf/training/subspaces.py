"""Fits the projection of each attribute's embeddings in closed form: linear discriminant analysis as a projection.

Let M (dim, values) be the means of an attribute's values minus their mean m, and S the covariance of the images around
these means, shrunk: S = (1 - a) S + a tr(S) / dim I. For an embedding e, generalised least squares gives the part of
e - m that the values explain, with noise of covariance S:

    P = S^1/2 B B' S^-1/2,        B an orthonormal basis of S^-1/2 M

P preserves every difference between the values' means, and has rank values - 1. All other content of an embedding, of
any attribute, is removed, except for its part along those few directions, which the metric S makes small. With

    b = -P m + d u,        u orthogonal to the range of P, d a tenth of the length of P (e - m)

P e + b has a small length even if an image shows no value clearly. Without d, an attribute with two values would give
each image a cosine of +1 or -1 to all others, and no order among them.
"""

import logging

import numpy as np
import torch
from numpy.typing import NDArray

from cca_hf.models.modeling_conditional import AttributeSubspaces

logger = logging.getLogger(__name__)

_SHRINKAGE = 0.01  # a; measured on validation, see docs/entanglement.md
_DOUBT = 0.1  # d, relative to the root mean square of |P (e - m)| over the training images; see docs/entanglement.md
_LEAST_SINGULAR_VALUE = 1e-3  # of S^-1/2 M, relative to the greatest


def fit_subspaces(subspaces: AttributeSubspaces, embeddings: NDArray, labels: NDArray[np.int64]) -> None:
    """Sets the projection of every attribute that has at least two values; the others stay as they are.

    Args:
        embeddings: (N, A, dim), L2-normalised, computed with reset `subspaces`.
        labels: (N, A) value ids, -1 = not labelled: the image is ignored for that attribute.
    """
    for attribute_id, column in enumerate(labels.T):
        labelled = column >= 0
        if len(np.unique(column[labelled])) < 2:
            logger.warning("Attribute %d has fewer than two values: its embeddings stay as they are", attribute_id)
            continue
        projection, offset = discriminant_projection(embeddings[labelled, attribute_id], column[labelled])
        subspaces.set(attribute_id, torch.from_numpy(projection), torch.from_numpy(offset))


def discriminant_projection(
    vectors: NDArray, labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n, dim) vectors and (n,) labels with at least two values -> P (dim, dim) and b (dim,)."""
    rows = np.asarray(vectors, dtype=np.float64)
    _, value, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), rows.shape[1]))
    np.add.at(sums, value, rows)
    means = sums / counts[:, None]  # (values, dim)
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
