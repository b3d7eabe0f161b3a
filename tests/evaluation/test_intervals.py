"""Intervals of the mAP of few queries: against a plain loop, and against a variance that is known."""

import numpy as np
import pytest

from cca_hf.evaluation import EvaluationResult, evaluate_embeddings
from cca_hf.evaluation.retrieval.intervals import FEW_QUERIES, map_intervals

ATTRIBUTES = {"colour": ["red", "green", "blue"], "shape": ["circle", "square"]}


def test_a_plain_loop():
    random = np.random.default_rng(1)
    groups = np.array([4, 4, 4, 7, -1, 2, 2, -1, 7, 0])
    precisions = random.random((10, 2))
    precisions[[0, 5], 1] = np.nan
    precisions[3] = np.nan  # no query at all
    units = [[9], [5, 6], [0, 1, 2], [8], [4], [7]]  # by number; images without a group come last
    maps = []
    for draw in np.random.default_rng(0).integers(6, size=(1000, 6)):
        rows = [row for unit in draw for row in units[unit]]
        of_each = [[precisions[row, column] for row in rows] for column in range(2)]
        means = [np.mean([each for each in figures if not np.isnan(each)]) for figures in of_each]
        maps.append([*means, np.mean(means)])
    expected = np.percentile(maps, [2.5, 97.5], axis=0).T
    of_each, overall = map_intervals(precisions, groups)
    assert np.array([*of_each, overall]) == pytest.approx(expected)


def test_a_known_variance():
    """Of 225 independent figures, and of four copies of each: 900 figures that tell no more."""
    precisions = np.random.default_rng(0).random((225, 1))
    half_width = 1.96 * precisions.std() / 15
    _, alone = map_intervals(precisions, np.full(225, -1))
    _, copies = map_intervals(np.repeat(precisions, 4, axis=0), np.repeat(np.arange(225), 4))
    _, ungrouped = map_intervals(np.repeat(precisions, 4, axis=0), np.full(900, -1))
    for interval, expected in ((alone, half_width), (copies, half_width), (ungrouped, half_width / 2)):
        assert np.mean(interval) == pytest.approx(precisions.mean(), abs=0.1 * expected)
        assert interval[1] - interval[0] == pytest.approx(2 * expected, rel=0.12)


def test_nothing_to_draw():
    precisions = np.array([[0.5, 0.2], [0.7, np.nan], [0.9, 0.4]])
    of_each, overall = map_intervals(precisions, np.array([1, -1, 1]))
    assert of_each[0] is not None and of_each[1] is None and overall is None


def result(count: int) -> EvaluationResult:
    generator = np.random.default_rng(0)
    labels = np.stack([np.arange(count) % 3, np.arange(count) % 2], axis=1)
    exact = np.stack([np.eye(3)[labels[:, 0]], np.eye(3)[labels[:, 1]]], axis=1)
    return evaluate_embeddings(exact + generator.normal(size=exact.shape), labels, ATTRIBUTES)


def test_a_result_of_few_queries_shows_them(tmp_path):
    few = result(60)
    low, high = few.map_interval
    assert low < few.metrics()["map"] < high
    assert few.intervals() == {
        "map_interval_low": low,
        "map_interval_high": high,
        **{
            f"map_interval_{end}_{name}": few[name].map_interval[place]
            for name in ATTRIBUTES
            for place, end in enumerate(("low", "high"))
        },
    }
    header, _, colour, shape, _, mean, weighted, note = few.table().splitlines()
    assert header.split("  95 % interval  ")[0].endswith("mAP")
    for line, interval in (
        (colour, few["colour"].map_interval),
        (shape, few["shape"].map_interval),
        (mean, (low, high)),
    ):
        assert f"  {100 * interval[0]:.1f} to {100 * interval[1]:.1f}  " in line
    assert " to " not in weighted
    assert note == "The intervals show how far the mAP may be from that of many queries (bootstrap)."
    assert f"its 95 % interval is {100 * low:.1f} to {100 * high:.1f} (bootstrap)." in few.card().markdown
    assert EvaluationResult.load_json(few.save_json(tmp_path / "evaluation.json")) == few


def test_a_result_of_many_queries_has_none():
    many = result(FEW_QUERIES)
    assert many.map_interval is None and many.intervals() == {}
    assert "interval" not in many.table() + many.card().markdown
    assert result(FEW_QUERIES - 1).intervals()
