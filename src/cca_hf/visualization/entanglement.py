"""The entanglement matrix as a heat map. Ideally the diagonal is bright and the rest is dark."""

import math

import numpy as np

from cca_hf.evaluation.entanglement.result import READER_NAMES, EntanglementResult

from .figures import FAINT, INK, MUTED, Figure, new_figure, quiet


def plot_entanglement(result: EntanglementResult) -> Figure:
    """Draw a heat map for each reader. Row: the attribute of the embeddings. Column: the attribute that is predicted.

    Undefined cells are grey. Save the figure with `figure.savefig("entanglement.png", dpi=150)`. Needs matplotlib
    (`pip install "cca_hf[plot]"`).
    """
    names = result.attributes
    side = 1.6 + 0.62 * len(names)
    figure = new_figure(side * len(result.readers), side + 0.5)
    for place, (name, reader) in enumerate(result.readers.items()):
        axes = figure.add_subplot(1, len(result.readers), place + 1)
        axes.set_facecolor(FAINT)  # undefined cells
        axes.imshow(np.ma.masked_invalid(reader.matrix), cmap="magma", vmin=0.0, vmax=1.0)
        for row, column in np.ndindex(*reader.matrix.shape):
            value = float(reader.matrix[row, column])
            colour = "white" if value < 0.6 else "black"  # an undefined cell is light: NaN is not below 0.6
            axes.text(column, row, cell_text(value), ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        quiet(axes)
        title = f"{READER_NAMES[name]}: entanglement {cell_text(reader.score)}"
        axes.set_title(f"{title}\ninformativeness {cell_text(reader.informativeness)}", fontsize=9, color=INK)
        if place == 0:
            axes.set_ylabel("embeddings", color=MUTED, fontsize=9)
        axes.set_xlabel("predicted", color=MUTED, fontsize=9)
    return figure


def cell_text(figure: float) -> str:
    """A figure of a matrix as text, "-" if it is undefined."""
    return "-" if math.isnan(figure) else f"{figure:.2f}"
