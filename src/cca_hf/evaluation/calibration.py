"""Calibrated probabilities: temperatures and thresholds from a validation split, and the calibration error.

- Temperature (Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599): the logits of an attribute are divided by one
  number, which minimises the negative log-likelihood of the validation labels.
- Threshold: below it, `predict` says "unknown". It is the lowest one with which, on validation, the share of wrong
  answers is within a promised error. One wrong answer is added, so that few labels promise little.
- Expected calibration error (the same paper): the answers are put into 15 bins of equal width by their probability. It
  is the mean over the answers of |share of right ones - mean probability| of their bin.
"""

import math

import numpy as np
import torch
from torch import nn

from cca_hf.models.attribute_recognition import NOT_LABELLED, value_probabilities
from cca_hf.models.configuration_images import RecognitionConfig

from .arrays import BoolArray, FloatArray

_BINS = 15
_LARGEST = 20.0  # temperature; the smallest is 1 / 20. Without a limit, it is 0 if every answer is right
_STEPS = 50
_LEAST = 0.5  # threshold of a value of several: an absent value is then known to be absent with the same error


def fit_temperatures(config: RecognitionConfig, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The temperature of each attribute that has labels.

    Args:
        config: of the model; its own temperatures are not used.
        logits, labels: (images, num_logits), see `encode_labels`.
    """
    shifts = _shifts(config)
    temperatures = {}
    for name, part in config.logit_slices.items():
        known = (labels[:, part] != NOT_LABELLED).all(dim=1)
        if known.any():
            scores = logits[known, part].double() - shifts[part]
            targets = labels[known, part].double()
            temperatures[name] = _fit(scores, targets, exclusive=config.kind_of(name) == "exclusive")
    return temperatures


def _shifts(config: RecognitionConfig) -> torch.Tensor:
    """(num_logits,) what `value_probabilities` subtracts from the logits, because the loss weighs its answers."""
    shifts = torch.zeros(config.num_logits, dtype=torch.float64)
    for name, shares in (config.positive_shares or {}).items():
        if shares:
            shifts[config.logit_slices[name]] = 1 - 2 * torch.tensor(shares, dtype=torch.float64)
    return shifts


def _fit(scores: torch.Tensor, targets: torch.Tensor, *, exclusive: bool) -> float:
    logarithm = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logarithm], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scaled = scores / logarithm.exp()
        if exclusive:
            value = -(targets * scaled.log_softmax(dim=1)).sum(dim=1).mean()
        else:
            value = nn.functional.binary_cross_entropy_with_logits(scaled, targets)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    limit = math.log(_LARGEST)
    return math.exp(min(max(float(logarithm.detach().nan_to_num(0.0)), -limit), limit))


def choose_thresholds(
    config: RecognitionConfig, logits: torch.Tensor, labels: torch.Tensor, max_error: float
) -> dict[str, float]:
    """The threshold of each attribute that has labels, for the temperatures of the configuration.

    Args:
        logits, labels: as in [`fit_temperatures`].
        max_error: the promised share of wrong answers, above 0.
    """
    probabilities = value_probabilities(config, logits).double().numpy()
    thresholds = {}
    for name, part in config.logit_slices.items():
        answers, right = answers_of(config.kind_of(name), probabilities[:, part], labels[:, part].numpy())
        if len(answers):
            least = _LEAST if config.kind_of(name) == "multiple" else 0.0
            thresholds[name] = max(least, lowest_threshold(answers, right, max_error))
    return thresholds


def answers_of(kind: str, probabilities: FloatArray, labels: FloatArray) -> tuple[FloatArray, BoolArray]:
    """The probabilities of the answers about labelled images, and whether they are right.

    An answer is the most probable value of an attribute. For an attribute with several values, it is each value of
    each image.
    """
    known = (labels != NOT_LABELLED).all(axis=1)
    probabilities, labels = probabilities[known], labels[known]
    if kind == "multiple":
        return probabilities.ravel(), labels.ravel() == 1
    if kind == "binary":
        probabilities, labels = (np.hstack([1 - each, each]) for each in (probabilities, labels))
    best = probabilities.argmax(axis=1)
    rows = np.arange(len(best))
    return probabilities[rows, best], labels[rows, best] == 1


def lowest_threshold(probabilities: FloatArray, right: BoolArray, max_error: float) -> float:
    """The lowest threshold with which (wrong answers + 1) / (answers + 1) is at most `max_error`; 1 without one."""
    order = np.argsort(-probabilities, kind="stable")
    ordered, wrong = probabilities[order], np.cumsum(~right[order])
    is_last = np.append(ordered[1:] < ordered[:-1], True)  # of equal probabilities, which share a threshold
    kept = is_last & ((wrong + 1) / (np.arange(len(ordered)) + 2) <= max_error)
    if not kept.any():
        return 1.0
    # predictions are made in float32
    return float(np.nextafter(np.float32(ordered[np.flatnonzero(kept)[-1]]), np.float32(0)))


def expected_calibration_error(probabilities: FloatArray, right: BoolArray) -> float:
    """The calibration error of answers; NaN without one."""
    if not len(probabilities):
        return math.nan
    bins = np.clip(np.ceil(probabilities * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    gaps = np.bincount(bins, weights=right - probabilities, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(probabilities))
