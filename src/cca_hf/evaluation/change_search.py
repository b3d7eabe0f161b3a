"""The search for a changed image: vectors that stand for values, and the ranking of a gallery.

The embedding of a changed attribute becomes the vector of its new value, as `model.manipulate` does it. All images are
ranked by the mean of the cosine similarities under all attributes. For one embedding of all attributes, the query is
r - c_old + c_new with the centroids c of the values.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cca_hf.data.value_changes import Changes
from cca_hf.data.values import same_value
from cca_hf.models.modeling_conditional import ConditionalPreTrainedModel

from .arrays import IntArray, normalised, to_numpy
from .retrieval.embeddings import Gallery

_CELLS = 2**24  # similarities in one chunk of changes


class LabelledEmbeddings(NamedTuple):
    """Embeddings (N, A, dim) or (N, dim), L2-normalised, and labels (N, A) of images, -1 = not labelled."""

    embeddings: NDArray
    labels: IntArray

    @classmethod
    def of(cls, images: Gallery) -> "LabelledEmbeddings":
        """Those of a gallery, in numpy."""
        return cls(to_numpy(images.embeddings), to_numpy(images.labels))


class ValueVectors(NamedTuple):
    """What takes the place of an embedding under an attribute: one vector for each value.

    Args:
        vectors: (A, most values, dim), L2-normalised.
        known: (A, most values) whether the value has a vector.
        source: where they come from, for the result.
    """

    vectors: NDArray
    known: NDArray[np.bool_]
    source: str


def value_centroids(embeddings: NDArray, labels: IntArray, attributes: Mapping[str, Sequence[str]]) -> ValueVectors:
    """The mean embedding of the images of each value, as an index computes it.

    Args:
        embeddings: (N, A, dim) or (N, dim), L2-normalised.
        labels: (N, A), -1 = not labelled.
    """
    most = max(map(len, attributes.values()))
    vectors = np.zeros((len(attributes), most, embeddings.shape[-1]), dtype=np.float32)
    known = np.zeros((len(attributes), most), dtype=bool)
    for place in range(len(attributes)):
        of_attribute = embeddings if embeddings.ndim == 2 else embeddings[:, place]
        for value in np.unique(labels[labels[:, place] >= 0, place]).tolist():
            mean = of_attribute[labels[:, place] == value].mean(axis=0)
            vectors[place, value], known[place, value] = normalised(mean, np.float32), mean.any()
    return ValueVectors(vectors, known, "centroids of the gallery")


def value_vectors(
    model: ConditionalPreTrainedModel, embeddings: NDArray, labels: IntArray, attributes: Mapping[str, Sequence[str]]
) -> ValueVectors:
    """The prototypes of a model, and the centroids of images for values without a prototype.

    Args:
        embeddings, labels: those of the gallery, as in [`value_centroids`].
    """
    centroids = value_centroids(embeddings, labels, attributes)
    if not model.has_prototypes:
        return centroids
    vectors, known = centroids.vectors.copy(), centroids.known.copy()
    learned = np.zeros_like(known)
    for place, (name, values) in enumerate(attributes.items()):
        prototypes = {same_value(value): vector for value, vector in model.value_prototypes(name).items()}
        for value, value_name in enumerate(values):
            if same_value(value_name) in prototypes:
                vectors[place, value] = prototypes[same_value(value_name)]
                known[place, value] = learned[place, value] = True
    others = int((known & ~learned).sum())
    rest = f", and centroids of the gallery for {others} values without a prototype" if others else ""
    return ValueVectors(vectors, known, f"prototypes of the model{rest}")


class ChangeSearch:
    """Ranks a gallery for changes of reference images.

    Args:
        embeddings: (N, A, dim) of the reference images, L2-normalised; or (N, dim), one for all attributes.
        labels: (N, A), -1 = not labelled.
        values: the vectors of the values.
        gallery: the candidates. Default: the reference images.
        keep: weight of the attributes that do not change, where a changed attribute has weight 1.
        device: where similarities are computed.
    """

    def __init__(
        self,
        embeddings: NDArray,
        labels: IntArray,
        values: ValueVectors,
        *,
        gallery: LabelledEmbeddings | None = None,
        keep: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        self.holds_references = gallery is None
        candidates = LabelledEmbeddings(embeddings, labels) if gallery is None else gallery
        self.labels, self.gallery_labels, self.values, self.keep = labels, candidates.labels, values, keep
        self.references = torch.as_tensor(embeddings, dtype=torch.float32, device=device)
        self._vectors = torch.as_tensor(values.vectors, dtype=torch.float32, device=device)
        flat = torch.as_tensor(candidates.embeddings, dtype=torch.float32, device=device).flatten(1)
        self._gallery = flat.T.contiguous()  # (A * dim, G)
        missing = torch.as_tensor(candidates.labels < 0, dtype=torch.float32, device=device)
        self._missing = missing.T.contiguous() if missing.any() else None  # (A, G)

    def queries(self, changes: Changes, *, changed: bool = True) -> torch.Tensor:
        """(Q, A, dim) or (Q, dim), the embeddings of the references with or without their changes."""
        queries = self.references[torch.as_tensor(changes.reference)]
        if not changed:
            return queries
        device = queries.device
        row, place = (torch.as_tensor(each, device=device) for each in changes.changed.nonzero())
        new = torch.as_tensor(changes.target_labels[changes.changed], device=device)
        if queries.ndim == 3:
            queries = queries * self.keep
            queries[row, place] = self._vectors[place, new]
            return queries
        old = torch.as_tensor(self.labels[changes.reference][changes.changed], device=device)
        taken = self._vectors[place, old.clamp(min=0)] * (old >= 0)[:, None]  # an old value may not be known
        offsets = self._vectors[place, new] - taken
        return (queries * self.keep).index_add(0, row, offsets)

    def similarities(self, changes: Changes, *, changed: bool = True) -> torch.Tensor:
        """(Q, G), -inf for images that are no candidates; comparable within a row only."""
        similarities = self.queries(changes, changed=changed).flatten(1) @ self._gallery
        if self._missing is not None:
            compared = torch.as_tensor(changes.compared, dtype=torch.float32, device=similarities.device)
            similarities.masked_fill_(compared @ self._missing > 0, -torch.inf)
        return similarities

    def nearest(self, changes: Changes, top_k: int, *, changed: bool = True) -> IntArray:
        """(Q, top_k) rows of the gallery, the nearest first; -1 where there are not enough candidates."""
        similarities = self.similarities(changes, changed=changed)
        rows = _largest(similarities, min(top_k, similarities.shape[1]))
        found = similarities.gather(1, rows) > -torch.inf
        nearest = torch.where(found, rows, -1).cpu().numpy()
        return np.pad(nearest, ((0, 0), (0, top_k - nearest.shape[1])), constant_values=-1)

    def chunks(self, count: int) -> list[slice]:
        """Parts of `count` changes whose similarities fit into memory."""
        size = max(1, _CELLS // max(1, self._gallery.shape[1]))
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _largest(similarities: torch.Tensor, count: int) -> torch.Tensor:
    """(Q, count) columns of the largest numbers of each row; equal ones are in the order of the columns."""
    values, columns = similarities.topk(count)
    # more than `count` columns may be as large as the last one, and topk takes any of them
    crowded = (similarities >= values[:, -1:]).sum(dim=1) > count
    columns = columns.sort(dim=1).values
    order = similarities.gather(1, columns).argsort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    if crowded.any():
        columns[crowded] = similarities[crowded].argsort(dim=1, descending=True, stable=True)[:, :count]
    return columns
