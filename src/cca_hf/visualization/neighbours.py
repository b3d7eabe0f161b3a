"""The nearest images of a query, with a row for each attribute."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from cca_hf.models.images import ImageInput, load_image

from .figures import INK, MUTED, Axes, Figure, SubFigure, new_figure

RIGHT = "#16a34a"
WRONG = "#dc2626"
UNKNOWN = "#94a3b8"


class Neighbour(NamedTuple):
    """One of the nearest images of a query under an attribute."""

    image: ImageInput
    similarity: float  # cosine
    value: str  # of the attribute
    relevant: bool | None  # whether it has the query's value; None if the query is not labelled


def plot_neighbours(
    query: ImageInput,
    neighbours: Mapping[str, Sequence[Neighbour]],
    *,
    query_values: Mapping[str, str | None] | None = None,
    attention: Mapping[str, ImageInput] | None = None,
) -> Figure:
    """Draw a query and a row of nearest images for each attribute, framed green (same value) or red.

    Save the figure with `figure.savefig("neighbours.png", dpi=150)`. Needs matplotlib (`pip install "cca_hf[plot]"`).

    Args:
        neighbours: attribute -> the nearest images, as `(image, similarity, value, relevant)`, the nearest first.
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
            axes.set_xlabel(_short(neighbour.value), fontsize=8, color=colour, labelpad=4)


def _show(axes: Axes, image: Image.Image, frame: str | None) -> None:
    axes.imshow(np.asarray(image))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(frame is not None)
    if frame is not None:
        axes.spines[:].set(color=frame, linewidth=2)


def _short(text: str, most: int = 16) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
