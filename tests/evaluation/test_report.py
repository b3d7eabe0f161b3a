"""The comparison of several results, as a table and as bars."""

import re

import numpy as np
import pytest

from cca_hf.evaluation import EvaluationResult, evaluate_embeddings
from cca_hf.visualization.report import comparison_rows, comparison_table, plot_results

ATTRIBUTES = {"colour": ["red", "green", "blue"], "shape": ["circle", "square"]}


def result(noise: float, seed: int = 0) -> EvaluationResult:
    generator = np.random.default_rng(seed)
    labels = np.stack([generator.integers(0, 3, 60), generator.integers(0, 2, 60)], axis=1)
    exact = np.stack([np.eye(3)[labels[:, 0]], np.eye(3)[labels[:, 1]]], axis=1)
    return evaluate_embeddings(exact + noise * generator.normal(size=exact.shape), labels, ATTRIBUTES)


@pytest.fixture
def results() -> dict[str, EvaluationResult]:
    return {"frozen backbone": result(3.0), "one space": result(0.8), "CCA": result(0.0)}


def test_rows_hold_chance_and_every_result(results):
    rows = dict(comparison_rows(results))
    assert list(rows) == ["colour", "shape", "mean", "query-weighted", "macro over values"]
    metrics = [each.metrics() for each in results.values()]
    assert rows["shape"] == [metrics[0]["chance_map_shape"], *(each["map_shape"] for each in metrics)]
    assert rows["macro over values"] == [metrics[0]["chance_map_macro"], *(each["map_macro"] for each in metrics)]
    assert rows["mean"][-1] == 1.0
    assert dict(comparison_rows(results, "recall@1"))["mean"][1] == metrics[0]["recall@1"]


def test_table_is_aligned_and_in_percent(results):
    lines = comparison_table(results).splitlines()
    assert re.split(" {2,}", lines[0]) == ["mAP in %", "chance", "frozen backbone", "one space", "CCA"]
    assert lines[2].split()[0] == "colour" and lines[2].split()[-1] == "100.0"
    assert len({len(line) for line in lines}) == 1


def test_only_results_of_the_same_images_are_compared(results):
    with pytest.raises(ValueError, match="'CCA' and 'other' cannot be compared: chance of 'colour'"):
        comparison_table({"CCA": results["CCA"], "other": result(0.0, seed=1)})
    fewer = EvaluationResult(results["CCA"].attributes[:1])
    with pytest.raises(ValueError, match="'CCA' and 'fewer' cannot be compared"):
        comparison_table({"CCA": results["CCA"], "fewer": fewer})
    with pytest.raises(ValueError, match=r"unknown measure 'recall@2'; .* 'recall@1'"):
        comparison_table(results, "recall@2")
    with pytest.raises(ValueError, match="no results"):
        comparison_table({})


def test_bars_are_as_long_as_the_figures(results, tmp_path):
    figure = plot_results(results)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["colour", "shape", "mean"]
    widths = [[bar.get_width() for bar in container] for container in axes.containers]
    rows = [figures for _, figures in comparison_rows(results)[:3]]
    np.testing.assert_allclose(widths, 100 * np.array(rows).T[1:])
    chance = [line.get_xdata()[0] for line in axes.lines[:3]]
    np.testing.assert_allclose(chance, [100 * figures[0] for figures in rows])
    figure.savefig(tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 5_000


def test_without_matplotlib_the_tables_work_and_the_plot_says_what_to_install(warm_python):
    script = """
import sys
sys.modules["matplotlib"] = None
from cca_hf.evaluation import evaluate_embeddings
from cca_hf.visualization.report import comparison_table, plot_results
import numpy as np
result = evaluate_embeddings(np.eye(4)[:, None], np.array([[0], [0], [1], [1]]), {"colour": ["red", "green"]})
print(comparison_table({"CCA": result}))
try:
    plot_results({"CCA": result})
except ImportError as error:
    print(error)
"""
    done = warm_python.run("-c", script, check=True)
    assert "colour" in done.stdout
    assert done.stdout.splitlines()[-1] == 'figures need matplotlib: pip install "cca_hf[plot]"'
