"""The result of an attribute manipulation: top-k accuracy, NDCG, and what else changed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .arrays import FloatArray
from .results import Result, ResultCard
from .text_table import Table, markdown_table, percent

_TITLES = {"ndcg": "NDCG@30", "ndcg_target": "NDCG target", "ndcg_others": "NDCG others"}
_WORDS = {1: "one change", 2: "two changes", 3: "three changes"}
_STRONGEST = 0.7  # opacity of the highest figure in a notebook


@dataclass(frozen=True)
class ManipulationScores:
    """Means over some queries, as fractions: `top_<k>`, `ndcg`, `ndcg_target` and `ndcg_others`.

    NaN where no query has another labelled attribute.
    """

    queries: int
    scores: dict[str, float]
    chance: dict[str, float]  # the expectation over all orders of the gallery


@dataclass(frozen=True, eq=False)
class Leakage:
    """What else changes among the ten nearest images, for changes of one attribute. The reference is not counted.

    Args:
        attributes: A names, of rows and columns.
        added: (A, A) row = changed attribute, column = another attribute: the share of nearest images that differ from
            the reference in the column, minus the same share for the unchanged query. NaN without such queries.
        shows_new: (A,) the share of nearest images that have the new value.
    """

    attributes: tuple[str, ...]
    added: FloatArray
    shows_new: FloatArray

    @property
    def mean(self) -> float:
        """The mean of all defined entries; NaN if there is none."""
        return float(np.nanmean(self.added)) if np.isfinite(self.added).any() else math.nan

    def as_table(self, decimals: int) -> Table:
        """Rows: changed attributes; columns: the share with the new value, and the other attributes."""
        changed = np.flatnonzero(np.isfinite(self.shows_new)).tolist()
        rows = [
            [self.attributes[row], percent(self.shows_new[row], decimals), *self._cells(row, decimals)]
            for row in changed
        ]
        styles = {
            (0, place, column + 2): f"background-color: rgba(240, 140, 40, {min(float(share), 1) * _STRONGEST:.2f})"
            for place, row in enumerate(changed)
            for column, share in enumerate(self.added[row])
            if share > 0
        }
        notes = [
            f"What else changed (mean {_points(self.mean, decimals)}): how many more of the ten nearest images differ "
            "from the reference in another attribute than without the change, in percentage points.",
        ]
        return Table(["changed", "show new value, %", *self.attributes], [rows], notes, styles)

    def _cells(self, row: int, decimals: int) -> list[str]:
        return [_points(share, decimals) for share in self.added[row].tolist()]


@dataclass(frozen=True, repr=False, eq=False)
class ManipulationResult(Result):
    """How well a search finds changed images: in all, by the number of changes, and by the changed attribute."""

    overall: ManipulationScores
    by_changes: dict[int, ManipulationScores]
    by_attribute: dict[str, ManipulationScores]  # changes of one attribute
    leakage: Leakage | None  # None without changes of one attribute
    images: int  # in the gallery
    values_from: str  # what stands for the values: "prototypes of the model", "centroids of the gallery", ...
    keep: float = 1.0

    primary_metric: ClassVar[str] = "top_10"

    def metrics(self) -> dict[str, float]:
        """All figures by name, as fractions.

        `top_<k>`, `ndcg`, `ndcg_target`, `ndcg_others` over all queries; the same with `_1_change`, `_2_changes`, ...,
        and with `_<attribute>` for changes of this attribute alone; all of them for a random ranking (`chance_...`).
        `leakage`, the mean of the table, and `shows_new_value`, the mean over the attributes.
        """
        parts = {f"_{name}": each for name, each in self.by_attribute.items()}
        parts |= {f"_{number}_change{'s' * (number > 1)}": each for number, each in self.by_changes.items()}
        parts[""] = self.overall  # last: an attribute called "target" does not hide `ndcg_target`
        metrics = {f"{name}{tail}": figure for tail, part in parts.items() for name, figure in part.scores.items()}
        metrics |= {
            f"chance_{name}{tail}": figure for tail, part in parts.items() for name, figure in part.chance.items()
        }
        if self.leakage is not None:
            metrics |= {"leakage": self.leakage.mean, "shows_new_value": float(np.nanmean(self.leakage.shows_new))}
        return metrics

    def as_table(self, decimals: int) -> Table:
        """Figures in percent, each with its chance level in brackets."""
        names = self.shown
        sections = [
            [self._row(name, part, names, decimals) for name, part in parts.items()]
            for parts in (self.by_attribute, self._numbers())
            if parts
        ]
        notes = [
            f"Search among {self.images:,} images; {self.values_from}; the attributes that stay have weight "
            f"{self.keep:g}. top-k: one of the k nearest images has exactly the wanted values."
        ]
        titles = [_TITLES.get(name, name.replace("_", "-")) for name in names]
        return Table(["% (chance)", "queries", *titles], sections, notes)

    @property
    def shown(self) -> list[str]:
        """The figures of a table: all but the middle ones of many k."""
        tops = [name for name in self.overall.scores if name.startswith("top_")]
        return [*dict.fromkeys([tops[0], "top_10", tops[-1]]), *_TITLES]

    def table(self, decimals: int = 1) -> str:
        """The tables of the figures and of what else changed, for terminals."""
        parts = [super().table(decimals)]
        if self.leakage is not None:
            parts.append(self.leakage.as_table(decimals).text())
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        leakage = "" if self.leakage is None else self.leakage.as_table(decimals=1).html()
        return super()._repr_html_() + leakage

    def card(self) -> ResultCard:
        rows = [["% (chance)", "queries", *(_TITLES.get(name, name.replace("_", "-")) for name in self.shown)]]
        parts = (*self.by_attribute.items(), *self._numbers().items())
        rows += [self._row(name, part, self.shown, decimals=1) for name, part in parts]
        leakage = "" if self.leakage is None else self._leakage_on_card(self.leakage)
        return ResultCard(
            "Attribute manipulation",
            "attribute manipulation retrieval",
            f"The model searched for {self.overall.queries:,} changed images, such as the same image in another "
            f"colour, among {self.images:,} images of the test split ({self.values_from}). top-k: one of the k "
            "nearest images has exactly the wanted values. NDCG@30 compares all values, NDCG target the changed ones, "
            "and NDCG others the rest. Chance is the expectation for a random ranking."
            f"\n\n{markdown_table(rows)}\n{leakage}",
            self.percentages({"top_10": "top-10 accuracy", **_TITLES}),
        )

    @staticmethod
    def _leakage_on_card(leakage: Leakage) -> str:
        table = leakage.as_table(1)
        return f"\n{table.notes[0]}\n\n{markdown_table([table.header, *table.sections[0]])}\n"

    def _numbers(self) -> dict[str, ManipulationScores]:
        """Title -> scores, by the number of changes, and of all queries if there are several numbers."""
        parts = {_WORDS.get(number, f"{number} changes"): each for number, each in self.by_changes.items()}
        return parts if len(parts) == 1 else parts | {"all queries": self.overall}

    @staticmethod
    def _row(title: str, part: ManipulationScores, names: list[str], decimals: int) -> list[str]:
        pairs = ((_percent(each[name], decimals) for each in (part.scores, part.chance)) for name in names)
        return [title, f"{part.queries:,}", *(f"{achieved} ({chance})" for achieved, chance in pairs)]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, for JSON, with None for NaN; `from_dict` is the inverse."""
        leakage = None
        if self.leakage is not None:
            leakage = {
                "attributes": list(self.leakage.attributes),
                "added": [_plain(row) for row in self.leakage.added.tolist()],
                "shows_new": _plain(self.leakage.shows_new.tolist()),
            }
        return {
            "overall": _scores_to_dict(self.overall),
            "by_changes": {str(number): _scores_to_dict(each) for number, each in self.by_changes.items()},
            "by_attribute": {name: _scores_to_dict(each) for name, each in self.by_attribute.items()},
            "leakage": leakage,
            "images": self.images,
            "values_from": self.values_from,
            "keep": self.keep,
            "metrics": _plain_values(self.metrics()),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ManipulationResult":
        leakage = content["leakage"]
        if leakage is not None:
            added, shows_new = (np.array(leakage[name], dtype=float) for name in ("added", "shows_new"))
            leakage = Leakage(tuple(leakage["attributes"]), added, shows_new)
        return cls(
            overall=_scores_from_dict(content["overall"]),
            by_changes={int(number): _scores_from_dict(each) for number, each in content["by_changes"].items()},
            by_attribute={name: _scores_from_dict(each) for name, each in content["by_attribute"].items()},
            leakage=leakage,
            images=content["images"],
            values_from=content["values_from"],
            keep=content["keep"],
        )


def _percent(fraction: float, decimals: int) -> str:
    return "-" if math.isnan(fraction) else percent(fraction, decimals)


def _points(difference: float, decimals: int) -> str:
    """Percentage points with their sign: 0.042 -> "+4.2"."""
    return "-" if math.isnan(difference) else f"{100 * difference:+.{decimals}f}"


def _plain(figures: list[float]) -> list[float | None]:
    return [None if math.isnan(each) else each for each in figures]


def _plain_values(figures: Mapping[str, float]) -> dict[str, float | None]:
    return dict(zip(figures, _plain(list(figures.values())), strict=True))


def _scores_to_dict(part: ManipulationScores) -> dict[str, Any]:
    return {"queries": part.queries, "scores": _plain_values(part.scores), "chance": _plain_values(part.chance)}


def _scores_from_dict(content: Mapping[str, Any]) -> ManipulationScores:
    scores, chance = (
        {name: math.nan if each is None else each for name, each in content[part].items()}
        for part in ("scores", "chance")
    )
    return ManipulationScores(content["queries"], scores, chance)
