"""Attribute manipulation: "this image, but red". Does the search find it, and does the rest stay as it was?

A query is a reference image and new values of some attributes; see `data/value_changes.py`. The embedding of a changed
attribute becomes the prototype of its new value (`model.manipulate`), and all images are ranked by the mean of the
cosine similarities under all attributes. For a model with one embedding for all attributes, the query is
r - c_old + c_new with the centroids c.

- `top_k`: whether one of the k nearest images has exactly the target labels. The reference stays in the gallery.
- `ndcg`: NDCG@30, where the relevance of an image is its share of target labels. `ndcg_target` counts only the changed
  attributes, and `ndcg_others` only the rest. The ideal order is that of the whole gallery.

Chance is the exact expectation of each figure over all orders of the gallery. Images of equal similarity are ranked in
the order of the gallery. Missing labels take no part: attributes that the reference is not labelled with are not
compared, and images that lack one of the compared labels are no candidates.

Paper: Hou, Vig, Donoser, Bazzani, Learning Attribute-driven Disentangled Representations for Interactive Fashion
Retrieval, ICCV 2021. Its released code takes the ideal order of the NDCG from the retrieved images alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cca_hf.data.schema import AttributeDataset
from cca_hf.data.value_changes import Changes, enumerate_changes
from cca_hf.models.modeling_cca import CCAModel

from .arrays import (
    BoolArray,
    IntArray,
    check_finite,
    check_positive,
    normalised,
    to_embeddings,
    to_ids,
    to_numbers,
    to_numpy,
)
from .change_search import ChangeSearch, LabelledEmbeddings, ValueVectors, value_centroids, value_vectors
from .manipulation_result import ManipulationResult, ManipulationScores
from .manipulation_scores import LEAKAGE_DEPTH, NDCG_DEPTH, measure_leakage, score_changes
from .retrieval.embeddings import Gallery
from .retrieval.evaluator import RetrievalEvaluator, check_attributes

KS = (1, 10, 20, 30, 40, 50)
MAX_QUERIES = 10_000  # for each number of changes


def evaluate_manipulation(
    embeddings: NDArray | torch.Tensor,
    labels: NDArray | torch.Tensor,
    attributes: Mapping[str, Sequence[str]],
    changes: Changes,
    targets_of_values: NDArray | torch.Tensor,
    known: NDArray | torch.Tensor,
    *,
    values_from: str = "given vectors of values",
    gallery: Gallery | None = None,
    keep: float = 1.0,
    k: Sequence[int] = KS,
    device: torch.device | str | None = None,
) -> ManipulationResult:
    """Search for the changed images, and compare the labels of the nearest ones with the target labels.

    Args:
        embeddings: (N, A, dim), in the order of `attributes`; or (N, dim), the same for all attributes.
        labels: (N, A) value ids, -1 = not labelled.
        attributes: attribute name -> value names in id order.
        changes: the queries, whose references are rows of `embeddings`.
        targets_of_values: (A, most values, dim) L2-normalised, what an embedding becomes if its attribute gets a
            value; see [`value_vectors`].
        known: (A, most values) bool, whether a value has such a vector.
        values_from: where these vectors come from, for the result.
        gallery: the candidates. Default: all images, the reference among them.
        keep: weight of the attributes that do not change, where a changed attribute has weight 1.
        k: for the top-k accuracy. 10 is always measured.
        device: an accelerator that computes the similarities.

    Raises:
        ValueError: if shapes do not fit, there is no query, a value lacks a vector, or a query has no target in the
            gallery.
    """
    for each in k:
        check_positive("k", each)
    queries = _checked("", embeddings, labels, attributes)
    candidates = queries if gallery is None else _checked("gallery ", gallery.embeddings, gallery.labels, attributes)
    values = _checked_values(targets_of_values, known, values_from, attributes, queries.embeddings.shape[-1])
    check_changes(changes, values, attributes, one_space=queries.embeddings.ndim == 2, labels=queries.labels)
    apart = None if gallery is None else candidates
    search = ChangeSearch(queries.embeddings, queries.labels, values, gallery=apart, keep=keep, device=device)
    ks = sorted({10, *k})
    depth = max(*ks, NDCG_DEPTH, LEAKAGE_DEPTH + 1)
    figures, chances, hits = [], [], []
    for part in search.chunks(len(changes)):
        chunk = changes.select(part)
        nearest = search.nearest(chunk, depth)
        achieved, chance = score_changes(chunk, nearest, candidates.labels, ks, device)
        figures.append(achieved)
        chances.append(chance)
        hits.append(nearest[:, : LEAKAGE_DEPTH + 1])
    names = [*(f"top_{each}" for each in ks), "ndcg", "ndcg_target", "ndcg_others"]
    scores, chance_scores = np.concatenate(figures), np.concatenate(chances)

    def summary(rows: BoolArray) -> ManipulationScores:
        means = (dict(zip(names, _means(each[rows]), strict=True)) for each in (scores, chance_scores))
        return ManipulationScores(int(rows.sum()), *means)

    numbers = changes.num_changes
    single = numbers == 1
    by_attribute = {
        name: summary(rows)
        for place, name in enumerate(attributes)
        if (rows := single & changes.changed[:, place]).any()
    }
    leakage = None
    if single.any():
        leakage = measure_leakage(search, changes.select(single), np.concatenate(hits)[single], tuple(attributes))
    return ManipulationResult(
        overall=summary(np.ones(len(changes), dtype=bool)),
        by_changes={int(number): summary(numbers == number) for number in np.unique(numbers)},
        by_attribute=by_attribute,
        leakage=leakage,
        images=len(candidates.labels),
        values_from=values.source,
        keep=keep,
    )


def check_changes(
    changes: Changes,
    values: ValueVectors,
    attributes: Mapping[str, Sequence[str]],
    *,
    one_space: bool = False,
    labels: IntArray | None = None,
) -> None:
    """Raises `ValueError` if there is no change, or a value lacks a vector."""
    if not len(changes):
        raise ValueError(
            "there is no query: no image has the labels of another image but for the attributes that change. Use a "
            "larger split, fewer attributes or fewer changes"
        )
    needed = [changes.target_labels]
    if one_space and labels is not None:  # the old values are subtracted
        needed.append(labels[changes.reference])
    row, place = changes.changed.nonzero()
    for each in needed:
        value = each[row, place]
        lacking = np.flatnonzero(~values.known[place, value] & (value >= 0))
        if len(lacking):
            name = list(attributes)[place[lacking[0]]]
            raise ValueError(
                f"{attributes[name][value[lacking[0]]]!r} of {name!r} has no prototype, and no image of the gallery "
                "has it"
            )


class ManipulationInputs(NamedTuple):
    """What a model computes for an evaluation: embeddings and labels of the images, and vectors of the values."""

    queries: Gallery
    gallery: Gallery | None
    values: ValueVectors


class ManipulationEvaluator:
    """Embeds a split with a model, changes the embeddings of its images, and measures what a search finds.

    All changes that the split can answer are queries. If the data set has `<split>_query` and `<split>_gallery`
    instead, the references are the queries. The model's prototypes stand for the values if it has them, and the
    centroids of the gallery if not, as in an index.

    Example:

    ```python
    >>> result = ManipulationEvaluator(data, split="test")(model)
    >>> print(result.table())
    ```
    """

    primary_metric = "top_10"

    def __init__(
        self,
        dataset: AttributeDataset,
        split: str = "test",
        *,
        changes: Changes | None = None,
        num_changes: Sequence[int] = (1, 2, 3),
        max_queries: int | None = MAX_QUERIES,
        keep: float = 1.0,
        k: Sequence[int] = KS,
        batch_size: int = 64,
        num_workers: int | None = None,
        show_progress: bool | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            changes: the queries. Default: all that the split can answer.
            num_changes: how many attributes change at once. Numbers above that of the attributes are left out.
            max_queries: of more changes of a number of attributes, a random sample is drawn.

        Raises:
            KeyError: if the split does not exist; the message names the existing ones.
            ValueError: if the split is empty, or there is no query.
        """
        self.dataset, self.keep, self.k = dataset, keep, k
        settings: dict[str, Any] = {"num_workers": num_workers, "show_progress": show_progress}
        self._retrieval = RetrievalEvaluator(dataset, split, batch_size=batch_size, **settings)
        labels, gallery = dataset.labels(self.query_split), None
        if self.gallery_split is not None:
            gallery = dataset.labels(self.gallery_split)
        if changes is None:
            possible = [number for number in num_changes if number <= len(dataset.attributes)]
            if not possible:
                raise ValueError(
                    f"num_changes must be numbers from 1 to {len(dataset.attributes)}, the attributes; "
                    f"got {list(num_changes)}"
                )
            parts = [enumerate_changes(labels, gallery, number, max_queries, seed) for number in possible]
            changes = Changes.concatenate(parts)
        self.changes = changes
        if not len(changes):
            complete = int((labels >= 0).all(axis=1).sum())
            raise ValueError(
                f"there is no query in the split {split!r}: no image has the labels of another image but for the "
                f"{' or '.join(map(str, num_changes))} attributes that change. {complete:,} of {len(labels):,} images "
                f"are labelled with all of {', '.join(dataset.attributes)}. Choose fewer attributes with "
                "--attributes, or a larger split"
            )

    @property
    def query_split(self) -> str:
        """The split of the reference images."""
        return self._retrieval.query_split

    @property
    def gallery_split(self) -> str | None:
        """The split that is searched, if it is another one."""
        return self._retrieval.gallery_split

    def __call__(self, model: CCAModel) -> ManipulationResult:
        """
        Raises:
            ValueError: if the model does not know an attribute of the data set, or none of its values.
            UnreadableImageError: if an image cannot be read; the message names it.
        """
        return self.score(self.encode(model), device=model.device)

    def encode(self, model: CCAModel) -> ManipulationInputs:
        """The embeddings of the images and the vectors of the values."""
        check_attributes(model, self.dataset.attributes)
        splits = [split for split in (self.query_split, self.gallery_split) if split is not None]
        sides = [
            LabelledEmbeddings(
                _one_space(self._retrieval.embed(model, self.dataset.splits[split]["image"])),
                self.dataset.labels(split),
            )
            for split in splits
        ]
        searched = sides[-1]
        if np.ndim(searched.embeddings) == 2:
            values = value_centroids(searched.embeddings, searched.labels, self.dataset.attributes)
        else:
            values = value_vectors(model, searched.embeddings, searched.labels, self.dataset.attributes)
        queries, *galleries = (Gallery(*side) for side in sides)
        return ManipulationInputs(queries, galleries[0] if galleries else None, values)

    def score(self, inputs: ManipulationInputs, device: torch.device | str | None = None) -> ManipulationResult:
        """The result for what `encode` returned."""
        return evaluate_manipulation(
            inputs.queries.embeddings,
            inputs.queries.labels,
            self.dataset.attributes,
            self.changes,
            inputs.values.vectors,
            inputs.values.known,
            values_from=inputs.values.source,
            gallery=inputs.gallery,
            keep=self.keep,
            k=self.k,
            device=device,
        )


def _one_space(embeddings: NDArray) -> NDArray:
    """(N, A, dim), or (N, dim) if a model gives all attributes the same embedding."""
    return embeddings[:, 0] if embeddings.shape[1] > 1 and (embeddings == embeddings[:, :1]).all() else embeddings


def _checked(
    side: str, embeddings: object, labels: object, attributes: Mapping[str, Sequence[str]]
) -> LabelledEmbeddings:
    """Embeddings and labels in numpy, checked; the embeddings are L2-normalised."""
    vectors = to_embeddings(f"{side}embeddings", embeddings, attributes)
    check_finite(f"{side}embeddings", vectors)
    ids = to_ids(f"{side}labels", labels, (len(vectors), len(attributes)), " = (images, attributes)")
    return LabelledEmbeddings(normalised(vectors, np.float32), ids)


def _checked_values(
    vectors: object, known: object, source: str, attributes: Mapping[str, Sequence[str]], dim: int
) -> ValueVectors:
    """The vectors of the values in numpy, checked."""
    numbers, is_known = to_numbers("targets_of_values", vectors), to_numpy(known).astype(bool)
    shape = (len(attributes), max(map(len, attributes.values())), dim)
    if numbers.shape != shape or is_known.shape != shape[:2]:
        raise ValueError(
            f"targets_of_values must have shape {shape} = (attributes, most values, dim), and known {shape[:2]}; "
            f"got {numbers.shape} and {is_known.shape}"
        )
    check_finite("targets_of_values", numbers)
    return ValueVectors(numbers, is_known, source)


def _means(figures: NDArray) -> list[float]:
    """The mean of each column without its NaN; NaN if it has nothing else."""
    counts = np.isfinite(figures).sum(axis=0)
    return np.where(counts > 0, np.nansum(figures, axis=0) / np.maximum(counts, 1), np.nan).tolist()
