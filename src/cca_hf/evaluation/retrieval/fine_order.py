"""The order of the images within a value: are images of nearly the same size nearer than others that are small too?"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cca_hf.evaluation.arrays import FloatArray, IntArray, check_finite, check_positive, normalised, to_ids, to_numbers
from cca_hf.extras import require


def fine_order(
    embeddings: NDArray | torch.Tensor,
    values: ArrayLike | torch.Tensor,
    grades: ArrayLike | torch.Tensor,
    *,
    max_pairs: int = 50_000,
    seed: int = 0,
) -> float:
    """How well the similarity of two images with one value follows the difference between their grades.

    For each value of an attribute: Spearman's rank correlation, over the pairs of its images, between the cosine
    similarity and minus the absolute difference of the grades. The result is the mean over the values, weighted by
    their numbers of pairs. It is 1 if images are more similar the nearer their grades are, and near 0 if similarity
    does not depend on the grades. A value counts as 0 if all its similarities are equal; it is left out if all its
    images have one grade, or if it has a single pair.

    Args:
        embeddings: (N, D), under the attribute.
        values: (N,) value ids of the attribute; images with -1 (not labelled) are left out.
        grades: (N,) a number for each image, such as the column `size_grade` of the drawn shapes.
        max_pairs: if a value has more pairs, this many random ones are drawn.
        seed: of these pairs.

    Raises:
        ValueError: if shapes do not fit, embeddings or grades are not finite, or no value has images of two grades.
        ImportError: if SciPy is missing.
    """
    require("analysis", "the fine order needs")
    from scipy.stats import spearmanr

    check_positive("max_pairs", max_pairs)
    vectors = to_numbers("embeddings", embeddings)
    if vectors.ndim != 2:
        raise ValueError(f"embeddings must have shape (images, dim), got {vectors.shape}")
    check_finite("embeddings", vectors)
    ids = to_ids("values", values, (len(vectors),), " = (images,)")
    numbers = to_numbers("grades", grades)
    if numbers.shape != ids.shape:
        raise ValueError(f"grades must have shape {ids.shape} = (images,), got {numbers.shape}")
    check_finite("grades", numbers)
    numbers = numbers.astype(np.float64)
    vectors = normalised(vectors, np.float32)
    random = np.random.default_rng(seed)
    correlations, weights = [], []
    for value in np.unique(ids[ids >= 0]):
        rows = np.flatnonzero(ids == value)
        first, second = _pairs(len(rows), max_pairs, random)
        differences = np.abs(numbers[rows[first]] - numbers[rows[second]])
        if len(differences) < 2 or np.ptp(differences) == 0:
            continue
        similarities = _similarities(vectors, rows[first], rows[second])
        is_constant = np.ptp(similarities) == 0
        correlations.append(0.0 if is_constant else float(spearmanr(similarities, -differences).statistic))
        weights.append(len(rows) * (len(rows) - 1) / 2)
    if not weights:
        raise ValueError("no value has images of two grades: there is no order to measure")
    return float(np.average(correlations, weights=weights))


def _pairs(count: int, most: int, random: np.random.Generator) -> tuple[IntArray, IntArray]:
    """All pairs of `count` images, or `most` random ones if there are more."""
    if count * (count - 1) // 2 <= most:
        return np.triu_indices(count, 1)
    first = random.integers(count, size=most)
    return first, (first + random.integers(1, count, size=most)) % count


def _similarities(vectors: NDArray[np.float32], first: IntArray, second: IntArray) -> FloatArray:
    """In chunks, because the vectors of all pairs could need far more memory than those of all images."""
    chunks = range(0, len(first), 4096)
    parts = [np.vecdot(vectors[first[i : i + 4096]], vectors[second[i : i + 4096]]) for i in chunks]
    return np.concatenate(parts).astype(np.float64)
