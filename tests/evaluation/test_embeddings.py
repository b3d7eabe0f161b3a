"""evaluate_embeddings: the right columns, groups, sets and names reach the metrics, the means and the table."""

import json

import numpy as np
import pytest
import torch

from cca_hf.evaluation import EvaluationResult, Gallery, evaluate_embeddings, retrieval_metrics
from cca_hf.visualization.report import comparison_rows

ATTRIBUTES = {"colour": ["red", "green", "blue"], "shape": ["circle", "square"]}


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    labels = np.stack([generator.integers(-1, 3, 50), generator.integers(0, 2, 50)], axis=1)
    return generator.normal(size=(50, 2, 6)), labels, generator.integers(-1, 12, 50)


def test_every_figure_comes_from_its_column(arrays):
    embeddings, labels, groups = arrays
    metrics = evaluate_embeddings(embeddings, labels, ATTRIBUTES, groups=groups).metrics()
    single = [retrieval_metrics(embeddings[:, column], labels[:, column], query_groups=groups) for column in (0, 1)]
    sizes = [len(each.queries) for each in single]
    assert sizes[0] < sizes[1] == 50
    for name, each in zip(ATTRIBUTES, single, strict=True):
        assert metrics[f"map_{name}"] == pytest.approx(each.map)
        assert metrics[f"chance_map_{name}"] == pytest.approx(each.chance_map)
        assert metrics[f"map_macro_{name}"] == pytest.approx(each.map_macro)
        assert metrics[f"recall@5_{name}"] == pytest.approx(each.scores.recall[5].mean())
        assert metrics[f"chance_r_precision_{name}"] == pytest.approx(each.chance.r_precision.mean())
    assert metrics["map"] == pytest.approx((single[0].map + single[1].map) / 2)
    assert metrics["map_weighted"] == pytest.approx(np.average([each.map for each in single], weights=sizes))
    assert metrics["chance_map_weighted"] == pytest.approx(
        np.average([each.chance_map for each in single], weights=sizes)
    )
    assert metrics["map_macro"] == pytest.approx((single[0].map_macro + single[1].map_macro) / 2)
    assert metrics["map_macro"] != pytest.approx(metrics["map"], abs=1e-6)
    assert {f"{chance}{name}" for chance in ("", "chance_") for name in ("recall@1", "recall@5", "recall@10")} < set(
        metrics
    )
    assert all(0 <= value <= 1 and type(value) is float for value in metrics.values())


def test_one_space_and_torch_and_gallery(arrays):
    embeddings, labels, groups = arrays
    shared = embeddings[:, 0]
    repeated = np.stack([shared, shared], axis=1)
    assert (
        evaluate_embeddings(torch.from_numpy(shared), torch.from_numpy(labels), ATTRIBUTES).metrics()
        == evaluate_embeddings(repeated, labels, ATTRIBUTES).metrics()
    )
    result = evaluate_embeddings(
        embeddings[:20],
        labels[:20],
        ATTRIBUTES,
        groups=groups[:20],
        gallery=(embeddings[20:], labels[20:], groups[20:]),
    )
    direct = retrieval_metrics(
        embeddings[:20, 1], labels[:20, 1], embeddings[20:, 1], labels[20:, 1],
        query_groups=groups[:20], gallery_groups=groups[20:],
    )  # fmt: skip
    assert result["shape"].scores["map"] == pytest.approx(direct.map)
    assert result["shape"].candidates == pytest.approx(direct.num_candidates.mean())


def test_an_attribute_that_nobody_labelled_is_left_out_and_named(arrays, caplog):
    embeddings, labels, _ = arrays
    labels[:, 0] = -1
    result = evaluate_embeddings(embeddings, labels, ATTRIBUTES)
    assert result.unlabelled == ("colour",)
    assert result.metrics()["map"] == result.metrics()["map_shape"]
    assert "colour" in caplog.text and "colour" in result.table()
    labels[:] = -1
    with pytest.raises(ValueError, match="none of the 50 queries has a label of colour, shape"):
        evaluate_embeddings(embeddings, labels, ATTRIBUTES)


def test_on_a_device(arrays, colour_sets):
    """Sorted there instead of counted here."""
    embeddings, labels, groups = arrays
    shown, maybe = ({"colour": each} for each in colour_sets)
    sets = {"groups": groups, "all_values": shown, "maybe_values": maybe}
    here, there = (evaluate_embeddings(embeddings, labels, ATTRIBUTES, **sets, device=each) for each in (None, "cpu"))
    assert there.metrics() == pytest.approx(here.metrics(), abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.ones((50, 3, 4))}, r"\(images, 2, dim\), the attributes being colour, shape"),
        (
            {"labels": np.zeros((50, 3), int)},
            r"labels must have shape \(50, 2\) = \(images, attributes\), got \(50, 3\)",
        ),
        ({"labels": np.full((50, 2), 2)}, "labels of 'shape' go up to 2, but it has 2 values"),
        ({"attributes": {"weighted": ["a"], "macro_x": ["b"]}}, "named 'weighted', 'macro_x'"),
        ({"attributes": {}}, "no attributes given"),
        ({"gallery": Gallery(np.ones((4, 2, 6)), np.zeros((3, 2), int))}, "gallery labels must have shape"),
        ({"groups": [1, 2]}, r"query groups must have shape \(50,\)"),
        ({"labels": np.full((50, 2), np.nan)}, r"labels must be integers \(-1 = none\), got float64"),
        ({"labels": np.full((50, 2), None)}, "labels must be integers .* got object"),
        ({"embeddings": None}, r"embeddings must have shape .* got \(\)"),
        ({"embeddings": np.full((50, 2, 6), np.nan)}, "50 of 50 query embeddings are not finite"),
        ({"ks": None}, "ks must be a list of integers, got None"),
        ({"gallery": Gallery(np.ones((4, 2, 6)), np.zeros((4, 2), int), [0] * 4)}, "gallery_groups go together"),
    ],
)
def test_bad_input_says_what_was_given(arrays, change, message):
    given = {"embeddings": arrays[0], "labels": arrays[1], "attributes": ATTRIBUTES}
    with pytest.raises(ValueError, match=message):
        evaluate_embeddings(**(given | change))


def test_json_keeps_everything(arrays, tmp_path):
    embeddings, labels, groups = arrays
    result = evaluate_embeddings(embeddings, labels, ATTRIBUTES, groups=groups)
    path = result.save_json(tmp_path / "new" / "result.json")
    assert EvaluationResult.load_json(path) == result
    assert json.loads(path.read_text())["metrics"] == result.metrics()
    assert [each.name for each in path.parent.iterdir()] == ["result.json"]


def test_table_shows_percent_and_chance(arrays):
    embeddings, labels, _ = arrays
    labels[0, 0], labels[1:, 0] = 2, np.where(labels[1:, 0] == 2, 1, labels[1:, 0])
    result = evaluate_embeddings(embeddings, labels, ATTRIBUTES)
    lines = result.table().splitlines()
    colour = next(line for line in lines if line.startswith("colour  "))
    scores, chance = result["colour"].scores["map"], result["colour"].chance["map"]
    assert f"{100 * scores:.1f} ({100 * chance:.1f})" in colour
    assert str(result["colour"].queries) in colour
    assert "colour: 1 queries without a relevant candidate count as 0." in lines
    assert len({len(line) for line in lines[:5]}) == 1
    assert f"{100 * scores:.2f} ({100 * chance:.2f})" in result.table(decimals=2)


def test_value_results_name_the_values(arrays):
    embeddings, labels, _ = arrays
    result = evaluate_embeddings(embeddings, labels, ATTRIBUTES)
    assert [each.name for each in result["colour"].values] == ["red", "green", "blue"]
    assert sum(each.queries for each in result["colour"].values) == result["colour"].queries
    assert np.mean([each.map for each in result["colour"].values]) == pytest.approx(
        result["colour"].scores["map_macro"]
    )
    with pytest.raises(KeyError, match="no attribute 'color'"):
        result["color"]


# -- sets of values ---------------------------------------------------------------------------------------------------


@pytest.fixture
def colour_sets():
    """For colour: (50, 3), the values that an image shows, and those that it may show."""
    generator = np.random.default_rng(1)
    return generator.random((50, 3)) < 0.3, generator.random((50, 3)) < 0.3


def test_sets_stand_beside_the_protocol(arrays, colour_sets):
    embeddings, labels, groups = arrays
    shown, maybe = colour_sets
    plain = evaluate_embeddings(embeddings, labels, ATTRIBUTES, groups=groups).metrics()
    result = evaluate_embeddings(
        embeddings, labels, ATTRIBUTES, groups=groups, all_values={"colour": shown}, maybe_values={"colour": maybe}
    )
    metrics = result.metrics()
    assert {name: metrics[name] for name in plain} == plain
    inputs = {"query_embeddings": embeddings[:, 0], "query_labels": labels[:, 0], "query_groups": groups}
    direct = {
        "map_multi_label": retrieval_metrics(**inputs, query_values=shown),
        "map_ignore_maybe": retrieval_metrics(**inputs, maybe_values=maybe),
    }
    weights = [result["colour"].queries, result["shape"].queries]
    for measure, expected in direct.items():
        assert metrics[f"{measure}_colour"] == expected.map != metrics["map_colour"]
        assert metrics[f"chance_{measure}_colour"] == expected.chance_map
        # nothing is known of shape beyond its labels
        assert metrics[f"{measure}_shape"] == metrics["map_shape"]
        figures = [expected.map, metrics["map_shape"]]
        assert metrics[measure] == pytest.approx(np.mean(figures))
        assert metrics[f"{measure}_weighted"] == pytest.approx(np.average(figures, weights=weights))
        assert metrics[f"chance_{measure}"] == pytest.approx((expected.chance_map + metrics["chance_map_shape"]) / 2)


def test_of_maybe_the_candidates_count(arrays, colour_sets):
    embeddings, labels, _ = arrays
    shown, maybe = colour_sets
    queries = {"embeddings": embeddings[:20], "labels": labels[:20], "attributes": ATTRIBUTES}
    gallery = Gallery(embeddings[20:], labels[20:], None, {"colour": shown[20:]}, {"colour": maybe[20:]})
    result = evaluate_embeddings(**queries, all_values={"colour": shown[:20]}, gallery=gallery)
    inputs = (embeddings[:20, 0], labels[:20, 0], embeddings[20:, 0], labels[20:, 0])
    without = retrieval_metrics(*inputs, maybe_values=maybe[20:])
    by_set = retrieval_metrics(*inputs, query_values=shown[:20], gallery_values=shown[20:])
    assert result["colour"].scores["map_ignore_maybe"] == without.map
    assert result["colour"].scores["map_multi_label"] == by_set.map
    of_queries = evaluate_embeddings(**queries, maybe_values={"colour": maybe[:20]}, gallery=gallery[:3])
    assert "map_ignore_maybe" not in of_queries.metrics()


def test_sets_in_json_table_and_comparison(arrays, colour_sets, tmp_path):
    embeddings, labels, _ = arrays
    sets = {"all_values": {"colour": colour_sets[0]}, "maybe_values": {"colour": colour_sets[1]}}
    result = evaluate_embeddings(embeddings, labels, ATTRIBUTES, **sets)
    assert EvaluationResult.load_json(result.save_json(tmp_path / "result.json")) == result
    header, _, colour, _, _, mean, weighted = result.table(decimals=2).splitlines()[:7]
    titles = ["mAP", "mAP, maybe ignored", "mAP, multi-label", "macro mAP"]
    assert [title.strip() for title in header.split("  ") if "mAP" in title] == titles
    for line, figures in ((colour, result["colour"].scores), (mean, result.overall)):
        for measure in ("map", "map_ignore_maybe", "map_multi_label"):
            assert f" {100 * figures[measure]:.2f} (" in line
    for measure in ("map", "map_ignore_maybe", "map_multi_label"):
        assert f" {100 * result.overall[f'{measure}_weighted']:.2f} (" in weighted
    rows = comparison_rows({"model": result}, "map_multi_label")
    assert [name for name, _ in rows] == ["colour", "shape", "mean", "query-weighted"]
    assert rows[-1][1][1] == result.overall["map_multi_label_weighted"]
    plain = evaluate_embeddings(embeddings, labels, ATTRIBUTES)
    with pytest.raises(ValueError, match="unknown measure 'map_multi_label'; 'plain' has"):
        comparison_rows({"model": result, "plain": plain}, "map_multi_label")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"all_values": {"colours": np.ones((50, 3), bool)}},
            "all_values of 'colours', which is none of colour, shape",
        ),
        ({"maybe_values": {"shape": np.ones((50, 3), bool)}}, r"'shape' must have shape .* \(50, 2\), got \(50, 3\)"),
        ({"all_values": {"shape": np.ones((50, 2))}}, "query values must be booleans"),
        ({"attributes": {"ignore_maybe": ["a"], "multi_label_x": ["b"]}}, "named 'ignore_maybe', 'multi_label_x'"),
    ],
)
def test_bad_sets_say_what_was_given(arrays, change, message):
    given = {"embeddings": arrays[0], "labels": arrays[1], "attributes": ATTRIBUTES}
    with pytest.raises(ValueError, match=message):
        evaluate_embeddings(**(given | change))


def test_known_and_new_values_apart():
    """Green is new. Each query ranks the others by the angle between the images, which are on a circle."""
    degrees = np.radians([0, 10, 40, 25, 55])
    embeddings = np.stack([np.cos(degrees), np.sin(degrees)], axis=1)
    colours, shapes = [0, 0, 0, 1, 1], [0, 1, 0, 1, -1]
    labels, known = np.stack([colours, shapes], axis=1), {"colour": ["red"], "shape": ["circle", "square"]}
    result = evaluate_embeddings(embeddings, labels, ATTRIBUTES, known_values=known)
    # red at 0: 10 (red), 25, 40 (red), 55.  red at 10: 0 (red), 25, 40 (red), 55.  red at 40: 25 and 55 tie, 10, 0.
    red = [(1 + 2 / 3) / 2, (1 + 2 / 3) / 2, (1 / 3 + 2 / 4) / 2]
    # green at 25: 10 and 40 tie, then 0, 55 (green).  green at 55: 40, 25 (green), 10, 0.
    green = [1 / 4, 1 / 2]
    metrics = result.metrics()
    assert metrics["map_known_colour"] == pytest.approx(np.mean(red), abs=1e-6)
    assert metrics["map_new_colour"] == metrics["map_new"] == pytest.approx(np.mean(green), abs=1e-6)
    assert metrics["map_colour"] == pytest.approx(np.mean([*red, *green]), abs=1e-6)
    assert metrics["map_known_shape"] == metrics["map_shape"] and "map_new_shape" not in metrics
    assert metrics["map_known"] == pytest.approx((np.mean(red) + metrics["map_shape"]) / 2, abs=1e-6)
    # one relevant image at a random place among four
    assert metrics["chance_map_new"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    chance = {value.name: value.chance_map for value in result["colour"].values}
    assert metrics["chance_map_known_colour"] == pytest.approx(chance["red"])

    known_line, new_line = result.table().splitlines()[-2:]
    assert known_line == (
        f"mAP of known values: {100 * metrics['map_known']:.1f} ({100 * metrics['chance_map_known']:.1f}); "
        "7 queries of colour, shape."
    )
    assert new_line == "mAP of new values: 37.5 (52.1); 2 queries of colour."
    assert EvaluationResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_nothing_is_said_of_known_values_without_new_ones(arrays):
    embeddings, labels, _ = arrays
    plain = evaluate_embeddings(embeddings, labels, ATTRIBUTES)
    assert evaluate_embeddings(embeddings, labels, ATTRIBUTES, known_values=ATTRIBUTES) == plain
    numbers = {"colour": ["1", "2", "3"], "shape": ["True", "False"]}
    known = {"colour": ["1.0", "2.0", "3.0"], "shape": ["false", "true"]}  # as another file writes them
    assert "map_new" not in evaluate_embeddings(embeddings, labels, numbers, known_values=known).metrics()
    assert "map_new" not in plain.metrics() and "new values" not in plain.table()


def test_an_attribute_called_new_keeps_its_metric(arrays):
    embeddings, labels, _ = arrays
    names = {"colour": ATTRIBUTES["colour"], "new": ["yes", "no"]}
    metrics = evaluate_embeddings(embeddings, labels, names, known_values={"new": ["yes"]}).metrics()
    plain = evaluate_embeddings(embeddings, labels, names).metrics()
    assert plain.items() <= metrics.items() and "map_new_colour" in metrics
