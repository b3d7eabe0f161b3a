"""What the report shows of a model: a few queries of a split, their nearest pictures, and where each attribute looks.

The queries are drawn by chance, so that they flatter nobody; among those drawn, one that shows values not seen yet
goes before one that repeats them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cca_hf.data.schema import AttributeDataset
from cca_hf.evaluation.retrieval.evaluator import RetrievalEvaluator
from cca_hf.models.images import ImageInput, load_image
from cca_hf.models.modeling_cca import CCAModel

from .attention import attention_overlays
from .neighbours import Neighbour


@dataclass(frozen=True)
class QueryView:
    """One query and what is shown of it, by attribute."""

    index: int  # row of the split the queries come from
    image: Image.Image
    values: dict[str, str | None]
    neighbours: dict[str, list[Neighbour]]
    attention: dict[str, Image.Image]


def choose_queries(labels: NDArray[np.int64], count: int, seed: int = 0) -> list[int]:
    """`count` rows of `labels` (images, attributes), by chance, those with many values not shown yet first."""
    pool = np.random.default_rng(seed).permutation(len(labels))[: 20 * count].tolist()
    chosen: list[int] = []
    seen: set[tuple[int, int]] = set()
    while pool and len(chosen) < count:
        best = max(pool, key=lambda row: len(_labelled(labels[row]) - seen))  # the first of equals: still by chance
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
    """Look up queries among the other images of the split (or `<split>_query` in `<split>_gallery`).

    Under an attribute only images labelled with it are found, and none of the query's group, as in the evaluation.

    Args:
        queries: how many to draw, or the rows to take.
        neighbours: pictures under each attribute.
        candidates: how many images to encode and search at most; of a larger split as many are drawn by chance.

    Raises:
        ValueError: if a row lies outside the split.
    """
    evaluator = RetrievalEvaluator(dataset, split, batch_size=batch_size)
    asked, answering = evaluator.query_split, evaluator.gallery_split or evaluator.query_split
    labels, groups, pictures = dataset.labels(asked), dataset.groups(asked), dataset[asked]["image"]
    rows = choose_queries(labels, queries, seed) if isinstance(queries, int) else list(queries)
    outside = [row for row in rows if not 0 <= row < len(labels)]
    if outside:
        raise ValueError(f"the split {asked!r} has the rows 0 to {len(labels) - 1}, not {outside}")
    searched = np.arange(len(dataset[answering]))
    if len(searched) > candidates:
        searched = np.sort(np.random.default_rng(seed).choice(searched, candidates, replace=False))
    gallery = _Gallery.of(evaluator, model, answering, searched)
    embeddings = evaluator.embed(model, [pictures[row] for row in rows])
    views = []
    for row, embedding in zip(rows, embeddings, strict=True):
        excluded = searched == row if asked == answering else np.zeros(len(searched), dtype=bool)
        if groups is not None and gallery.groups is not None and groups[row] >= 0:
            excluded |= gallery.groups == groups[row]
        picture = load_image(pictures[row])
        views.append(
            QueryView(
                index=row,
                image=picture,
                values={
                    name: names[label] if label >= 0 else None
                    for (name, names), label in zip(dataset.attributes.items(), labels[row].tolist(), strict=True)
                },
                neighbours={
                    name: gallery.nearest(column, embedding[column], labels[row, column], names, excluded, neighbours)
                    for column, (name, names) in enumerate(dataset.attributes.items())
                },
                attention=attention_overlays(model, picture, list(dataset.attributes)),
            )
        )
    return views


class _Gallery(NamedTuple):
    """The images that answer: embeddings (G, A, D), labels (G, A), groups (G,) and the pictures themselves."""

    embeddings: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None
    pictures: Sequence[ImageInput]

    @classmethod
    def of(cls, evaluator: RetrievalEvaluator, model: CCAModel, split: str, rows: NDArray[np.int64]) -> "_Gallery":
        dataset = evaluator.dataset
        groups = dataset.groups(split)
        pictures = dataset[split].select(rows)["image"]
        embeddings = evaluator.embed(model, pictures)
        return cls(embeddings, dataset.labels(split)[rows], None if groups is None else groups[rows], pictures)

    def nearest(
        self,
        column: int,
        query: NDArray[np.float32],
        label: int,
        values: Sequence[str],
        excluded: NDArray[np.bool_],
        count: int,
    ) -> list[Neighbour]:
        """The `count` nearest to `query` (D,) under the attribute of `column`, among those labelled with it."""
        candidates = np.flatnonzero((self.labels[:, column] >= 0) & ~excluded)
        similarities = self.embeddings[candidates, column] @ query
        best = np.argsort(-similarities, kind="stable")[:count]
        return [
            Neighbour(
                image=load_image(self.pictures[int(candidate)]),
                similarity=float(similarity),
                value=values[self.labels[candidate, column]],
                relevant=None if label < 0 else bool(self.labels[candidate, column] == label),
            )
            for candidate, similarity in zip(candidates[best], similarities[best], strict=True)
        ]


def _labelled(labels: NDArray[np.int64]) -> set[tuple[int, int]]:
    return {(attribute, label) for attribute, label in enumerate(labels.tolist()) if label >= 0}
