"""The training curves: the loss and the mAP on validation."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .figures import ACCENT, FAINT, MUTED, new_figure, quiet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVES = (("loss", "training loss", 1.0), ("eval_map", "mAP in %, validation", 100.0))


def points_of(history: Iterable[Mapping[str, object]], name: str) -> list[tuple[float, float]]:
    """(epoch, value) of all entries that the Trainer logged under a name."""
    pairs = ((entry.get("epoch"), entry.get(name)) for entry in history)
    return [(float(x), float(y)) for x, y in pairs if isinstance(x, int | float) and isinstance(y, int | float)]


def plot_curves(history: Iterable[Mapping[str, object]]) -> "Figure | None":
    """Draw loss and mAP from the Trainer's `state.log_history`; None if both have fewer than two points.

    Save the figure with `figure.savefig("training.png", dpi=150)`. Needs matplotlib (`pip install "cca_hf[plot]"`).
    """
    entries = list(history)
    drawn = [(title, scale, points) for name, title, scale in _CURVES if len(points := points_of(entries, name)) > 1]
    if not drawn:
        return None
    figure = new_figure(3.8 * len(drawn), 2.4)
    for place, (title, scale, points) in enumerate(drawn, start=1):
        axes = figure.add_subplot(1, len(drawn), place)
        axes.plot([x for x, _ in points], [scale * y for _, y in points], color=ACCENT, linewidth=1.6)
        axes.set_title(title, fontsize=9, color=MUTED, loc="left")
        axes.set_xlabel("epoch", fontsize=9, color=MUTED)
        axes.yaxis.grid(True, color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        quiet(axes)
    return figure
