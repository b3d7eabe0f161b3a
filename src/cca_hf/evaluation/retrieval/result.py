"""The result of an evaluation: every figure of every attribute with its chance level, and the means over attributes.

All figures are fractions in [0, 1]; only `table()` speaks percent.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from cca_hf.data.coverage import Coverage
from cca_hf.evaluation.results import ResultCard, save_result
from cca_hf.evaluation.text_table import format_table, percent

from .metrics import AttributeRetrieval, RetrievalScores

MEASURE_NAMES = {
    "map": "mAP",
    "map_ignore_maybe": "mAP, maybe ignored",
    "map_multi_label": "mAP, multi-label",
    "map_macro": "macro mAP",
    "r_precision": "R-precision",
}  # of the others the name says it
_WEIGHTED = ("map", "map_ignore_maybe", "map_multi_label")  # with a query-weighted mean beside the plain one


@dataclass(frozen=True)
class ValueResult:
    """Mean average precision of the queries that show one value of an attribute."""

    name: str
    queries: int
    map: float
    chance_map: float


@dataclass(frozen=True)
class AttributeResult:
    """One attribute. `scores` and `chance` hold the same measures: map, map_macro, recall@k..., r_precision.

    Where the data set says more of a picture than one value, map_ignore_maybe or map_multi_label follow map.
    """

    name: str
    queries: int
    candidates: float  # mean per query, after exclusions
    queries_without_relevant: int  # their average precision is 0 whatever the model does
    scores: dict[str, float]
    chance: dict[str, float]
    values: tuple[ValueResult, ...]  # those that any query shows

    @classmethod
    def from_retrieval(
        cls,
        name: str,
        value_names: Sequence[str],
        retrieval: AttributeRetrieval,
        refined: Mapping[str, AttributeRetrieval] = MappingProxyType({}),
    ) -> "AttributeResult":
        """`refined`: measure -> another retrieval of the same queries, of which only the mAP is kept."""
        counts = np.bincount(retrieval.labels)
        return cls(
            name=name,
            queries=len(retrieval.queries),
            candidates=float(retrieval.num_candidates.mean()),
            queries_without_relevant=int((retrieval.num_relevant == 0).sum()),
            scores={
                "map": retrieval.map,
                **{measure: each.map for measure, each in refined.items()},
                "map_macro": retrieval.map_macro,
                **_means(retrieval.scores),
            },
            chance={
                "map": retrieval.chance_map,
                **{measure: each.chance_map for measure, each in refined.items()},
                "map_macro": retrieval.chance_map_macro,
                **_means(retrieval.chance),
            },
            values=tuple(
                ValueResult(value_names[value], int(counts[value]), achieved, retrieval.chance_per_value[value])
                for value, achieved in retrieval.per_value.items()
            ),
        )


@dataclass(frozen=True)
class EvaluationResult:
    """Retrieval quality under each attribute and over all of them.

    `unlabelled` names the attributes that no query is labelled with: they are part of no figure. `coverage` is there
    where pictures were missing: the figures are then those of a subset, and not to be compared with others.
    """

    attributes: tuple[AttributeResult, ...]
    unlabelled: tuple[str, ...] = ()
    coverage: Coverage | None = None

    def __getitem__(self, name: str) -> AttributeResult:
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        raise KeyError(f"no attribute {name!r} in this result, it has {[each.name for each in self.attributes]}")

    @property
    def queries(self) -> int:
        """Queries of all attributes together: an image asks once under each attribute it is labelled with."""
        return sum(attribute.queries for attribute in self.attributes)

    @property
    def overall(self) -> dict[str, float]:
        """Plain means over the attributes (map_macro: over values, then attributes), and map_weighted over queries.

        Of map_ignore_maybe and map_multi_label both means too.
        """
        return self._overall([attribute.scores for attribute in self.attributes])

    @property
    def chance_overall(self) -> dict[str, float]:
        """What a random ranking reaches of `overall`."""
        return self._overall([attribute.chance for attribute in self.attributes])

    def metrics(self) -> dict[str, float]:
        """All figures by name: `map`, `map_weighted`, `map_macro`, `recall@k`, `r_precision`, each of them but
        `map_weighted` also per attribute (`map_<attribute>`, `map_macro_<attribute>`, ...), and all of these once more
        as `chance_...`. Fractions in [0, 1]. `map_ignore_maybe` and `map_multi_label` likewise, where they are;
        `coverage` is there if pictures were missing.
        """
        metrics = dict(self.overall)
        if self.coverage is not None:
            metrics["coverage"] = self.coverage.share
        chance = dict(self.chance_overall)
        for attribute in self.attributes:
            metrics |= {f"{measure}_{attribute.name}": value for measure, value in attribute.scores.items()}
            chance |= {f"{measure}_{attribute.name}": value for measure, value in attribute.chance.items()}
        return metrics | {f"chance_{name}": value for name, value in chance.items()}

    def table(self, decimals: int = 1) -> str:
        """A table for terminals, in percent, the chance level in brackets behind every figure."""
        measures = list(self.attributes[0].scores)
        overall, chance = self.overall, self.chance_overall

        def cells(scores: dict[str, float], levels: dict[str, float]) -> list[str]:
            return [f"{percent(scores[name], decimals)} ({percent(levels[name], decimals)})" for name in measures]

        weighted = [
            f"{percent(overall[f'{name}_weighted'], decimals)} ({percent(chance[f'{name}_weighted'], decimals)})"
            if name in _WEIGHTED
            else ""
            for name in measures
        ]
        lines = [
            format_table(
                ["% (chance)", "queries", *(MEASURE_NAMES.get(measure, measure) for measure in measures)],
                [
                    [[each.name, f"{each.queries:,}", *cells(each.scores, each.chance)] for each in self.attributes],
                    [
                        ["mean", "", *cells(overall, chance)],
                        ["query-weighted", f"{self.queries:,}", *weighted],
                    ],
                ],
            )
        ]
        for each in self.attributes:
            if each.queries_without_relevant:
                lines.append(
                    f"{each.name}: {each.queries_without_relevant:,} queries with nothing to find count as 0."
                )
        if self.unlabelled:
            lines.append(f"Not evaluated, no query is labelled with it: {', '.join(self.unlabelled)}.")
        if self.coverage is not None:
            lines.append(f"Subset: {self.coverage}.")
        return "\n".join(lines)

    def card(self, baselines: Mapping[str, "EvaluationResult"] = MappingProxyType({})) -> ResultCard:
        """The section of a model card about this result, which must be of the test split.

        Args:
            baselines: name -> result of another model on the same split.
        """
        images = max(each.queries for each in self.attributes)
        names = [each.name for each in self.attributes]
        header = [*names, "mean", "query-weighted", "macro over values"]
        lines = [f"| | {' | '.join(header)} |", f"|---|{'---|' * len(header)}"]
        for title, result in {"chance": self, **baselines, "**this model**": self}.items():
            chance = title == "chance"
            scores = [(result[name].chance if chance else result[name].scores)["map"] for name in names]
            means = result.chance_overall if chance else result.overall
            figures = [*scores, means["map"], means["map_weighted"], means["map_macro"]]
            lines.append(f"| {title} | {' | '.join(map(percent, figures))} |")
        table = "\n".join(lines)
        markdown = (
            f"Evaluated once on the {images:,}-image test split, which was not used for model selection. Mean average "
            "precision in percent: each image is a query, and the other images with its value are relevant; chance is "
            f"the score of a random ranking.\n\n{table}\n"
        )
        weakest = min(self.attributes, key=lambda each: each.scores["map"] - each.chance["map"])
        markdown += (
            f"\nThe attribute with the smallest gain over chance is {weakest.name}: its mAP is "
            f"{percent(weakest.scores['map'])}, and chance is {percent(weakest.chance['map'])}.\n"
        )
        if self.coverage is not None:
            markdown += f"\n**Subset**: {self.coverage}. These figures are not comparable with others.\n"
        titles = {"map": "mAP, mean of the attributes", "map_macro": "mAP, mean over values, then attributes"}
        titles |= {f"map_{name}": f"mAP, {name}" for name in names}
        metrics = self.metrics()
        return ResultCard(
            "How well it finds",
            "attribute-conditioned image retrieval",
            markdown,
            tuple((metric, title, round(100 * metrics[metric], 2)) for metric, title in titles.items()),
        )

    def to_dict(self) -> dict:
        """Everything as plain Python values, for JSON; `from_dict` reads it back."""
        return asdict(self) | {"metrics": self.metrics()}

    @classmethod
    def from_dict(cls, content: dict) -> "EvaluationResult":
        """The inverse of `to_dict`."""
        attributes = tuple(
            AttributeResult(**(each | {"values": tuple(ValueResult(**value) for value in each["values"])}))
            for each in content["attributes"]
        )
        coverage = content.get("coverage")  # results of earlier versions have none
        return cls(attributes, tuple(content["unlabelled"]), None if coverage is None else Coverage(**coverage))

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict()` to `path`, whole or not at all; missing folders are made."""
        return save_result(self, path)

    @classmethod
    def load_json(cls, path: str | Path) -> "EvaluationResult":
        """The inverse of `save_json`."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

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
    return {
        **{f"recall@{k}": float(hits.mean()) for k, hits in scores.recall.items()},
        "r_precision": float(scores.r_precision.mean()),
    }
