"""Projections: one panel an attribute, neighbours stay neighbours, and the rare values share a grey."""

import sys

import numpy as np
import pytest
from PIL import Image

from cca_hf.visualization import plot_projection
from cca_hf.visualization.projection import project

VALUES = {"colour": ["red", "green", "blue"], "number": [str(value) for value in range(14)]}


@pytest.fixture(scope="module")
def embedded():
    """Clusters by value under each attribute; (120, 2, 8) and labels with gaps."""
    random = np.random.default_rng(0)
    labels = np.stack([random.integers(0, 3, 120), random.integers(0, 14, 120)], axis=1)
    vectors = np.stack(
        [random.standard_normal((number, 8))[column] for number, column in zip((3, 14), labels.T, strict=True)], axis=1
    )
    labels[:7, 0] = -1
    return vectors + 0.05 * random.standard_normal(vectors.shape), labels


def test_one_panel_an_attribute(embedded, tmp_path):
    figure = plot_projection(*embedded, VALUES)
    assert [axes.get_title() for axes in figure.axes] == ["colour", "number"]
    colour, number = figure.axes
    assert sum(len(points.get_offsets()) for points in colour.collections) == 113  # labelled ones
    assert [text.get_text() for text in colour.get_legend().texts if text.get_text() in VALUES["colour"]]
    assert [text.get_text() for text in number.get_legend().texts][0] == "4 more"
    assert len(number.collections) == 11
    figure.savefig(tmp_path / "projection.png")
    assert Image.open(tmp_path / "projection.png").size[0] > 500


def test_many_pictures_are_thinned_out(embedded):
    figure = plot_projection(*embedded, VALUES, max_images=40)
    assert sum(len(points.get_offsets()) for points in figure.axes[1].collections) == 40


def test_neighbours_stay_neighbours(embedded):
    vectors, labels = embedded
    labelled = labels[:, 0] >= 0
    points, values = project(vectors[labelled, 0]), labels[labelled, 0]
    assert points.shape == (113, 2)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (values[distances.argmin(axis=1)] == values).mean() > 0.95
    assert np.array_equal(points, project(vectors[labelled, 0]))  # seeded


def test_wrong_arguments_are_refused(embedded, monkeypatch):
    vectors, labels = embedded
    with pytest.raises(ValueError, match="method must be 'tsne' or 'umap', got 'pca'"):
        plot_projection(vectors, labels, VALUES, method="pca")
    with pytest.raises(ValueError, match=r"embeddings must have shape \(images, 2, dim\)"):
        plot_projection(vectors[:, 0], labels, VALUES)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="pip install umap-learn"):
        plot_projection(vectors, labels, VALUES, method="umap")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install \"cca_hf\[analysis\]\""):
        plot_projection(vectors, labels, VALUES)
