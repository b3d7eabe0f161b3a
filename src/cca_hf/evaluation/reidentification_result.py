"""The result of `evaluate_reidentification`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from .results import Result, ResultCard
from .text_table import Table, markdown_table, percent


@dataclass(frozen=True, repr=False)
class ReidentificationResult(Result):
    """mAP, CMC and mINP of queries that search their identity in other cameras; see `evaluate_reidentification`.

    Args:
        split: the name of the images.
        figures: `map`, `cmc@<k>` and `minp`, as fractions.
        chance: the same for a random ranking.
        interval: the ends of the 95 % interval of the mAP, over identities; None with a single identity.
        queries: number of queries that were measured.
        identities: number of their identities.
        left_out: number of queries without a match in another camera, which were not measured.
        gallery: number of images that are searched.
        distractors: number of these that no measured query has to find.
    """

    primary_metric: ClassVar[str] = "map"

    split: str
    figures: Mapping[str, float]
    chance: Mapping[str, float]
    interval: tuple[float, float] | None
    queries: int
    identities: int
    left_out: int
    gallery: int
    distractors: int

    def metrics(self) -> dict[str, float]:
        return {**self.figures, **{f"chance_{name}": value for name, value in self.chance.items()}}

    def intervals(self) -> dict[str, float]:
        if self.interval is None:
            return {}
        low, high = self.interval
        return {"map_interval_low": low, "map_interval_high": high}

    def as_table(self, decimals: int) -> Table:
        header, *rows = self._rows(decimals)
        return Table(header, [rows], [*self._notes()])

    def card(self) -> ResultCard:
        text = (
            f"Measured on the split `{self.split}`. Each query searches images of its identity that other cameras "
            "took; images of its identity by its own camera are left out. mAP is the mean average precision over "
            "the whole ranking, CMC@k the share of queries with a match among the first k, and mINP the mean of the "
            "number of matches over the rank of the last one. The interval is that of 1,000 draws of the identities."
        )
        parts = [text, markdown_table(self._rows(1)), " ".join(self._notes())]
        figures = self.percentages({name: title_of(name) for name in self.figures})
        return ResultCard("Re-identification", "object-re-identification", "\n\n".join(parts), figures)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "metrics": self.metrics()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        fields = {name: value for name, value in content.items() if name in cls.__dataclass_fields__}
        ends = fields["interval"]
        return cls(**fields | {"interval": None if ends is None else (ends[0], ends[1])})

    def _rows(self, decimals: int) -> list[list[str]]:
        rows = [["%", "value", "95 % interval", "chance"]]
        for name, value in self.figures.items():
            ends = "" if name != "map" or self.interval is None else " to ".join(percent(e) for e in self.interval)
            rows.append([title_of(name), percent(value, decimals), ends, percent(self.chance[name], decimals)])
        return rows

    def _notes(self) -> list[str]:
        notes = [
            f"{self.queries:,} queries of {self.identities:,} identities in a gallery of {self.gallery:,} images, "
            f"{self.distractors:,} of them distractors."
        ]
        if self.left_out:
            notes.append(f"{self.left_out:,} queries have no match in another camera, and are left out.")
        return notes


def title_of(name: str) -> str:
    """`cmc@1` -> `CMC@1`."""
    return {"map": "mAP", "minp": "mINP"}.get(name, name.upper())
