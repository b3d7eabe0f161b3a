"""Figures of a model: nearest images, attention maps, and a report of a run."""

from .attention import attention_overlay, attention_overlays, plot_attention
from .entanglement import plot_entanglement
from .neighbours import Neighbour, plot_neighbours
from .projection import plot_projection
from .report import write_report
from .selection import QueryView, choose_queries, view_queries

__all__ = [
    "Neighbour",
    "QueryView",
    "attention_overlay",
    "attention_overlays",
    "choose_queries",
    "plot_attention",
    "plot_entanglement",
    "plot_neighbours",
    "plot_projection",
    "view_queries",
    "write_report",
]
