"""Which values are taken for which: what the nearest picture shows, where it does not show the query's value."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .candidates import to_numpy
from .embeddings import Gallery

_CHUNK = 1024  # queries


@dataclass(frozen=True)
class Confusion:
    """Of `queries` pictures of `value`, the nearest other picture shows `taken_for` for the given share."""

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
    """The most frequent confusions of each attribute, by number of pictures, the most frequent first.

    Args:
        embeddings, labels, attributes, groups, gallery: as in `evaluate_embeddings`, with an embedding for each
            attribute. A picture and its near copies are no answer to itself; what is not labelled takes no
            part.
        most: of each attribute.
    """
    itself = gallery is None
    embeddings, labels = to_numpy(embeddings), to_numpy(labels)
    answers = Gallery(embeddings, labels, groups) if gallery is None else gallery
    their_embeddings, their_labels = to_numpy(answers.embeddings), to_numpy(answers.labels)
    found = {}
    for column, (name, values) in enumerate(attributes.items()):
        asked = np.flatnonzero(labels[:, column] >= 0)
        answering = np.flatnonzero(their_labels[:, column] >= 0)
        candidates = their_embeddings[answering, column]
        shown = their_labels[answering, column]
        pairs: Counter[tuple[int, int]] = Counter()
        for start in range(0, len(asked), _CHUNK):
            rows = asked[start : start + _CHUNK]
            similarities = embeddings[rows, column] @ candidates.T
            if itself:
                similarities[rows[:, None] == answering] = -np.inf
            if groups is not None and answers.groups is not None:
                own, theirs = np.asarray(groups)[rows, None], np.asarray(answers.groups)[answering]
                similarities[(own == theirs) & (own != -1)] = -np.inf
            if not similarities.size:
                continue
            answered = similarities.max(axis=1) > -np.inf
            nearest = shown[similarities.argmax(axis=1)[answered]]
            pairs.update(zip(labels[rows[answered], column].tolist(), nearest.tolist(), strict=True))
        queries = Counter(labels[asked, column].tolist())
        wrong = sorted(((pair, count) for pair, count in pairs.items() if pair[0] != pair[1]), key=lambda x: -x[1])
        found[name] = [
            Confusion(values[value], values[taken], queries[value], count / queries[value])
            for (value, taken), count in wrong[:most]
        ]
    return found
