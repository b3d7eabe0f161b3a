"""How well a model recognises the values of attributes: the metrics of pedestrian attributes, and calibration.

A value of an image is *recognised* if its logit is above 0 (a probability of 0.5 as the loss learns it), as published;
of exclusive values, the one with the highest logit is. y says whether a labelled image has the value, p whether it is
recognised. A binary attribute has one such value, the second one.

- mA of an attribute: (TPR + TNR) / 2, the mean of the share of images with y = 1 that have p = 1, and of the share of
  images with y = 0 that have p = 0; for several values, the mean over the values. A value that all labelled images
  have, or none, takes no part. The mA of a split is the mean over the attributes.
- Instance accuracy |y & p| / |y | p|, precision |y & p| / |p| and recall |y & p| / |y| of all labelled values of an
  image; the means over the images. A quotient by 0 counts as 0. F1 is that of the mean precision and recall.
- An *answer* is the most probable value by the calibrated probabilities, as `predict` gives it. Accuracy, calibration
  error (see `calibration.py`), the share of answers above the threshold, and the share of wrong ones among these.
- Intervals: the bootstrap over images, or over groups of near copies such as a person, which are drawn whole.

Labels that are missing take no part. mA and the instance metrics are those of Li et al., A Richly Annotated Dataset
for Pedestrian Attribute Recognition, https://arxiv.org/abs/1603.07054.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset
from transformers import BaseImageProcessor

from cca_hf.data.recognition import RecognitionDataset
from cca_hf.data.recognition_images import RecognitionImages
from cca_hf.data.torch_dataset import AttributeCollator
from cca_hf.models.attribute_recognition import NOT_LABELLED, value_probabilities
from cca_hf.models.configuration_images import RecognitionConfig

from .arrays import BoolArray, FloatArray, check_finite, members, to_group_ids, to_numbers
from .calibration import answers_of, expected_calibration_error
from .recognition_result import Figure, RecognisedAttribute, RecognisedValue, RecognitionResult
from .retrieval.intervals import interval_of

_DRAWS = 1000


def evaluate_recognition(
    config: RecognitionConfig,
    logits: object,
    labels: object,
    *,
    split: str = "test",
    groups: object | None = None,
    seed: int = 0,
) -> RecognitionResult:
    """Compares the logits of a model with labels.

    Args:
        config: with the attributes, their values and kinds, temperatures and thresholds.
        logits: (images, num_logits).
        labels: (images, num_logits) of 1, 0, and -1 where an image is not labelled.
        split: the name of the images.
        groups: (images,) ids of near copies, -1 for none.
        seed: of the draws for the intervals.

    Raises:
        ValueError: for arrays of other shapes, other labels, logits that are not finite, or images without a label.
    """
    scores, targets = (to_numbers(name, each) for name, each in (("logits", logits), ("labels", labels)))
    if scores.ndim != 2 or scores.shape[1] != config.num_logits or targets.shape != scores.shape:
        raise ValueError(
            f"logits and labels must have shape (images, {config.num_logits}), got {scores.shape} and {targets.shape}"
        )
    check_finite("logits", scores)
    if not np.isin(targets, (NOT_LABELLED, 0, 1)).all():
        raise ValueError("labels must be 1, 0 or -1 (not labelled)")
    if not (targets != NOT_LABELLED).any():
        raise ValueError(f"no image of the split {split!r} has a label of {', '.join(config.attributes)}")
    counted = _Counts(config, recognised(config, scores), targets)
    member, sizes = members(to_group_ids(groups, len(scores)))
    sums = np.zeros((len(sizes), counted.of_images.shape[1]))
    np.add.at(sums, member, counted.of_images)
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(_DRAWS):
        drawn = np.bincount(random.integers(len(sizes), size=len(sizes)), minlength=len(sizes))
        draws.append(drawn @ sums)
    found, spread = counted.figures(sums.sum(axis=0)), counted.figures(np.array(draws))
    figures = [
        Figure(float(value), *interval_of(column)) if math.isfinite(value) else None
        for value, column in zip(found, spread.T, strict=True)
    ]
    probabilities = value_probabilities(config, torch.from_numpy(scores)).double().numpy()
    attributes = [
        _attribute(config, name, figures[place], counted, probabilities, targets)
        for place, name in enumerate(config.attributes)
    ]
    names = ("mean_accuracy", "instance_accuracy", "precision", "recall", "f1")
    overall = {name: each for name, each in zip(names, figures[len(attributes) :], strict=True) if each is not None}
    return RecognitionResult(split, len(scores), overall, tuple(attributes))


def recognised(config: RecognitionConfig, logits: NDArray) -> BoolArray:
    """(images, num_logits) whether each value is recognised."""
    found = logits > 0
    for name, part in config.logit_slices.items():
        if config.kind_of(name) == "exclusive":
            found[:, part] = np.arange(part.stop - part.start) == logits[:, part].argmax(axis=1)[:, None]
    return found


class RecognitionEvaluator:
    """Computes the logits of the images of a split, and compares them with the labels.

    Args:
        config: of the model. Its temperatures and thresholds are read at each evaluation.
    """

    primary_metric: str = RecognitionResult.primary_metric
    shown_metrics: Iterable[str] = ("mean_accuracy", "f1")

    def __init__(self, data: RecognitionDataset, config: RecognitionConfig, processor: BaseImageProcessor) -> None:
        self.data = data
        self.config = config
        self.collator: Callable[[list[Any]], dict[str, torch.Tensor]] = AttributeCollator(processor)

    def images(self, split: Any) -> Dataset[Any]:
        return RecognitionImages(self.data, split) if isinstance(split, str) else split

    def forward(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return model(pixel_values=batch["pixel_values"]).logits.float(), batch["labels"]

    def score(self, images: Any, predictions: NDArray, labels: NDArray) -> RecognitionResult:
        groups = self.data.groups(images.split)
        return evaluate_recognition(self.config, predictions, labels, split=images.split, groups=groups)


class _Counts:
    """Counts of images, from whose sums over any images the figures follow.

    `of_images` (images, 4 num_logits + 4) has, for each value, y & p, y, not y & not p, and not y; then instance
    accuracy, precision and recall, and whether the image has a label.
    """

    def __init__(self, config: RecognitionConfig, found: BoolArray, labels: NDArray) -> None:
        self.parts = list(config.logit_slices.values())
        has, has_not = labels == 1, labels == 0
        both, known = has & found, has | has_not
        shares = [
            _quotient(both.sum(axis=1), whole.sum(axis=1)) for whole in (known & (has | found), known & found, has)
        ]
        labelled = known.any(axis=1).astype(np.float64)
        self.of_images = np.column_stack([both, has, has_not & ~found, has_not, *shares, labelled]).astype(np.float64)

    def rates(self, sums: FloatArray) -> tuple[FloatArray, FloatArray]:
        """TPR and TNR of the values (..., num_logits), NaN without images, from sums (..., columns)."""
        right, positives, rejected, negatives = np.split(sums[..., :-4], 4, axis=-1)
        with np.errstate(invalid="ignore"):
            return right / positives, rejected / negatives

    def figures(self, sums: FloatArray) -> FloatArray:
        """(..., attributes + 5): the mA of the attributes, their mean, instance accuracy, precision, recall and F1."""
        of_values = np.mean(self.rates(sums), axis=0)
        of_attributes = np.stack([_mean_of_known(of_values[..., part]) for part in self.parts], axis=-1)
        accuracy, precision, recall = np.moveaxis(sums[..., -4:-1] / sums[..., -1:], -1, 0)
        f1 = _quotient(2 * precision * recall, precision + recall)
        overall = [_mean_of_known(of_attributes), accuracy, precision, recall, f1]
        return np.concatenate([of_attributes, np.stack(overall, axis=-1)], axis=-1)


def _quotient(parts: NDArray, wholes: NDArray) -> FloatArray:
    return np.divide(parts, wholes, out=np.zeros(np.shape(parts)), where=wholes > 0)


def _mean_of_known(figures: FloatArray) -> FloatArray:
    """The mean over the last axis of the figures that are not NaN; NaN without one."""
    known = ~np.isnan(figures)
    with np.errstate(invalid="ignore"):
        return np.where(known, figures, 0).sum(axis=-1) / known.sum(axis=-1)


def _attribute(
    config: RecognitionConfig,
    name: str,
    mean_accuracy: Figure | None,
    counted: _Counts,
    probabilities: FloatArray,
    labels: NDArray,
) -> RecognisedAttribute:
    kind, part, threshold = config.kind_of(name), config.logit_slices[name], config.threshold_of(name)
    found, right = answers_of(kind, probabilities[:, part], labels[:, part])
    labelled = int((labels[:, part] != NOT_LABELLED).all(axis=1).sum())
    above = found >= threshold
    answered = above.mean() if labelled else math.nan
    if kind == "multiple" and labelled:
        most = found.reshape(labelled, -1).max(axis=1)
        answered = ((most >= threshold) | (most <= 1 - threshold)).mean()  # a list of values, which may be empty
    totals = counted.of_images.sum(axis=0)
    rates = zip(*counted.rates(totals), strict=True)
    positives = totals[config.num_logits : 2 * config.num_logits]
    return RecognisedAttribute(
        name=name,
        kind=kind,
        labelled=labelled,
        mean_accuracy=mean_accuracy,
        accuracy=_known(_accuracy(kind, found, right)),
        ece=_known(expected_calibration_error(found, right)),
        answered=_known(answered),
        error=_known((~right[above]).mean() if above.any() else math.nan),
        values=tuple(
            RecognisedValue(value, int(images), _known(positive_rate), _known(negative_rate))
            for value, images, (positive_rate, negative_rate) in zip(
                config.logit_names(name), positives[part], [*rates][part], strict=True
            )
        ),
    )


def _accuracy(kind: str, found: FloatArray, right: BoolArray) -> float:
    if not len(found):
        return math.nan
    return float(((found >= 0.5) == right).mean() if kind == "multiple" else right.mean())


def _known(figure: float) -> float | None:
    return None if math.isnan(figure) else float(figure)
