"""The content of a report: a few queries of a split, their nearest images, and the attention of each attribute.

Queries are drawn at random, so that they are no favourable selection. Among them, queries with values that are not
shown yet are preferred.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cca_hf.data.schema import AttributeDataset
from cca_hf.evaluation.retrieval.evaluator import RetrievalEvaluator
from cca_hf.models.images import load_image
from cca_hf.models.modeling_cca import CCAModel

from .attention import attention_overlays
from .neighbours import Neighbour


@dataclass(frozen=True)
class QueryView:
    """One query with its values, nearest images and attention, by attribute."""

    index: int  # row in the split of the queries
    image: Image.Image
    values: dict[str, str | None]
    neighbours: dict[str, list[Neighbour]]
    attention: dict[str, Image.Image]


def choose_queries(labels: NDArray[np.int64], count: int, seed: int = 0) -> list[int]:
    """`count` random rows of `labels` (images, attributes), preferably with many values that are not shown yet."""
    pool = np.random.default_rng(seed).permutation(len(labels))[: 20 * count].tolist()
    chosen: list[int] = []
    seen: set[tuple[int, int]] = set()
    while pool and len(chosen) < count:
        best = max(pool, key=lambda row: len(_labelled(labels[row]) - seen))
        pool.remove(best)
        seen |= _labelled(labels[best])
        chosen.append(best)
    return chosen


def view_queries(
    model: CCAModel,
    dataset: AttributeDataset,
    split: str,
    queries: int | Sequence[int] = 6,
    *,
    neighbours: int = 7,
    candidates: int = 2000,
    batch_size: int = 64,
    seed: int = 0,
) -> list[QueryView]:
    """Find the nearest images of some images of a split (or those of `<split>_query` in `<split>_gallery`).

    As in the evaluation, images without a label for the attribute are left out, and so is the group of the query.

    Args:
        queries: number of queries to draw at random, or the rows to show.
        neighbours: number of images under each attribute.
        candidates: maximum number of images to encode and search; of a larger split, a random sample is used.

    Raises:
        ValueError: if a row is outside the split.
    """
    evaluator = RetrievalEvaluator(dataset, split, batch_size=batch_size)
    query_split, gallery_split = evaluator.query_split, evaluator.gallery_split or evaluator.query_split
    labels, groups, images = dataset.labels(query_split), dataset.groups(query_split), dataset[query_split]["image"]
    rows = choose_queries(labels, queries, seed) if isinstance(queries, int) else list(queries)
    outside = [row for row in rows if not 0 <= row < len(labels)]
    if outside:
        raise ValueError(f"the split {query_split!r} has the rows 0 to {len(labels) - 1}, not {outside}")
    searched = np.arange(len(dataset[gallery_split]))
    if len(searched) > candidates:
        searched = np.sort(np.random.default_rng(seed).choice(searched, candidates, replace=False))
    gallery_images, gallery_groups = dataset[gallery_split].select(searched)["image"], dataset.groups(gallery_split)
    gallery, gallery_labels = evaluator.embed(model, gallery_images), dataset.labels(gallery_split)[searched]
    embeddings = evaluator.embed(model, [images[row] for row in rows])
    views = []
    for row, embedding in zip(rows, embeddings, strict=True):
        excluded = searched == row if query_split == gallery_split else np.zeros(len(searched), dtype=bool)
        if groups is not None and gallery_groups is not None and groups[row] >= 0:
            excluded |= gallery_groups[searched] == groups[row]
        image = load_image(images[row])
        view = QueryView(row, image, {}, {}, attention_overlays(model, image, list(dataset.attributes)))
        for column, (name, values) in enumerate(dataset.attributes.items()):
            label = labels[row, column]
            view.values[name] = values[label] if label >= 0 else None
            labelled = np.flatnonzero((gallery_labels[:, column] >= 0) & ~excluded)
            similarities = gallery[labelled, column] @ embedding[column]
            best = np.argsort(-similarities, kind="stable")[:neighbours]
            view.neighbours[name] = [
                Neighbour(
                    image=load_image(gallery_images[int(found)]),
                    similarity=float(similarity),
                    value=values[gallery_labels[found, column]],
                    relevant=None if label < 0 else bool(gallery_labels[found, column] == label),
                )
                for found, similarity in zip(labelled[best], similarities[best], strict=True)
            ]
        views.append(view)
    return views


def _labelled(labels: NDArray[np.int64]) -> set[tuple[int, int]]:
    return {(attribute, label) for attribute, label in enumerate(labels.tolist()) if label >= 0}
