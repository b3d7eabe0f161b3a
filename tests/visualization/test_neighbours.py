"""Which pictures are shown, and how they are framed."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from cca_hf.models.images import load_image
from cca_hf.visualization import Neighbour, choose_queries, plot_neighbours, view_queries
from cca_hf.visualization.neighbours import RIGHT, UNKNOWN, WRONG


def test_drawn_queries_are_distinct_and_show_many_values():
    labels = np.zeros((100, 2), dtype=np.int64)
    labels[:5] = [[1, 0], [0, 1], [2, 2], [-1, 3], [3, -1]]
    chosen = choose_queries(labels, 6, seed=3)
    assert len(set(chosen)) == 6
    assert set(range(5)) < set(chosen)  # the only ones with rare values, wherever the dice put them
    assert chosen == choose_queries(labels, 6, seed=3)
    assert choose_queries(labels, 6, seed=4) != chosen
    assert sorted(choose_queries(labels[:3], 6)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("split", "asked", "answering"), [("test",) * 2 + ("test",), ("benchmark", "benchmark_query", "benchmark_gallery")]
)
def test_neighbours_are_the_nearest_allowed(model, dataset, split, asked, answering):
    rows = [0, 4]
    views = view_queries(model, dataset, split, rows, neighbours=4)
    queries = model.encode([dataset[asked][row]["image"] for row in rows])
    gallery = model.encode(dataset[answering]["image"])
    labels, groups = dataset.labels(answering), dataset.groups(answering)
    for view, query, row in zip(views, queries, rows, strict=True):
        own = dataset.labels(asked)[row]
        assert view.index == row
        assert view.image.tobytes() == load_image(dataset[asked][row]["image"]).tobytes()
        assert list(view.attention) == ["colour", "shape"]
        for column, (name, values) in enumerate(dataset.attributes.items()):
            assert view.values[name] == (None if own[column] < 0 else values[own[column]])
            allowed = [
                index
                for index in range(len(gallery))
                if labels[index, column] >= 0 and groups[index] != dataset.groups(asked)[row]
            ]
            best = sorted(allowed, key=lambda index: -float(gallery[index, column] @ query[column]))[:4]
            found = view.neighbours[name]
            assert [each.value for each in found] == [values[labels[index, column]] for index in best]
            for neighbour, index in zip(found, best, strict=True):
                assert neighbour.image.tobytes() == load_image(dataset[answering][index]["image"]).tobytes()
                assert neighbour.similarity == pytest.approx(float(gallery[index, column] @ query[column]), abs=1e-5)
                same = None if own[column] < 0 else bool(labels[index, column] == own[column])
                assert neighbour.relevant is same


def test_a_large_split_is_searched_in_part(model, dataset):
    few = view_queries(model, dataset, "benchmark", [0], neighbours=20, candidates=6)[0]
    assert len(few.neighbours["colour"]) <= 6
    everything = view_queries(model, dataset, "benchmark", [0], neighbours=25)[0]
    all_pictures = {each.image.tobytes() for each in everything.neighbours["colour"]}
    assert {each.image.tobytes() for each in few.neighbours["colour"]} < all_pictures


def test_rows_outside_the_split(model, dataset):
    with pytest.raises(ValueError, match=r"rows 0 to 29, not \[30\]"):
        view_queries(model, dataset, "test", [0, 30])


def test_frames_tell_right_from_wrong(tmp_path):
    picture = Image.new("RGB", (20, 20))
    found = {
        "colour": [Neighbour(picture, 0.9, "red", True), Neighbour(picture, 0.8, "blue", False)],
        "shape": [Neighbour(picture, 0.7, "a very long name of a value", None)],
    }
    figure = plot_neighbours(
        picture, found, query_values={"colour": "red", "shape": None}, attention={"shape": picture}
    )
    framed = {
        axes.get_xlabel(): to_hex(axes.spines["left"].get_edgecolor())
        for axes in figure.axes
        if axes.images and axes.spines["left"].get_visible()
    }
    assert framed == {"red": RIGHT, "blue": WRONG, "a very long nam\N{HORIZONTAL ELLIPSIS}": UNKNOWN}
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == ["colour", "red", "shape"]
    figure.savefig(tmp_path / "neighbours.png")
    assert Image.open(tmp_path / "neighbours.png").size[0] > 400
    with pytest.raises(ValueError, match="no neighbours"):
        plot_neighbours(picture, {"colour": []})
