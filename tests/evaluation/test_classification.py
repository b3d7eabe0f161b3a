"""Figures of a classifier against scikit-learn and plain loops."""

import math

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)

from cca_hf.evaluation.classification import evaluate_classification
from cca_hf.evaluation.classification_result import ClassificationResult

CLASSES = [f"bird_{number}" for number in range(12)]


@pytest.fixture(scope="module")
def logits_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """Logits of 400 images; the last class has no image, and the one before it is never predicted."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 11, 400)
    logits = random.normal(size=(400, 12))
    logits[np.arange(400), labels] += 2 * random.random(400)
    logits[:, 10] = -5
    return logits, labels


@pytest.fixture(scope="module")
def result(logits_and_labels: tuple[np.ndarray, np.ndarray]) -> ClassificationResult:
    return evaluate_classification(*logits_and_labels, CLASSES)


def test_figures_are_those_of_scikit_learn(result, logits_and_labels) -> None:
    logits, labels = logits_and_labels
    predicted, present = logits.argmax(axis=1), np.unique(labels)
    metrics = result.metrics()
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, predicted), abs=1e-9)
    top = top_k_accuracy_score(labels, logits, k=5, labels=np.arange(12))
    assert metrics["top_5_accuracy"] == pytest.approx(top, abs=1e-9)
    recalls = recall_score(labels, predicted, labels=present, average=None)
    assert metrics["macro_recall"] == pytest.approx(recalls.mean(), abs=1e-9)
    assert [each.recall for each in result.classes[:11]] == pytest.approx(recalls, abs=1e-9)
    precisions = precision_score(labels, predicted, labels=np.arange(12), average=None, zero_division=np.nan)
    assert result.classes[10].precision is None and result.classes[11].recall is None
    for each, precision in zip(result.classes, precisions, strict=True):
        assert (
            math.isnan(precision) if each.precision is None else each.precision == pytest.approx(precision, abs=1e-9)
        )
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert metrics["nll"] == pytest.approx(log_loss(labels, probabilities, labels=np.arange(12)), abs=1e-9)
    assert metrics["chance_accuracy"] == 1 / 12 and metrics["chance_top_5_accuracy"] == 5 / 12
    low, high = result.interval
    assert low < metrics["accuracy"] < high and 0.06 < high - low < 0.14  # about 4 standard errors of 0.025


def test_calibration_is_that_of_a_plain_loop(result, logits_and_labels) -> None:
    logits, labels = logits_and_labels
    error, counts = 0.0, [0] * 15
    for low in range(15):
        inside, right, confidence = 0, 0, 0.0
        for row, label in zip(logits, labels, strict=True):
            probabilities = [math.exp(value) for value in row]
            top = max(probabilities) / sum(probabilities)
            if low / 15 < top <= (low + 1) / 15:
                inside += 1
                right += int(row.argmax() == label)
                confidence += top
        if inside:
            error += inside / 400 * abs(right / inside - confidence / inside)
        counts[low] = inside
    assert result.metrics()["ece"] == pytest.approx(error, abs=1e-9)
    assert [each.images for each in result.bins] == counts and sum(counts) == 400
    assert [each.accuracy is None for each in result.bins] == [count == 0 for count in counts]


def test_confusions_are_those_of_the_matrix(result, logits_and_labels) -> None:
    logits, labels = logits_and_labels
    matrix = confusion_matrix(labels, logits.argmax(axis=1), labels=np.arange(12))
    for each in result.confusions:
        count = matrix[CLASSES.index(each.name), CLASSES.index(each.taken_for)]
        assert each.count == count and each.share == count / matrix[CLASSES.index(each.name)].sum()
    np.fill_diagonal(matrix, 0)
    assert [each.count for each in result.confusions] == np.sort(matrix.ravel())[::-1][:20].tolist()


def test_near_copies_are_drawn_together(logits_and_labels) -> None:
    """Four copies of each image tell no more than one: the interval stays that of the single images."""
    logits, labels = (each[:100] for each in logits_and_labels)
    single = evaluate_classification(logits, labels, CLASSES).interval
    copied = np.repeat(logits, 4, axis=0), np.repeat(labels, 4)
    grouped = evaluate_classification(*copied, CLASSES, groups=np.repeat(np.arange(100), 4)).interval
    apart = evaluate_classification(*copied, CLASSES).interval
    assert grouped == pytest.approx(single) and apart[1] - apart[0] < 0.7 * (single[1] - single[0])


def test_its_table_card_and_file(result, tmp_path) -> None:
    assert ClassificationResult.load_json(result.save_json(tmp_path / "r.json")).to_dict() == result.to_dict()
    table, lowest = result.table(), result.lowest_classes()
    assert (
        table.splitlines()[0].split("  ")[0] == "in %"
        and "Below the line: the recall of 11 of the 12 classes" in table
    )
    assert [each.recall for each in lowest] == sorted(each.recall for each in result.classes[:11])
    card = result.card()
    assert card.task == "image-classification" and [name for name, _, _ in card.metrics] == [
        "accuracy",
        "top_5_accuracy",
        "macro_recall",
    ]
    assert "| bird_10 |" in card.markdown and "Most frequent confusions: bird_" in card.markdown


def test_few_classes_have_no_top_5() -> None:
    result = evaluate_classification([[2.0, 1.0], [0.0, 0.0]], [0, 1], ["a", "b"])
    assert result.metrics()["accuracy"] == 0.5 and "top_5_accuracy" not in result.metrics()
    assert result.classes[1].taken_for == "a"  # of equal logits, the first class counts


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[1.0, 2.0]], [2], "labels must be from 0 to 1, got 2 to 2"),
        ([[1.0, 2.0]], [-1], "labels must be from 0 to 1, got -1 to -1"),
        ([[1.0, 2.0, 3.0]], [0], r"logits must have shape \(images, 2\), got \(1, 3\)"),
        ([[1.0, math.nan]], [0], "1 of 1 logits are not finite, the first is 0"),
    ],
)
def test_bad_input(logits, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_classification(logits, labels, ["a", "b"])
