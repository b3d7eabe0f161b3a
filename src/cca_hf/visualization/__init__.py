"""Look at a model: nearest pictures, attention maps, and a report of a run as one page."""

from .attention import attention_overlay, attention_overlays, plot_attention
from .neighbours import Neighbour, plot_neighbours
from .report import write_report
from .selection import QueryView, choose_queries, view_queries

__all__ = [
    "Neighbour",
    "QueryView",
    "attention_overlay",
    "attention_overlays",
    "choose_queries",
    "plot_attention",
    "plot_neighbours",
    "view_queries",
    "write_report",
]
