"""The protocol of results: metrics, a table for terminals and notebooks, a section of a model card, a JSON file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

from cca_hf.models.whole_files import write_json

from .text_table import Table

R = TypeVar("R", bound="Result")


@dataclass(frozen=True)
class ResultCard:
    """The section of a model card that describes one result."""

    title: str
    task: str  # its name for the model-index of the Hub
    markdown: str  # text and tables below the title
    metrics: tuple[tuple[str, str, float], ...] = ()  # (type, name, value in percent) for the model-index


class Result(Protocol):
    """A result of any task. Checkpoints are compared by the metric that `primary_metric` names."""

    primary_metric: ClassVar[str]

    def metrics(self) -> dict[str, float]:
        """All metrics by name."""

    def intervals(self) -> dict[str, float]:
        """The ends of 95 % intervals by name, such as `map_interval_low`; empty if there are none."""
        return {}

    def as_table(self, decimals: int) -> Table:
        """The table that `table` and a notebook show."""

    def card(self) -> ResultCard:
        """The section of a model card about this result, which must be of the test split."""

    def to_dict(self) -> dict[str, Any]:
        """All content as plain Python values, for JSON; `from_dict` is the inverse."""

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""

    def percentages(self, titles: Mapping[str, str]) -> tuple[tuple[str, str, float], ...]:
        """Metrics for a card; `titles` has their names by the keys of `metrics`."""
        metrics = self.metrics()
        return tuple((metric, title, round(100 * metrics[metric], 2)) for metric, title in titles.items())

    def table(self, decimals: int = 1) -> str:
        """A table for terminals."""
        return self.as_table(decimals).text()

    def __repr__(self) -> str:
        return f"{type(self).__name__}\n{self.table()}"

    def _repr_html_(self) -> str:
        return self.as_table(decimals=2).html()

    def save_json(self, path: str | Path) -> Path:
        """Same as [`save_result`]."""
        return save_result(self, path)

    @classmethod
    def load_json(cls, path: str | Path) -> Self:
        """Same as [`load_result`]."""
        return load_result(path, cls)


def save_result(result: Result, path: str | Path) -> Path:
    """Write a result and its card as JSON, whole or not at all; missing folders are created."""
    return write_json({**result.to_dict(), "card": asdict(result.card())}, path)


def load_result(path: str | Path, kind: type[R]) -> R:
    """Read a result that [`save_result`] or version 0.1 wrote; `kind` is its class."""
    return kind.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
