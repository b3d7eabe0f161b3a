"""Figures of a model: nearest images, attention maps, and a report of a run."""

from .attention import attention_overlay, attention_overlays, plot_attention
from .entanglement import plot_entanglement
from .neighbours import Neighbour, QueryView, choose_queries, plot_neighbours, view_queries
from .projection import plot_projection
from .report import write_report

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
