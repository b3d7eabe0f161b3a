"""The report of a classifier: `report.html`, which needs no other file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from transformers import PreTrainedModel

from cca_hf.data.class_images import ClassImages
from cca_hf.data.schema import IMAGE_COLUMN, AttributeDataset
from cca_hf.evaluation.classification_result import ClassConfusion, ClassificationResult, ReliabilityBin
from cca_hf.models.images import ImageInput
from cca_hf.models.whole_files import write_text

from .page import render
from .report import curves_of

_CONFUSIONS = 6
_IMAGES = 4  # of a confusion, on each side
_TILES = {"accuracy": "accuracy", "top_5_accuracy": "top-5 accuracy", "macro_recall": "mean recall of the classes"}
_SIDE = 300  # of the calibration figure, in units of its viewBox


@dataclass(frozen=True)
class ConfusionView:
    """Images of a class that were taken for another one, beside training images of the other one."""

    confusion: ClassConfusion
    taken: Sequence[ImageInput]
    others: Sequence[ImageInput]


def write_classification_report(
    result: ClassificationResult,
    data: AttributeDataset,
    predicted: NDArray,
    path: str | PathLike[str],
    *,
    title: str,
    model: PreTrainedModel,
    history: Iterable[Mapping[str, object]] = (),
) -> Path:
    """Writes a page with the accuracies, the calibration, the most frequent confusions and the classes.

    Args:
        data: the data set of the result, with one attribute.
        predicted: (images,) ids of the classes that were predicted for the labelled images of the split.
        model: its type is named.
        history: the Trainer's `state.log_history`.

    Raises:
        UnreadableImageError: if an image cannot be read; the message names it.
    """
    text = render(
        "classification.html",
        title=title,
        model=type(model).__name__,
        result=result,
        metrics=result.metrics(),
        tiles=[(name, label) for name, label in _TILES.items() if name in result.figures],
        bins=[_bar(each) for each in result.bins],
        side=_SIDE,
        views=view_confusions(result, data, predicted),
        lowest=result.lowest_classes(),
        curves=curves_of(list(history)),
    )
    return write_text(text, Path(path))


def view_confusions(result: ClassificationResult, data: AttributeDataset, predicted: NDArray) -> list[ConfusionView]:
    """The most frequent confusions with their first images."""
    images = ClassImages(data, result.split)
    train = ClassImages(data, "train") if "train" in data else None
    ids = {name: place for place, name in enumerate(images.classes)}
    views = []
    for confusion in result.confusions[:_CONFUSIONS]:
        name, other = ids[confusion.name], ids[confusion.taken_for]
        taken = images.rows[(images.labels == name) & (predicted == other)]
        others = [] if train is None else train.rows[train.labels == other]
        views.append(ConfusionView(confusion, _first(data, result.split, taken), _first(data, "train", others)))
    return views


def _first(data: AttributeDataset, split: str, rows: Sequence[int] | NDArray) -> list[ImageInput]:
    chosen = [int(row) for row in rows[:_IMAGES]]
    return data.splits[split].select(chosen)[:][IMAGE_COLUMN] if chosen else []


def _bar(each: ReliabilityBin) -> dict[str, Any]:
    """The place of a bin in the calibration figure, whose origin is above on the left."""
    height = _SIDE * (each.accuracy or 0)
    share = f"{100 * each.low:.0f} to {100 * each.high:.0f} %"
    label = f"confidence {share}: no image"
    if each.accuracy is not None and each.confidence is not None:
        label = (
            f"confidence {share}: {each.images:,} images, mean confidence {100 * each.confidence:.1f} %, "
            f"accuracy {100 * each.accuracy:.1f} %"
        )
    return {
        "x": f"{_SIDE * each.low + 1:.1f}",
        "y": f"{_SIDE - height:.1f}",
        "width": f"{_SIDE * (each.high - each.low) - 2:.1f}",
        "height": f"{height:.1f}",
        "label": label,
        "bin": each,
    }
