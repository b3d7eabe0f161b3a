"""Confused values: the nearest image of a query has another value than the query."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .candidates import Exclusions
from .embeddings import Gallery

_CHUNK = 1024  # queries


@dataclass(frozen=True)
class Confusion:
    """For a share of the `queries` images of `value`, the nearest other image shows `taken_for`."""

    value: str
    taken_for: str
    queries: int
    share: float


def nearest_confusions(
    embeddings: NDArray | torch.Tensor,
    labels: NDArray | torch.Tensor,
    attributes: Mapping[str, Sequence[str]],
    *,
    groups: ArrayLike | None = None,
    gallery: Gallery | None = None,
    most: int = 3,
) -> dict[str, list[Confusion]]:
    """The `most` frequent confusions of each attribute, in descending order.

    The arguments are as in [`evaluate_embeddings`]. An image and its near copies are no candidates for itself; images
    without a label are left out.
    """
    queries = Gallery(embeddings, labels, groups).checked("", attributes)
    candidates = queries if gallery is None else Gallery(*gallery).checked("gallery ", attributes)
    confusions = {}
    for column, (name, values) in enumerate(attributes.items()):
        sides = [images.under("query", column, name) for images in (queries, candidates)]
        if gallery is None:
            sides = [side.with_every_row_grouped() for side in sides]
        query, candidate = (side.rows(np.flatnonzero(side.labels >= 0)) for side in sides)
        excluded = Exclusions(query, candidate)
        pairs: Counter[tuple[int, int]] = Counter()
        for start in range(0, len(query.labels) if len(candidate.labels) else 0, _CHUNK):
            rows = query.embeddings[start : start + _CHUNK]
            similarities = rows @ candidate.embeddings.T
            similarities[excluded.pairs(start, start + len(rows))] = -np.inf
            ranked = np.flatnonzero(similarities.max(axis=1) > -np.inf)  # queries with a candidate
            nearest = candidate.labels[similarities.argmax(axis=1)[ranked]]
            pairs.update(zip(query.labels[start + ranked].tolist(), nearest.tolist(), strict=True))
        counts = np.bincount(query.labels, minlength=len(values)).tolist()
        wrong = sorted(((pair, count) for pair, count in pairs.items() if pair[0] != pair[1]), key=lambda x: -x[1])
        confusions[name] = [
            Confusion(values[value], values[taken], counts[value], count / counts[value])
            for (value, taken), count in wrong[:most]
        ]
    return confusions
