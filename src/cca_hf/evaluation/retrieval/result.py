"""The result of a retrieval evaluation: metrics as fractions in [0, 1] (tables and cards show percent), and chance."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np

from cca_hf.data.coverage import Coverage
from cca_hf.evaluation.results import Result, ResultCard
from cca_hf.evaluation.text_table import Table, markdown_table, markdown_text, percent

from .intervals import Interval
from .metrics import AttributeRetrieval, RetrievalScores

MEASURE_NAMES = {
    "map": "mAP",
    "map_ignore_maybe": "mAP, maybe ignored",
    "map_multi_label": "mAP, multi-label",
    "map_macro": "macro mAP",
    "r_precision": "R-precision",
}  # other measures are shown under their own names
_WEIGHTED = ("map", "map_ignore_maybe", "map_multi_label")  # with a query-weighted mean beside the plain one


@dataclass(frozen=True)
class ValueResult:
    """Mean average precision of the queries that show one value of an attribute."""

    name: str
    queries: int
    map: float
    chance_map: float
    new: bool = False  # no training image of the model had it; False if that is not known


class Among(NamedTuple):
    """Mean average precision of some of the queries."""

    queries: int
    map: float
    chance_map: float


@dataclass(frozen=True)
class AttributeResult:
    """One attribute. `scores` and `chance` have the same measures: map, map_macro, recall@k..., r_precision.

    If the data set has sets of values for an image, map_ignore_maybe or map_multi_label follow map.
    """

    name: str
    queries: int
    candidates: float  # mean per query, after exclusions
    queries_without_relevant: int  # their average precision is 0 for any model
    scores: dict[str, float]
    chance: dict[str, float]
    values: tuple[ValueResult, ...]  # those of the queries
    map_interval: Interval | None = None  # 95 % interval of the mAP, for few queries

    @classmethod
    def from_retrieval(
        cls,
        name: str,
        value_names: Sequence[str],
        retrieval: AttributeRetrieval,
        refined: Mapping[str, AttributeRetrieval] = MappingProxyType({}),
        new_values: Collection[str] = (),
    ) -> "AttributeResult":
        """
        Args:
            refined: measure -> another retrieval of the same queries, of which only the mAP is used.
            new_values: the values that no training image of the model had.
        """
        maps = {"map": retrieval, **refined}
        counts = np.bincount(retrieval.labels)
        scores = {measure: each.map for measure, each in maps.items()}
        chance = {measure: each.chance_map for measure, each in maps.items()}
        scores |= {"map_macro": retrieval.map_macro, **_means(retrieval.scores)}
        chance |= {"map_macro": retrieval.chance_map_macro, **_means(retrieval.chance)}
        values = (
            ValueResult(
                name=value_names[value],
                queries=int(counts[value]),
                map=achieved,
                chance_map=retrieval.chance_per_value[value],
                new=value_names[value] in new_values,
            )
            for value, achieved in retrieval.per_value.items()
        )
        candidates, unanswerable = retrieval.num_candidates.mean(), (retrieval.num_relevant == 0).sum()
        queries = len(retrieval.queries)
        return cls(name, queries, float(candidates), int(unanswerable), scores, chance, tuple(values))

    def among(self, *, new: bool) -> Among | None:
        """The queries of new values, or those of known values; None if the attribute has no such query."""
        values = [value for value in self.values if value.new == new]
        if not values:
            return None
        queries = [value.queries for value in values]
        achieved = float(np.average([value.map for value in values], weights=queries))
        chance = float(np.average([value.chance_map for value in values], weights=queries))
        return Among(sum(queries), achieved, chance)


@dataclass(frozen=True, repr=False)
class EvaluationResult(Result):
    """Retrieval quality under each attribute and over all of them."""

    attributes: tuple[AttributeResult, ...]
    unlabelled: tuple[str, ...] = ()  # attributes without a labelled query, which no metric includes
    coverage: Coverage | None = None  # set if images were missing; a subset is not comparable with others
    map_interval: Interval | None = None  # of the mean over the attributes

    primary_metric: ClassVar[str] = "map"

    def __getitem__(self, name: str) -> AttributeResult:
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        raise KeyError(f"no attribute {name!r} in this result, it has {[each.name for each in self.attributes]}")

    @property
    def queries(self) -> int:
        """Queries of all attributes together: an image is one query under each attribute it is labelled with."""
        return sum(attribute.queries for attribute in self.attributes)

    @property
    def overall(self) -> dict[str, float]:
        """Plain means over the attributes (map_macro: over values, then attributes), and mAP weighted by queries."""
        return self._overall([attribute.scores for attribute in self.attributes])

    @property
    def chance_overall(self) -> dict[str, float]:
        """`overall` of a random ranking."""
        return self._overall([attribute.chance for attribute in self.attributes])

    def metrics(self) -> dict[str, float]:
        """All figures by name, as fractions in [0, 1].

        `map`, `map_weighted`, `map_macro`, `recall@k` and `r_precision`; all but `map_weighted` also per attribute
        (`map_<attribute>`, ...); and all of these for a random ranking (`chance_...`). `map_ignore_maybe` and
        `map_multi_label` likewise, if the data set has sets of values. `coverage`, if images were missing.

        If some queries have a value that no training image had: `map_known` and `map_new`, the means of the average
        precision over the queries of known and of new values, also per attribute and for a random ranking. The overall
        figure is the mean over the attributes that have such queries. (An attribute called `known` or `new` keeps the
        name of its mAP.)
        """
        metrics, chance = self.overall, self.chance_overall
        if self.coverage is not None:
            metrics["coverage"] = self.coverage.share
        for attribute in self.attributes:
            metrics |= {f"{measure}_{attribute.name}": value for measure, value in attribute.scores.items()}
            chance |= {f"{measure}_{attribute.name}": value for measure, value in attribute.chance.items()}
        for name, queries in self._known_and_new().items():
            metrics.setdefault(name, queries.map)
            chance.setdefault(name, queries.chance_map)
        return metrics | {f"chance_{name}": value for name, value in chance.items()}

    def intervals(self) -> dict[str, float]:
        """`map_interval_low` and `map_interval_high`, also per attribute; empty if there are no intervals."""
        named = {"": self.map_interval, **{f"_{each.name}": each.map_interval for each in self.attributes}}
        return {
            f"map_interval_{end}{tail}": figure
            for tail, interval in named.items()
            if interval is not None
            for end, figure in zip(("low", "high"), interval, strict=True)
        }

    def as_table(self, decimals: int) -> Table:
        """Figures in percent, each with its chance level in brackets. Few queries have intervals of the mAP.

        A notebook shows the best attributes in bold.
        """
        measures = list(self.attributes[0].scores)
        overall, chance = self.overall, self.chance_overall

        def cell(name: str, scores: dict[str, float], levels: dict[str, float]) -> str:
            return f"{percent(scores[name], decimals)} ({percent(levels[name], decimals)})"

        attributes = [
            [each.name, f"{each.queries:,}", *(cell(name, each.scores, each.chance) for name in measures)]
            for each in self.attributes
        ]
        weighted = [cell(f"{name}_weighted", overall, chance) if name in _WEIGHTED else "" for name in measures]
        means = [
            ["mean", "", *(cell(name, overall, chance) for name in measures)],
            ["query-weighted", f"{self.queries:,}", *weighted],
        ]
        notes = [
            f"{each.name}: {each.queries_without_relevant:,} queries without a relevant candidate count as 0."
            for each in self.attributes
            if each.queries_without_relevant
        ]
        if self.unlabelled:
            notes.append(f"Not evaluated, because no query is labelled with it: {', '.join(self.unlabelled)}.")
        apart = self._known_and_new()
        for kind in ("known", "new"):
            if f"map_{kind}" in apart:
                queries, *figures = apart[f"map_{kind}"]
                achieved, level = (percent(figure, decimals) for figure in figures)
                names = [each.name for each in self.attributes if f"map_{kind}_{each.name}" in apart]
                notes.append(f"mAP of {kind} values: {achieved} ({level}); {queries:,} queries of {', '.join(names)}.")
        header = ["% (chance)", "queries", *(MEASURE_NAMES.get(measure, measure) for measure in measures)]
        if self.intervals():
            intervals = [*(each.map_interval for each in self.attributes), self.map_interval, None]
            header.insert(3, "95 % interval")
            for row, interval in zip([*attributes, *means], intervals, strict=True):
                row.insert(3, _interval_text(interval, decimals))
            notes.insert(0, "The intervals show how far the mAP may be from that of many queries (bootstrap).")
        if self.coverage is not None:
            notes.append(f"Subset: {self.coverage}.")
        return Table(header, [attributes, means], notes, self._bold(header, measures))

    def card(self, baselines: Mapping[str, "EvaluationResult"] = MappingProxyType({})) -> ResultCard:
        """As in the protocol; `baselines` are results of other models on the same split, by name."""
        images = max(each.queries for each in self.attributes)
        names = [each.name for each in self.attributes]
        rows = [["", *names, "mean", "query-weighted", "macro over values"]]
        rows.append(["chance", *_card_cells([each.chance for each in self.attributes], self.chance_overall)])
        for title, result in [*baselines.items(), ("this model", self)]:
            rows.append([title, *_card_cells([result[name].scores for name in names], result.overall)])
        table = markdown_table(rows, bold_title=-1)
        markdown = (
            f"The model was evaluated once on the {images:,}-image test split, which was not used for model "
            "selection. The table shows the mean average precision in percent. Each image is a query, and the other "
            f"images with its value are relevant. Chance is the score of a random ranking.\n\n{table}\n"
        )
        weakest = min(self.attributes, key=lambda each: each.scores["map"] - each.chance["map"])
        markdown += (
            f"\nThe attribute least above chance is {markdown_text(weakest.name)}, with a mAP of "
            f"{percent(weakest.scores['map'])} where chance is {percent(weakest.chance['map'])}.\n"
        )
        if self.map_interval is not None:
            markdown += (
                f"\nBecause the queries are few, the mean is uncertain: its 95 % interval is "
                f"{_interval_text(self.map_interval, decimals=1)} (bootstrap).\n"
            )
        if self.coverage is not None:
            subset = markdown_text(self.coverage)
            markdown += f"\n**Subset**: {subset}. Do not compare these figures with results on the full set.\n"
        titles = {"map": "mAP, mean of the attributes", "map_macro": "mAP, mean over values, then attributes"}
        titles |= {f"map_{name}": f"mAP, {name}" for name in names}
        figures = self.percentages(titles)
        return ResultCard("Retrieval quality", "attribute-conditioned image retrieval", markdown, figures)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"metrics": self.metrics()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "EvaluationResult":
        attributes = tuple(
            AttributeResult(
                **(each | {"values": tuple(ValueResult(**value) for value in each["values"])} | _read_interval(each))
            )
            for each in content["attributes"]
        )
        coverage = content.get("coverage")  # missing in results of early versions
        found = None if coverage is None else Coverage(**coverage)
        return cls(attributes, tuple(content["unlabelled"]), found, **_read_interval(content))

    def _bold(self, header: Sequence[str], measures: Sequence[str]) -> dict[tuple[int, int, int], str]:
        """The style of the highest figure of each measure, for its place in the table; none for a single attribute."""
        if len(self.attributes) == 1:
            return {}
        styles = {}
        for measure in measures:
            column = header.index(MEASURE_NAMES.get(measure, measure))
            figures = [each.scores[measure] for each in self.attributes]
            styles[0, int(np.argmax(figures)), column] = "font-weight: bold"
        return styles

    def _known_and_new(self) -> dict[str, Among]:
        """`map_known`, `map_new`, `map_known_<attribute>`, ...; empty if no query has a new value."""
        apart: dict[str, Among] = {}
        for kind, new in (("known", False), ("new", True)):
            parts = {each.name: part for each in self.attributes if (part := each.among(new=new)) is not None}
            if parts:
                queries, achieved, chance = zip(*parts.values(), strict=True)
                apart[f"map_{kind}"] = Among(sum(queries), float(np.mean(achieved)), float(np.mean(chance)))
                apart |= {f"map_{kind}_{name}": part for name, part in parts.items()}
        return apart if "map_new" in apart else {}

    def _overall(self, per_attribute: list[dict[str, float]]) -> dict[str, float]:
        queries = [attribute.queries for attribute in self.attributes]
        means = {}
        for measure in per_attribute[0]:
            figures = [each[measure] for each in per_attribute]
            means[measure] = float(np.mean(figures))
            if measure in _WEIGHTED:
                means[f"{measure}_weighted"] = float(np.average(figures, weights=queries))
        return means


def _means(scores: RetrievalScores) -> dict[str, float]:
    recall = {f"recall@{k}": float(hits.mean()) for k, hits in scores.recall.items()}
    return {**recall, "r_precision": float(scores.r_precision.mean())}


def _interval_text(interval: Interval | None, decimals: int) -> str:
    return "" if interval is None else " to ".join(percent(end, decimals) for end in interval)


def _read_interval(content: Mapping[str, Any]) -> dict[str, Interval | None]:
    """`map_interval` of a JSON file; results of early versions have none."""
    interval = content.get("map_interval")
    return {"map_interval": None if interval is None else tuple(interval)}


def _card_cells(attributes: Sequence[Mapping[str, float]], overall: Mapping[str, float]) -> list[str]:
    means = (overall[name] for name in ("map", "map_weighted", "map_macro"))
    return [percent(figure) for figure in (*(each["map"] for each in attributes), *means)]
