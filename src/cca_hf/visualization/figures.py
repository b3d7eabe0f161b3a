"""The shared style of the figures, in colours that also differ in brightness.

Figures are made without pyplot, which has a global state and is not safe in threads.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from cca_hf.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
    from matplotlib.figure import SubFigure as SubFigure
else:  # matplotlib is imported when a figure is made
    Axes = Figure = SubFigure = object

INK = "#1f2937"
MUTED = "#6b7280"
FAINT = "#e5e7eb"
ACCENT = "#f59e0b"  # the main model of the figure
BASELINES = ("#cbd5e1", "#64748b", "#334155")  # from light to dark, in the order of the results


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure; sizes in inches.

    Raises:
        ImportError: if matplotlib is missing; the message says how to install it.
    """
    require("plot", "figures need")
    from matplotlib import figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return figure.Figure((width, height), facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))


def quiet(axes: Axes) -> None:
    """Remove frame and ticks, and soften the text."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=MUTED, labelcolor=INK, labelsize=9)
