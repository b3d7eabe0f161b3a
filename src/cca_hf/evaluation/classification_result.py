"""The result of `evaluate_classification`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from .results import Result, ResultCard
from .text_table import Table, markdown_table, markdown_text, percent

_TITLES = {
    "accuracy": "accuracy",
    "top_5_accuracy": "top-5 accuracy",
    "macro_recall": "mean recall of the classes",
}
_SHOWN_CLASSES = 20  # in a terminal and on a card


@dataclass(frozen=True)
class ClassScore:
    """One class; `recall` and `precision` are None without an image and without a prediction of the class."""

    name: str
    images: int
    recall: float | None
    precision: float | None
    taken_for: str | None  # the class with which its images are confused most often


@dataclass(frozen=True)
class ClassConfusion:
    """Images of the class `name` that were taken for another class."""

    name: str
    taken_for: str
    count: int
    share: float  # of the images of the class


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose confidence, the probability of the predicted class, is above `low` and at most `high`."""

    low: float
    high: float
    images: int
    confidence: float | None  # mean; None without images
    accuracy: float | None


@dataclass(frozen=True, repr=False)
class ClassificationResult(Result):
    """Accuracy, a table of the classes, their confusions and the calibration; see `evaluate_classification`."""

    primary_metric: ClassVar[str] = "accuracy"

    split: str
    images: int
    figures: Mapping[str, float]  # accuracy, top_5_accuracy if there are more than 5 classes, macro_recall, ece, nll
    interval: tuple[float, float]  # of the accuracy, 95 %
    classes: Sequence[ClassScore]  # in the order of their ids
    confusions: Sequence[ClassConfusion]  # the most frequent ones first
    bins: Sequence[ReliabilityBin]

    def metrics(self) -> dict[str, float]:
        count = len(self.classes)
        chances = {"accuracy": 1 / count, "top_5_accuracy": 5 / count, "macro_recall": 1 / count}
        return {
            **self.figures,
            **{f"chance_{name}": chance for name, chance in chances.items() if name in self.figures},
        }

    def intervals(self) -> dict[str, float]:
        low, high = self.interval
        return {"accuracy_interval_low": low, "accuracy_interval_high": high}

    def as_table(self, decimals: int) -> Table:
        shown = self.lowest_classes()[:_SHOWN_CLASSES]
        header = ["in %", "value", "95 % interval", "chance", "images", "precision", "mostly taken for"]
        summary = [[*row, "", ""] for row in self.summary_rows(decimals)]
        classes = [
            [
                each.name,
                _percent(each.recall, decimals),
                "",
                "",
                f"{each.images:,}",
                _percent(each.precision, decimals),
                each.taken_for or "",
            ]
            for each in shown
        ]
        notes = [
            f"Below the line: the recall of {'the' if len(shown) == len(self.classes) else f'{len(shown)} of the'} "
            f"{len(self.classes)} classes, lowest first.",
            f"Expected calibration error (15 bins): {percent(self.figures['ece'], decimals)} percentage points. "
            f"Cross-entropy: {self.figures['nll']:.3f}.",
        ]
        return Table(header, [summary, classes], notes)

    def summary_rows(self, decimals: int) -> list[list[str]]:
        """Rows of a name, its value, interval, chance and the number of images, for the accuracies."""
        metrics = self.metrics()
        rows = []
        for name, title in _TITLES.items():
            if name in self.figures:
                interval = " to ".join(percent(end, decimals) for end in self.interval) if name == "accuracy" else ""
                chance = percent(metrics[f"chance_{name}"], decimals)
                rows.append([title, percent(metrics[name], decimals), interval, chance, f"{self.images:,}"])
        return rows

    def lowest_classes(self) -> list[ClassScore]:
        """The classes that have images, by their recall, the lowest first."""
        found = [(each.recall, each) for each in self.classes if each.recall is not None]
        return [each for _, each in sorted(found, key=lambda pair: pair[0])]

    def card(self) -> ResultCard:
        lowest = self.lowest_classes()[:_SHOWN_CLASSES]
        rows = [["class", "images", "recall in %", "precision in %", "mostly taken for"]]
        for each in lowest:
            figures = (_percent(each.recall, 1), _percent(each.precision, 1))
            rows.append([each.name, f"{each.images:,}", *figures, each.taken_for or ""])
        parts = [
            f"The model was evaluated once on the {self.images:,} images of the split `{self.split}`, which was not "
            "used for model selection. The interval is that of 1,000 draws of the images.",
            markdown_table([["in %", "value", "95 % interval", "chance", "images"], *self.summary_rows(1)]),
            f"The probability of the predicted class differs from the accuracy by "
            f"{percent(self.figures['ece'])} percentage points on average (expected calibration error, 15 bins).",
            f"The {len(lowest)} classes with the lowest recall:"
            if len(lowest) < len(self.classes)
            else "The classes:",
            markdown_table(rows),
        ]
        if self.confusions:
            named = "; ".join(
                f"{markdown_text(each.name)} taken for {markdown_text(each.taken_for)} ({each.count:,} images, "
                f"{percent(each.share)} % of the class)"
                for each in self.confusions[:5]
            )
            parts.append(f"Most frequent confusions: {named}.")
        titles = {name: title.capitalize() for name, title in _TITLES.items() if name in self.figures}
        return ResultCard("Classification", "image-classification", "\n\n".join(parts), self.percentages(titles))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "metrics": self.metrics()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        return cls(
            split=content["split"],
            images=content["images"],
            figures=content["figures"],
            interval=tuple(content["interval"]),
            classes=tuple(ClassScore(**each) for each in content["classes"]),
            confusions=tuple(ClassConfusion(**each) for each in content["confusions"]),
            bins=tuple(ReliabilityBin(**each) for each in content["bins"]),
        )


def _percent(fraction: float | None, decimals: int) -> str:
    return "" if fraction is None else percent(fraction, decimals)
