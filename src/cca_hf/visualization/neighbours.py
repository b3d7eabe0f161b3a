"""The nearest images of queries, with a row for each attribute.

Queries are drawn at random, so that they are no favourable selection. Among them, queries with values that are not
shown yet are preferred.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from datasets import Value
from numpy.typing import NDArray
from PIL import Image

from cca_hf.data.schema import AttributeDataset
from cca_hf.data.values import value_name
from cca_hf.evaluation.retrieval.evaluator import RetrievalEvaluator
from cca_hf.models.images import ImageInput, load_image
from cca_hf.models.modeling_cca import CCAModel

from .attention import attention_overlays
from .figures import INK, MUTED, Axes, Figure, SubFigure, new_figure

RIGHT = "#16a34a"
WRONG = "#dc2626"
UNKNOWN = "#94a3b8"
# Columns that are shown with an image, in this order, in upper or lower case.
DETAILS = ("id", "item_id", "sku", "name", "title", "price")


class Neighbour(NamedTuple):
    """One of the nearest images of a query under an attribute."""

    image: ImageInput
    similarity: float  # cosine
    value: str  # of the attribute
    relevant: bool | None  # whether it has the query's value; None if no image could have it in this place
    details: tuple[str, ...] = ()  # what the data set says about the image: its group, id, name and price


@dataclass(frozen=True)
class QueryView:
    """One query with its values, nearest images and attention, by attribute.

    At most `possible` of the nearest images have the query's value. `relevant` of the images after the last of them is
    None, and so is that of all images if the query is not labelled.
    """

    index: int  # row in the split of the queries
    image: Image.Image
    values: dict[str, str | None]
    neighbours: dict[str, list[Neighbour]]
    attention: dict[str, Image.Image]
    possible: dict[str, int] = field(default_factory=dict)  # how many of the searched images have the query's value
    details: tuple[str, ...] = ()  # as those of a `Neighbour`


def choose_queries(labels: NDArray[np.int64], count: int, seed: int = 0) -> list[int]:
    """`count` random rows of `labels` (images, attributes), preferably with many values that are not shown yet."""
    pool = np.random.default_rng(seed).permutation(len(labels))[: 20 * count].tolist()
    values = {row: {(place, label) for place, label in enumerate(labels[row].tolist()) if label >= 0} for row in pool}
    chosen: list[int] = []
    seen: set[tuple[int, int]] = set()
    while pool and len(chosen) < count:
        best = max(pool, key=lambda row: len(values[row] - seen))
        pool.remove(best)
        seen |= values[best]
        chosen.append(best)
    return chosen


def detail_columns(columns: Iterable[str]) -> list[str]:
    """The columns whose names are in `DETAILS`, in that order."""
    named = {name.lower(): name for name in columns}
    return [named[name] for name in DETAILS if name in named]


def detail_texts(row: Mapping[str, object]) -> tuple[str, ...]:
    """The values of a row as they are shown with its image: "Blue boots", and numbers as "price 19.99" or "sku 10293".

    Missing values are left out.
    """
    texts = []
    for name, value in row.items():
        text = f"{value:.7g}" if isinstance(value, float) else value_name(value)
        if value is not None and text:
            is_number = isinstance(value, float) or text.isdecimal()
            texts.append(f"{name} {text}" if is_number else text)
    return tuple(texts)


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
    query_details = _details(dataset, query_split, rows)
    details = _details(dataset, gallery_split, searched.tolist())
    views = []
    for row, embedding, of_query in zip(rows, embeddings, query_details, strict=True):
        excluded = searched == row if query_split == gallery_split else np.zeros(len(searched), dtype=bool)
        if groups is not None and gallery_groups is not None and groups[row] >= 0:
            excluded |= gallery_groups[searched] == groups[row]
        image = load_image(images[row])
        attention = attention_overlays(model, image, list(dataset.attributes)) if model.has_attention else {}
        view = QueryView(row, image, {}, {}, attention, details=of_query)
        for column, (name, values) in enumerate(dataset.attributes.items()):
            label = labels[row, column]
            view.values[name] = values[label] if label >= 0 else None
            labelled = np.flatnonzero((gallery_labels[:, column] >= 0) & ~excluded)
            similarities = gallery[labelled, column] @ embedding[column]
            best = np.argsort(-similarities, kind="stable")[:neighbours]
            alike = gallery_labels[labelled, column] == label
            possible = view.possible[name] = int(alike.sum())
            right_before = np.cumsum(alike[best]) - alike[best]
            view.neighbours[name] = [
                Neighbour(
                    image=load_image(gallery_images[int(found)]),
                    similarity=float(similarities[place]),
                    value=values[gallery_labels[found, column]],
                    relevant=bool(alike[place]) if before < possible else None,
                    details=details[found],
                )
                for place, found, before in zip(best, labelled[best], right_before, strict=True)
            ]
        views.append(view)
    return views


def _details(dataset: AttributeDataset, split: str, rows: Sequence[int]) -> list[tuple[str, ...]]:
    """The texts of each row, from the group column and the columns in `DETAILS`."""
    images = dataset[split]
    group = [] if dataset.group_column is None else [dataset.group_column]
    names = [
        name
        for name in dict.fromkeys([*group, *detail_columns(images.column_names)])
        if name not in dataset.attributes and isinstance(images.features.get(name), Value)
    ]
    if not names:
        return [() for _ in rows]
    return [detail_texts(row) for row in images.select_columns(names).select(rows)]


def plot_neighbours(
    query: ImageInput,
    neighbours: Mapping[str, Sequence[Neighbour]],
    *,
    query_values: Mapping[str, str | None] | None = None,
    attention: Mapping[str, ImageInput] | None = None,
) -> Figure:
    """Draw a query and a row of nearest images for each attribute, framed green (same value), red or grey.

    Save the figure with `figure.savefig("neighbours.png", dpi=150)`. Needs matplotlib (`pip install "cca_hf[plot]"`).

    Args:
        neighbours: attribute -> the nearest images, as `(image, similarity, value, relevant)`, the nearest first. The
            frame is grey if `relevant` is None.
        query_values: attribute -> the value of the query, shown beside the attribute.
        attention: attribute -> the query with the attention of that attribute, as from `attention_overlays`.

    Raises:
        ValueError: if there is no image to draw.
        UnreadableImageError: if an image cannot be read; the message names it.
    """
    columns = max((len(row) for row in neighbours.values()), default=0)
    if not columns:
        raise ValueError("no neighbours to draw: give at least one attribute with at least one image")
    width = 3.4 + 1.15 * (columns + (attention is not None))
    figure = new_figure(width, max(2.6, 1.42 * len(neighbours)))
    draw_neighbours(figure, query, neighbours, query_values or {}, attention or {})
    return figure


def draw_neighbours(
    figure: Figure | SubFigure,
    query: ImageInput,
    neighbours: Mapping[str, Sequence[Neighbour]],
    query_values: Mapping[str, str | None],
    attention: Mapping[str, ImageInput],
) -> None:
    """As `plot_neighbours`, into an existing figure or a part of one."""
    shown = 1 if attention else 0
    columns = max(len(row) for row in neighbours.values())
    grid = figure.add_gridspec(
        len(neighbours), 2 + shown + columns, width_ratios=[1.9, 1.15] + [1.0] * (shown + columns)
    )
    axes = figure.add_subplot(grid[: min(2, len(neighbours)), 0])
    _show(axes, load_image(query), frame=None)
    axes.set_title("query", fontsize=10, color=MUTED)
    for row, (name, nearest) in enumerate(neighbours.items()):
        label = figure.add_subplot(grid[row, 1])
        label.set_axis_off()
        label.text(1.0, 0.55, name, ha="right", va="center", fontsize=10, fontweight="bold", color=INK)
        value = query_values.get(name)
        if value is not None:
            label.text(1.0, 0.36, value, ha="right", va="center", fontsize=9, color=MUTED)
        if name in attention:
            axes = figure.add_subplot(grid[row, 2])
            _show(axes, load_image(attention[name]), frame=None)
            axes.set_xlabel("attention", fontsize=8, color=MUTED, labelpad=4)
        for column, neighbour in enumerate(nearest):
            axes = figure.add_subplot(grid[row, 2 + shown + column])
            colour = UNKNOWN if neighbour.relevant is None else RIGHT if neighbour.relevant else WRONG
            _show(axes, load_image(neighbour.image), frame=colour)
            value = neighbour.value
            value = value if len(value) <= 16 else value[:15] + "\N{HORIZONTAL ELLIPSIS}"
            axes.set_xlabel(value, fontsize=8, color=colour, labelpad=4)


def _show(axes: Axes, image: Image.Image, frame: str | None) -> None:
    axes.imshow(np.asarray(image))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(frame is not None)
    if frame is not None:
        axes.spines[:].set(color=frame, linewidth=2)
