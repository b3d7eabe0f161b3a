"""The standard supervised metrics of disentanglement, for images whose factors are known: DCI, MIG and MIG-sup.

The code of an image is its A conditional embeddings side by side; the factors are its A attributes. The units of the
code are its A x D *dimensions*, as published, or its A *subspaces*. The D dimensions of an embedding contain the same
information, so that they score low in completeness and MIG, however well the subspaces are separated.

- DCI (Eastwood and Williams, ICLR 2018), with R_ij the importance of unit i to a random forest that predicts factor j.
  The importance of a subspace is the sum over its dimensions. Disentanglement, sum_i rho_i (1 - H(R_i. / sum R_i.)): a
  unit serves one factor, weighted by rho_i, its share of all importance. Completeness, mean_j (1 - H(R_.j / sum
  R_.j)): one unit serves a factor. Entropies are in units of their maximum. Informativeness: the forest's accuracy on
  unseen images.
- MIG (Chen et al., NeurIPS 2018): mean over factors of the gap between the mutual information with the best two units,
  in units of the factor's entropy. MIG-sup (Li et al., ICLR 2020): mean over units of the gap between its best two
  factors. A dimension is divided into 20 bins, as in disentanglement_lib; logistic regression reads a subspace.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cca_hf.evaluation.arrays import check_finite, scaled, to_group_ids, to_ids, to_numbers
from cca_hf.evaluation.text_table import format_table
from cca_hf.extras import require

from .readers import make_folds, read_linear

_BINS = 20
_TREES = 50


@dataclass(frozen=True)
class Disentanglement:
    """DCI and the information gaps, with dimensions or with subspaces as units. Fractions; 1 is best."""

    disentanglement: float
    completeness: float
    informativeness: float
    mig: float
    mig_sup: float


@dataclass(frozen=True)
class DisentanglementResult:
    """The metrics of both kinds of units, and the number of images."""

    dimensions: Disentanglement
    subspaces: Disentanglement
    images: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self, decimals: int = 2) -> str:
        """A table for terminals."""
        rows = [
            [name, *(f"{figure:.{decimals}f}" for figure in asdict(figures).values())]
            for name, figures in (("dimensions", self.dimensions), ("subspaces", self.subspaces))
        ]
        header = ["units", "disentanglement", "completeness", "informativeness", "MIG", "MIG-sup"]
        return format_table(header, [rows])


def disentanglement(
    embeddings: NDArray | torch.Tensor,
    labels: NDArray | torch.Tensor,
    attributes: Mapping[str, Sequence[str]] | Sequence[str],
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> DisentanglementResult:
    """DCI, MIG and MIG-sup of conditional embeddings; see the head of the file.

    They are meaningful if the attributes are independent factors of the images and all of them are labelled.

    Args:
        embeddings: (N, A, D), one for each attribute in the order of `attributes`.
        labels: (N, A) value ids; images with a -1 are left out.
        groups: (N,) ids of near copies, which are always on the same side of a reader; -1 = none.

    Raises:
        ValueError: if shapes do not fit, embeddings are not finite, or no image has all labels.
        ImportError: if scikit-learn is missing.
    """
    require("analysis", "DCI needs")
    count = len(tuple(attributes))
    vectors = to_numbers("embeddings", embeddings)
    if vectors.ndim != 3 or vectors.shape[1] != count:
        raise ValueError(f"embeddings must have shape (images, {count}, dim), got {vectors.shape}")
    check_finite("embeddings", vectors)
    vectors = scaled(vectors, np.float32)
    ids = to_ids("labels", labels, (len(vectors), count), " = (images, attributes)")
    members = to_group_ids(groups, len(vectors))
    complete = (ids >= 0).all(axis=1)
    if not complete.any():
        raise ValueError(f"none of the {len(ids)} images is labelled with all attributes")
    vectors, ids, members = vectors[complete], ids[complete], members[complete]
    folds = make_folds(members, seed)
    code = vectors.reshape(len(vectors), -1)
    importance, accuracy = _forest_importance(code, ids, folds, seed)  # (A D, A), (A,)
    entropy = np.array([_information(column, column) for column in ids.T])
    low, high = code.min(axis=0), code.max(axis=0)
    shares = (code - low) / np.where(high > low, high - low, 1)
    bins = np.minimum((shares * _BINS).astype(np.int64), _BINS - 1)
    of_dimensions = np.array([[_information(unit, column) for column in ids.T] for unit in bins.T]) / entropy
    units = vectors.swapaxes(0, 1)  # (A, N, D)
    of_subspaces = [[_information(read_linear(unit, column, folds), column) for column in ids.T] for unit in units]
    dimensions = _figures(importance, accuracy, of_dimensions)
    importance = importance.reshape(count, -1, count).sum(axis=1)
    return DisentanglementResult(dimensions, _figures(importance, accuracy, of_subspaces / entropy), len(ids))


def dci(importance: NDArray[np.float64]) -> tuple[float, float]:
    """(units, factors) importance, at least 0 -> disentanglement and completeness."""
    total = importance.sum()
    of_units, of_factors = importance.sum(axis=1), importance.sum(axis=0)
    rows = importance[of_units > 0] / of_units[of_units > 0, None]
    columns = importance[:, of_factors > 0] / of_factors[of_factors > 0]
    pure = 1 - _entropy(rows.T) / np.log(importance.shape[1])
    whole = 1 - _entropy(columns) / np.log(importance.shape[0])
    return float((of_units[of_units > 0] / total) @ pure), float(whole.mean())


def information_gaps(information: NDArray[np.float64]) -> tuple[float, float]:
    """(units, factors) mutual information in units of the factor's entropy -> MIG, MIG-sup."""
    by_unit, by_factor = np.sort(information, axis=0), np.sort(information, axis=1)
    return float((by_unit[-1] - by_unit[-2]).mean()), float((by_factor[:, -1] - by_factor[:, -2]).mean())


def _figures(
    importance: NDArray[np.float64], accuracy: NDArray[np.float64], information: NDArray[np.float64]
) -> Disentanglement:
    pure, whole = dci(importance)
    mig, mig_sup = information_gaps(information)
    return Disentanglement(pure, whole, float(accuracy.mean()), mig, mig_sup)


def _forest_importance(
    code: NDArray[np.float32], labels: NDArray[np.int64], folds: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(dimensions, factors) mean decrease of impurity, (factors,) accuracy on the first fold, which is held out."""
    from sklearn.ensemble import RandomForestClassifier

    # A split may use any dimension. A random choice among a few would give importance to dimensions without
    # information: a perfect code would score 0.87.
    importance, accuracy = [], []
    train, test = folds != 0, folds == 0
    for column in labels.T:
        forest = RandomForestClassifier(_TREES, max_features=None, random_state=seed).fit(code[train], column[train])
        importance.append(forest.feature_importances_)
        accuracy.append(float(forest.score(code[test], column[test])))
    return np.stack(importance, axis=1), np.array(accuracy)


def _information(code: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Mutual information in nats; the entropy, if both columns are the same."""
    from sklearn.metrics import mutual_info_score

    return float(mutual_info_score(code, labels))


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, m) columns that sum to 1 -> (m,) in nats."""
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=0)
