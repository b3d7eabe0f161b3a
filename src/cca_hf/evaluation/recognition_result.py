"""The result of `evaluate_recognition`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from .results import Result, ResultCard
from .text_table import Table, markdown_table, percent

_TITLES = {
    "mean_accuracy": "mA",
    "instance_accuracy": "instance accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
}
_HEADER = ["%", "mA", "95 % interval", "accuracy", "calibration error", "answered", "wrong answers", "labelled images"]


@dataclass(frozen=True)
class Figure:
    """A measure of a split, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RecognisedValue:
    """A value of an attribute: the number of its images, and its rates; `None` without images to measure them on."""

    name: str
    images: int
    true_positive_rate: float | None
    true_negative_rate: float | None


@dataclass(frozen=True)
class RecognisedAttribute:
    """The figures of one attribute; `None` where its labels are too few to measure it.

    Args:
        labelled: number of labelled images.
        mean_accuracy: the mA.
        accuracy: the share of labelled images whose most probable value is right; of several values, the share of
            values.
        ece: the expected calibration error.
        answered: the share of labelled images whose value is not unknown.
        error: the share of wrong ones among the answers above the threshold.
    """

    name: str
    kind: str
    labelled: int
    mean_accuracy: Figure | None
    accuracy: float | None
    ece: float | None
    answered: float | None
    error: float | None
    values: tuple[RecognisedValue, ...]


@dataclass(frozen=True, repr=False)
class RecognitionResult(Result):
    """mA, instance metrics, calibration and answers; see `evaluation/recognition.py`.

    The primary metric, `mean_accuracy`, is the mA.
    """

    primary_metric: ClassVar[str] = "mean_accuracy"

    split: str
    images: int
    figures: Mapping[str, Figure]  # mean_accuracy, instance_accuracy, precision, recall, f1
    attributes: tuple[RecognisedAttribute, ...]

    def metrics(self) -> dict[str, float]:
        means = {name: self._mean(name) for name in ("accuracy", "ece", "answered", "error")}
        of_attributes = {
            f"mean_accuracy_{each.name}": each.mean_accuracy.value
            for each in self.attributes
            if each.mean_accuracy is not None
        }
        return {
            **{name: figure.value for name, figure in self.figures.items()},
            **{name: value for name, value in means.items() if value is not None},
            **of_attributes,
        }

    def intervals(self) -> dict[str, float]:
        ends: dict[str, float] = {}
        for name, figure in self.figures.items():
            ends |= {f"{name}_interval_low": figure.low, f"{name}_interval_high": figure.high}
        return ends

    def as_table(self, decimals: int) -> Table:
        header, *rows, mean = self._rows(decimals)
        instance = "; ".join(
            f"{_TITLES[name]} {percent(figure.value, decimals)} "
            f"({percent(figure.low, decimals)} - {percent(figure.high, decimals)})"
            for name, figure in self.figures.items()
            if name != self.primary_metric
        )
        return Table(header, [rows, [mean]], [f"{self.images:,} images of {self.split!r}: {instance}"])

    def card(self) -> ResultCard:
        text = (
            f"Measured on the {self.images:,} images of the split `{self.split}`. mA is the mean of the recall of the "
            "images with a value and of those without it, over the values and the attributes. Accuracy is the share "
            "of images whose most probable value is right. The calibration error is the mean difference between a "
            "probability and the share of right answers with about this probability. An image is answered if the "
            "probability of its value is above the threshold, which was chosen on validation; the share of wrong "
            "answers is among these. The intervals contain 95 % of 1,000 draws of the images."
        )
        figures = [["over the values of an image, %", "value", "95 % interval"]]
        for name, figure in self.figures.items():
            ends = f"{percent(figure.low)} - {percent(figure.high)}"
            figures.append([_TITLES[name], percent(figure.value), ends])
        rows = self._rows(1)
        markdown = f"{text}\n\n{markdown_table(rows, bold_title=len(rows) - 1)}\n\n{markdown_table(figures)}"
        metrics = self.percentages({name: _TITLES[name] for name in self.figures})
        return ResultCard("Recognition of attributes", "image-classification", markdown, metrics)

    def to_dict(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "images": self.images,
            "metrics": self.metrics(),
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
            "attributes": [asdict(each) for each in self.attributes],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        figures = {name: Figure(**figure) for name, figure in content["figures"].items()}
        return cls(content["split"], content["images"], figures, tuple(map(_attribute, content["attributes"])))

    def _mean(self, name: str) -> float | None:
        known = [value for each in self.attributes if (value := vars(each)[name]) is not None]
        return sum(known) / len(known) if known else None

    def _rows(self, decimals: int) -> list[list[str]]:
        rows = [_HEADER]
        for each in self.attributes:
            shares = (each.accuracy, each.ece, each.answered, each.error)
            rows.append([each.name, *_row(each.mean_accuracy, shares, decimals), f"{each.labelled:,}"])
        means = [self._mean(name) for name in ("accuracy", "ece", "answered", "error")]
        rows.append(["mean", *_row(self.figures.get(self.primary_metric), means, decimals), ""])
        return rows


def _row(figure: Figure | None, shares: Any, decimals: int) -> list[str]:
    first = ["-", "-"]
    if figure is not None:
        first = [
            percent(figure.value, decimals),
            f"{percent(figure.low, decimals)} - {percent(figure.high, decimals)}",
        ]
    return [*first, *("-" if share is None else percent(share, decimals) for share in shares)]


def _attribute(content: Mapping[str, Any]) -> RecognisedAttribute:
    figure = content["mean_accuracy"]
    parsed = {
        "mean_accuracy": None if figure is None else Figure(**figure),
        "values": tuple(RecognisedValue(**value) for value in content["values"]),
    }
    return RecognisedAttribute(**{**content, **parsed})
