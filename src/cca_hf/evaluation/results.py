"""What every evaluation says of itself on a model card, and the file that a result is stored in."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from cca_hf.models.whole_files import write_json


@dataclass(frozen=True)
class ResultCard:
    """The section of a model card that describes one result.

    Args:
        title: heading of the section.
        task: name of the task for the model-index of the Hub.
        markdown: text and tables below the heading.
        metrics: (metric type, metric name, value) for the model-index, in percent.
    """

    title: str
    task: str
    markdown: str
    metrics: tuple[tuple[str, str, float], ...] = ()


class Result(Protocol):
    """What the model card needs from a result, whatever the task."""

    def to_dict(self) -> Mapping[str, Any]:
        """Everything as plain Python values, for JSON."""

    def card(self) -> ResultCard:
        """The section of a model card about this result."""


def save_result(result: Result, path: str | Path) -> Path:
    """Write a result and its card as JSON, whole or not at all; missing folders are created."""
    return write_json({**result.to_dict(), "card": asdict(result.card())}, path)
