"""What all figures share: matplotlib where it is installed, one look, and colours that stay apart without hue.

Figures are made without pyplot: no global state, no window, safe in threads and in a Trainer.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2937"
MUTED = "#6b7280"
FAINT = "#e5e7eb"
ACCENT = "#f59e0b"  # the model the figure is about
BASELINES = ("#cbd5e1", "#64748b", "#334155")  # from light to dark, in the order they are given


def new_figure(width: float, height: float) -> "Figure":
    """An empty white figure, sizes in inches.

    Raises:
        ImportError: saying what to install, where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "cca_hf[plot]"') from error
    return Figure((width, height), facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))


def quiet(axes: "Axes") -> None:
    """No frame, no ticks, soft text: what is drawn is what is seen."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=MUTED, labelcolor=INK, labelsize=9)


def colours(count: int) -> list[str]:
    """One colour for each of `count` results, of which the last is the one that matters."""
    return [BASELINES[place % len(BASELINES)] for place in range(count - 1)] + [ACCENT]
