"""The metrics of recognition against plain loops and scikit-learn; calibration against known distributions."""

import json
import math

import numpy as np
import pytest
import torch

from cca_hf.evaluation.calibration import (
    choose_thresholds,
    expected_calibration_error,
    fit_temperatures,
    lowest_threshold,
)
from cca_hf.evaluation.recognition import evaluate_recognition, recognised
from cca_hf.evaluation.recognition_result import RecognitionResult
from cca_hf.models.attribute_recognition import predictions_of, value_probabilities
from cca_hf.models.modeling_clear import CLEARConfig

VALUES = {
    "bag": ["no", "yes"],
    "colour": ["red", "green", "blue"],
    "items": ["hat", "scarf"],
    "male": ["no", "yes"],
}
KINDS = {"bag": "binary", "items": "multiple", "male": "binary"}


def make_config(values=VALUES, kinds=KINDS, **fields) -> CLEARConfig:
    return CLEARConfig(attributes=list(values), attribute_values=values, attribute_kinds=kinds, **fields)


@pytest.fixture(scope="module")
def sample():
    """A configuration, and logits and labels of 300 images in 60 groups, with missing labels."""
    config, rng = make_config(), np.random.default_rng(0)
    logits = rng.normal(size=(300, config.num_logits)).astype(np.float32)
    labels = (logits + rng.normal(size=logits.shape) > 0.3).astype(np.float32)
    colours = config.logit_slices["colour"]
    labels[:, colours] = np.eye(3)[rng.integers(3, size=300)]
    for part in config.logit_slices.values():
        labels[rng.random(300) < 0.2, part] = -1
    labels[:2] = -1  # images without a label
    return config, logits, labels, rng.integers(60, size=300)


@pytest.fixture(scope="module")
def result(sample) -> RecognitionResult:
    config, logits, labels, groups = sample
    return evaluate_recognition(config, logits, labels, groups=groups)


def test_metrics_equal_plain_loops(sample, result):
    config, logits, labels, _ = sample
    found = np.zeros(logits.shape, bool)
    for row in range(len(logits)):
        for name, part in config.logit_slices.items():
            for column in range(part.start, part.stop):
                if config.kind_of(name) == "exclusive":
                    found[row, column] = all(logits[row, column] >= logits[row, part])
                else:
                    found[row, column] = 1 / (1 + math.exp(-logits[row, column])) > 0.5
    assert np.array_equal(recognised(config, logits), found)
    of_attributes = {}
    for name, part in config.logit_slices.items():
        balanced = []
        for column in range(part.start, part.stop):
            right, counts = {0: 0, 1: 0}, {0: 0, 1: 0}
            for row in range(len(logits)):
                if (label := labels[row, column]) >= 0:
                    counts[label] += 1
                    right[label] += found[row, column] == (label == 1)
            balanced.append((right[0] / counts[0] + right[1] / counts[1]) / 2)
        of_attributes[name] = sum(balanced) / len(balanced)
    metrics = result.metrics()
    for name, expected in of_attributes.items():
        assert metrics[f"mean_accuracy_{name}"] == pytest.approx(expected, abs=1e-12)
    assert metrics["mean_accuracy"] == pytest.approx(sum(of_attributes.values()) / 4, abs=1e-12)
    sums, images = [0.0, 0.0, 0.0], 0
    for row in range(len(logits)):
        known = [column for column in range(logits.shape[1]) if labels[row, column] >= 0]
        if not known:
            continue
        images += 1
        has = {column for column in known if labels[row, column] == 1}
        said = {column for column in known if found[row, column]}
        for place, whole in enumerate((has | said, said, has)):
            sums[place] += len(has & said) / len(whole) if whole else 0.0
    accuracy, precision, recall = (total / images for total in sums)
    assert metrics["instance_accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert metrics["precision"] == pytest.approx(precision, abs=1e-12)
    assert metrics["recall"] == pytest.approx(recall, abs=1e-12)
    assert metrics["f1"] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)


def test_binary_attributes_equal_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    names = [f"a{place}" for place in range(6)]
    config = make_config(dict.fromkeys(names, ["no", "yes"]), dict.fromkeys(names, "binary"))
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(200, 6)), rng.integers(2, size=(200, 6))
    labels[:3] = 0
    metrics, found = evaluate_recognition(config, logits, labels).metrics(), logits > 0
    for place, name in enumerate(names):
        expected = sklearn.balanced_accuracy_score(labels[:, place], found[:, place])
        assert metrics[f"mean_accuracy_{name}"] == pytest.approx(expected, abs=1e-12)
    settings = {"average": "samples", "zero_division": 0}
    for name, score in (
        ("instance_accuracy", sklearn.jaccard_score),
        ("precision", sklearn.precision_score),
        ("recall", sklearn.recall_score),
    ):
        assert metrics[name] == pytest.approx(score(labels, found, **settings), abs=1e-12)
    assert metrics["accuracy"] == pytest.approx((labels == found).mean(), abs=1e-12)


def test_near_copies_do_not_make_an_interval_narrower(sample, result):
    config, logits, labels, _ = sample
    once = evaluate_recognition(config, logits, labels)
    logits, labels = np.repeat(logits, 4, axis=0), np.repeat(labels, 4, axis=0)
    grouped = evaluate_recognition(config, logits, labels, groups=np.repeat(np.arange(300), 4))
    alone = evaluate_recognition(config, logits, labels)
    for name, figure in once.figures.items():
        assert figure.low < figure.value < figure.high
        assert vars(grouped.figures[name]) == pytest.approx(vars(figure), abs=1e-12)
        assert alone.figures[name].high - alone.figures[name].low < 0.7 * (figure.high - figure.low)


def test_an_attribute_without_labels_takes_no_part(sample):
    config, logits, labels, _ = sample
    part = config.logit_slices["male"]
    without = labels.copy()
    without[:, part] = -1
    result = evaluate_recognition(config, logits, without)
    rest = evaluate_recognition(
        config.restricted_to(["bag", "colour", "items"]), logits[:, : part.start], labels[:, : part.start]
    )
    male = result.attributes[3]
    assert (male.labelled, male.mean_accuracy, male.accuracy, male.ece, male.answered) == (0, None, None, None, None)
    assert result.metrics() == pytest.approx(rest.metrics(), abs=1e-12)
    assert result.table().splitlines()[-4].split() == ["male", "-", "-", "-", "-", "-", "-", "0"]


def test_a_value_that_all_images_have_takes_no_part():
    config = make_config({"items": ["hat", "scarf"]}, {"items": "multiple"})
    labels = np.array([[1, 1], [1, 0], [1, 1], [1, 0]])
    result = evaluate_recognition(config, np.where([[1, 1], [0, 0], [1, 0], [1, 0]], 1.0, -1.0), labels)
    assert result.metrics()["mean_accuracy_items"] == (1 / 2 + 2 / 2) / 2
    hat, scarf = result.attributes[0].values
    assert (hat.images, hat.true_positive_rate, hat.true_negative_rate) == (4, 0.75, None)
    assert (scarf.images, scarf.true_positive_rate, scarf.true_negative_rate) == (2, 0.5, 1.0)


def test_answers_are_those_of_predict(sample):
    config, logits, labels, _ = sample
    config = make_config(thresholds={"bag": 0.7, "colour": 0.5, "items": 0.6}, temperatures={"bag": 2.0})
    result = evaluate_recognition(config, logits, labels)
    predictions = predictions_of(config, value_probabilities(config, torch.from_numpy(logits)))
    for each in result.attributes:
        part = config.logit_slices[each.name]
        known = [row for row in range(300) if labels[row, part][0] >= 0]
        values = {row: predictions[row][each.name].value for row in known}
        answered = [row for row in known if values[row] is not None]
        assert each.answered == pytest.approx(len(answered) / len(known), abs=1e-12)
        wrong = []
        for row in answered:
            names = config.logit_names(each.name)
            right = {name for name, label in zip(names, labels[row, part], strict=True) if label == 1}
            if each.kind == "binary":
                right = right or {"no"}
            said = values[row] if isinstance(values[row], list) else [values[row]]
            wrong += [value not in right for value in said]
        assert each.error == pytest.approx(np.mean(wrong), abs=1e-12)


def test_a_result_is_read_back(result, tmp_path):
    path = result.save_json(tmp_path / "test_evaluation.json")
    assert RecognitionResult.load_json(path) == result
    card = json.loads(path.read_text())["card"]
    assert card["task"] == "image-classification" and card["metrics"][0][:2] == ["mean_accuracy", "mA"]
    assert result.table().splitlines()[0].split()[:3] == ["%", "mA", "95"]
    assert "| bag |" in card["markdown"] and "| **mean** |" in card["markdown"]


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 5)), np.zeros((2, 5)), r"must have shape \(images, 7\), got \(2, 5\) and \(2, 5\)"),
        (np.full((2, 7), np.nan), np.zeros((2, 7)), "2 of 2 logits are not finite"),
        (np.zeros((2, 7)), np.full((2, 7), 2), r"labels must be 1, 0 or -1"),
        (
            np.zeros((2, 7)),
            np.full((2, 7), -1),
            "no image of the split 'test' has a label of bag, colour, items, male",
        ),
    ],
)
def test_bad_arrays(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate_recognition(make_config(), logits, labels)


def test_temperatures_are_those_that_made_the_labels():
    shares = {"bag": [0.2], "items": [0.5, 0.1], "male": [0.6], "colour": []}
    config = make_config(positive_shares=shares)
    truth = make_config(positive_shares=shares, temperatures={"bag": 2.0, "colour": 0.5, "items": 1.5})
    torch.manual_seed(0)
    logits = 2 * torch.randn(20_000, config.num_logits)
    probabilities = value_probabilities(truth, logits)
    labels = (torch.rand(probabilities.shape) < probabilities).float()
    colours = config.logit_slices["colour"]
    labels[:, colours] = torch.eye(3)[torch.multinomial(probabilities[:, colours], 1)[:, 0]]
    labels[:500, config.logit_slices["bag"]] = -1
    labels[:, config.logit_slices["male"]] = -1
    found = fit_temperatures(config, logits, labels)
    assert found == {name: pytest.approx(truth.temperatures[name], rel=0.05) for name in ("bag", "colour", "items")}
    calibrated = make_config(positive_shares=shares, temperatures=found)
    of_attributes = evaluate_recognition(calibrated, logits[:2000], labels[:2000]).attributes
    assert all(each.ece < 0.03 for each in of_attributes if each.ece is not None)


def test_a_temperature_has_limits_if_every_answer_is_right():
    config = make_config({"bag": ["no", "yes"]}, {"bag": "binary"})
    labels = torch.tensor([[1.0], [0.0]])
    assert fit_temperatures(config, 2 * labels - 1, labels)["bag"] < 0.1
    assert fit_temperatures(config, 100 * (2 * labels - 1), labels)["bag"] >= 1 / 20


def test_lowest_threshold_by_hand():
    probabilities = np.array([0.9, 0.8, 0.8, 0.7, 0.6, 0.5])
    right = np.array([True, True, True, True, False, False])
    # (wrong + 1) / (answers + 1) at 0.9, 0.8, 0.7, 0.6, 0.5: 1/2, 1/4, 1/5, 2/6, 3/7
    for max_error, expected in ((0.2, 0.7), (0.3, 0.7), (0.24, 0.7), (0.34, 0.6), (0.5, 0.5), (0.1, 1.0)):
        threshold = lowest_threshold(probabilities, right, max_error)
        assert threshold == pytest.approx(expected, abs=1e-6) and threshold <= expected


def test_the_promised_error_is_kept_on_other_images():
    config = make_config({"colour": ["red", "green", "blue"]}, {})
    torch.manual_seed(0)
    logits = 2 * torch.randn(4000, 3)
    labels = torch.eye(3)[torch.multinomial(logits.softmax(dim=1), 1)[:, 0]]
    thresholds = choose_thresholds(config, logits[:2000], labels[:2000], 0.1)
    chosen = make_config({"colour": ["red", "green", "blue"]}, {}, thresholds=thresholds)
    (colour,) = evaluate_recognition(chosen, logits[2000:], labels[2000:]).attributes
    assert 0.05 < colour.error < 0.12 and 0.3 < colour.answered < 0.8
    assert colour.accuracy < 0.85  # without the threshold, more answers would be wrong


def test_calibration_error_by_hand():
    probabilities, right = np.array([0.95, 0.95, 0.62, 0.61]), np.array([True, False, True, True])
    expected = (abs(1 - 1.9) + abs(2 - 1.23)) / 4
    assert expected_calibration_error(probabilities, right) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(expected_calibration_error(probabilities[:0], right[:0]))
