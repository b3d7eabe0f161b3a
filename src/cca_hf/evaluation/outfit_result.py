"""The result of `evaluate_outfits`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from .results import Result, ResultCard
from .text_table import Table, markdown_table, percent

_FILL_IN = "fill_in_the_blank"
_TITLES = {"compatibility_auc": "compatibility AUC"}


@dataclass(frozen=True)
class Figure:
    """A measure of a split, with the ends of its 95 % interval, its value by chance, and the number of cases."""

    value: float
    low: float
    high: float
    chance: float
    count: int


@dataclass(frozen=True, repr=False)
class OutfitResult(Result):
    """Fill-in-the-blank accuracy, compatibility AUC and recall; see `evaluate_outfits`.

    The primary metric, `fill_in_the_blank`, is the mean of the accuracies with all kinds of wrong choices.
    """

    primary_metric: ClassVar[str] = _FILL_IN

    split: str
    figures: Mapping[str, Figure]  # fill_in_the_blank_<kind>, compatibility_auc, recall_at_<k>

    def metrics(self) -> dict[str, float]:
        accuracies = [figure for name, figure in self.figures.items() if name.startswith(_FILL_IN)]
        values = {name: figure.value for name, figure in self.figures.items()}
        chances = {f"chance_{name}": figure.chance for name, figure in self.figures.items()}
        return {
            _FILL_IN: sum(figure.value for figure in accuracies) / len(accuracies),
            **values,
            f"chance_{_FILL_IN}": sum(figure.chance for figure in accuracies) / len(accuracies),
            **chances,
        }

    def intervals(self) -> dict[str, float]:
        ends: dict[str, float] = {}
        for name, figure in self.figures.items():
            ends |= {f"{name}_interval_low": figure.low, f"{name}_interval_high": figure.high}
        return ends

    def as_table(self, decimals: int) -> Table:
        header, *rows = self._rows(decimals)
        return Table(header, [rows], ["The intervals contain 95 % of 1,000 draws of the outfits."])

    def card(self) -> ResultCard:
        text = (
            f"Measured on the split `{self.split}`, with 95 % intervals over the outfits. Fill in the blank is the "
            "share of questions whose right choice is the nearest. The AUC compares outfits of persons with random "
            "ones. Recall at k is the share of items that are among the k nearest of their category."
        )
        figures = self.percentages({name: _title(name) for name in self.figures})
        markdown = f"{text}\n\n{markdown_table(self._rows(1))}"
        return ResultCard("Outfit completion", "outfit-completion", markdown, figures)

    def to_dict(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "metrics": self.metrics(),
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        figures = {name: Figure(**figure) for name, figure in content["figures"].items()}
        return cls(content["split"], figures)

    def _rows(self, decimals: int) -> list[list[str]]:
        rows = [["%", "value", "95 % interval", "chance", "number"]]
        for name, figure in self.figures.items():
            value, low, high, chance = (
                percent(number, decimals) for number in (figure.value, figure.low, figure.high, figure.chance)
            )
            rows.append([_title(name), value, f"{low} - {high}", chance, f"{figure.count:,}"])
        return rows


def _title(name: str) -> str:
    kind = name.removeprefix(f"{_FILL_IN}_")
    if kind != name:
        return f"fill in the blank, wrong: {kind.replace('_', ' ')}"
    return _TITLES.get(name, name.replace("_", " "))
