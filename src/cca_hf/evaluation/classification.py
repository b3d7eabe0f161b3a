"""How well a classifier classifies: accuracies, recall and precision of the classes, confusions and calibration.

- Accuracy: the share of images whose class has the highest logit. Top-5: the share whose class is among the highest
  five. Of equal logits, the one of the lower id counts as higher.
- Macro recall: the mean recall of the classes that have images.
- Expected calibration error (Guo et al., ICML 2017): the images are put into 15 bins of equal width by their
  confidence, the probability of the predicted class. It is the mean over the images of |accuracy - mean confidence| of
  their bin.
- Interval: the bootstrap over images, or over groups of near copies, which are drawn whole.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset
from transformers import BaseImageProcessor

from cca_hf.data.class_images import ClassCollator, ClassImages
from cca_hf.data.schema import AttributeDataset

from .arrays import FloatArray, IntArray, check_finite, members, to_group_ids, to_ids, to_numbers
from .classification_result import ClassConfusion, ClassificationResult, ClassScore, ReliabilityBin

_BINS = 15
_TOP = 5
_CONFUSIONS = 20
_DRAWS = 1000
_ENDS = (2.5, 97.5)  # percentiles


def evaluate_classification(
    logits: object,
    labels: object,
    classes: Sequence[str],
    *,
    split: str = "test",
    groups: object | None = None,
    seed: int = 0,
) -> ClassificationResult:
    """Compares logits with labels.

    Args:
        logits: (images, classes).
        labels: (images,) ids of classes.
        classes: their names.
        split: the name of the images.
        groups: (images,) ids of near copies, -1 for none.
        seed: of the draws for the interval.

    Raises:
        ValueError: for arrays of other shapes, labels outside the classes, or logits that are not finite.
    """
    scores = to_numbers("logits", logits).astype(np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(classes) or not len(scores):
        raise ValueError(f"logits must have shape (images, {len(classes)}), got {scores.shape}")
    check_finite("logits", scores)
    ids = to_ids("labels", labels, (len(scores),))
    if ids.min() < 0 or ids.max() >= len(classes):
        raise ValueError(f"labels must be from 0 to {len(classes) - 1}, got {ids.min()} to {ids.max()}")
    own = scores[np.arange(len(ids)), ids][:, None]
    before = (scores > own).sum(axis=1) + ((scores == own) & (np.arange(len(classes)) < ids[:, None])).sum(axis=1)
    predicted = scores.argmax(axis=1)
    right = predicted == ids
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    counts = np.zeros((len(classes), len(classes)), np.int64)  # class -> predicted class -> images
    np.add.at(counts, (ids, predicted), 1)
    bins = _bins(np.exp(-log_sums), right)
    recalls = counts.diagonal()[counts.sum(axis=1) > 0] / counts.sum(axis=1)[counts.sum(axis=1) > 0]
    figures = {"accuracy": float(right.mean())}
    if len(classes) > _TOP:
        figures["top_5_accuracy"] = float((before < _TOP).mean())
    figures["macro_recall"] = float(recalls.mean())
    figures["ece"] = sum(
        each.images * abs(each.accuracy - each.confidence) / len(ids)
        for each in bins
        if each.accuracy is not None and each.confidence is not None
    )
    figures["nll"] = float((log_sums - shifted[np.arange(len(ids)), ids]).mean())
    return ClassificationResult(
        split=split,
        images=len(ids),
        figures=figures,
        interval=_interval(right, to_group_ids(groups, len(ids)), seed),
        classes=_class_scores(counts, classes),
        confusions=_confusions(counts, classes),
        bins=bins,
    )


class ClassificationEvaluator:
    """Computes the logits of the labelled images of a split, and compares them with their classes.

    Args:
        data: a data set with one attribute, whose values are the classes of the model.
    """

    primary_metric: str = ClassificationResult.primary_metric
    shown_metrics: Iterable[str] = ("accuracy", "macro_recall")

    def __init__(self, data: AttributeDataset, image_processor: BaseImageProcessor) -> None:
        self.data = data
        self.collator: Callable[[list[Any]], dict[str, torch.Tensor]] = ClassCollator(image_processor)

    def images(self, split: Any) -> Dataset[Any]:
        return ClassImages(self.data, split) if isinstance(split, str) else split

    def forward(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return model(pixel_values=batch["pixel_values"]).logits, batch["labels"]

    def score(self, images: Any, predictions: NDArray, labels: NDArray) -> ClassificationResult:
        return evaluate_classification(predictions, labels, images.classes, split=images.split, groups=images.groups)


def _class_scores(counts: IntArray, classes: Sequence[str]) -> tuple[ClassScore, ...]:
    images, predicted = counts.sum(axis=1), counts.sum(axis=0)
    wrong = counts - np.diag(counts.diagonal())
    return tuple(
        ClassScore(
            name=name,
            images=int(images[place]),
            recall=float(counts[place, place] / images[place]) if images[place] else None,
            precision=float(counts[place, place] / predicted[place]) if predicted[place] else None,
            taken_for=classes[int(wrong[place].argmax())] if wrong[place].any() else None,
        )
        for place, name in enumerate(classes)
    )


def _confusions(counts: IntArray, classes: Sequence[str]) -> tuple[ClassConfusion, ...]:
    """The pairs of classes with the most confused images; of equal numbers, the larger share of the class first."""
    wrong = counts - np.diag(counts.diagonal())
    shares = wrong / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names, others = np.nonzero(wrong)
    order = np.lexsort((-shares[names, others], -wrong[names, others]))[:_CONFUSIONS]
    return tuple(
        ClassConfusion(classes[name], classes[other], int(wrong[name, other]), float(shares[name, other]))
        for name, other in zip(names[order].tolist(), others[order].tolist(), strict=True)
    )


def _bins(confidences: FloatArray, right: NDArray) -> tuple[ReliabilityBin, ...]:
    places = np.clip(np.ceil(confidences * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    bins = []
    for place in range(_BINS):
        inside = places == place
        count = int(inside.sum())
        confidence = float(confidences[inside].mean()) if count else None
        accuracy = float(right[inside].mean()) if count else None
        bins.append(ReliabilityBin(place / _BINS, (place + 1) / _BINS, count, confidence, accuracy))
    return tuple(bins)


def _interval(right: NDArray, groups: IntArray, seed: int) -> tuple[float, float]:
    member, sizes = members(groups)
    sums = np.bincount(member, weights=right, minlength=len(sizes))
    random, draws = np.random.default_rng(seed), []
    for _ in range(_DRAWS):
        picked = random.integers(len(sizes), size=len(sizes))
        draws.append(sums[picked].sum() / sizes[picked].sum())
    low, high = np.percentile(draws, _ENDS)
    return float(low), float(high)
