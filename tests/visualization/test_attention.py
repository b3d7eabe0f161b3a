"""Attention over a picture: it glows where it looks and is dim where it does not, whatever the picture shows."""

import numpy as np
import pytest
from PIL import Image

from cca_hf.models.images import load_image
from cca_hf.visualization import attention_overlay, attention_overlays, plot_attention


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (0, 120, 200)])
def test_glows_where_the_weights_are(colour):
    weights = np.zeros((4, 4))
    weights[0, 3] = 1.0
    overlay = attention_overlay(Image.new("RGB", (100, 50), colour), weights, size=200)
    assert overlay.size == (200, 100)  # the grid covers the whole picture, whatever its shape
    pixels = np.asarray(overlay).astype(int)
    lit, dim = pixels[6:14, 180:194].mean(axis=(0, 1)), pixels[80:, :50].mean(axis=(0, 1))
    assert lit.sum() > dim.sum() + 60
    assert lit[0] > lit[2] + 50  # yellow to red
    assert np.ptp(dim) < 30  # nearly grey


def test_is_smooth():
    weights = np.zeros((7, 7))
    weights[3, 3] = 1.0
    pixels = np.asarray(attention_overlay(Image.new("RGB", (224, 224), (200, 200, 200)), weights)).astype(int)
    steps = np.abs(np.diff(pixels.sum(axis=2), axis=0)).max()
    assert np.ptp(pixels.sum(axis=2)) > 150
    assert 0 < steps < 40  # no edge of a cell is seen


@pytest.mark.parametrize("weights", [np.full((3, 3), 1 / 9), np.zeros((3, 3))])
def test_even_attention_stays_dark_everywhere(weights):
    """Stretching an even map to full contrast would draw rounding errors as if they were attention."""
    pixels = np.asarray(attention_overlay(Image.new("RGB", (60, 60), (250, 250, 250)), weights + 1e-9)).astype(int)
    assert np.ptp(pixels) <= 2
    assert pixels.max() < 130


def test_one_map_for_each_attribute(model, dataset):
    picture = dataset["test"][0]["image"]
    overlays = attention_overlays(model, picture, ["shape", "colour"], size=64)
    assert list(overlays) == ["shape", "colour"]
    maps = model.attention_maps([picture], ["shape"])[0].mean(axis=1)
    expected = attention_overlay(load_image(picture), maps[0], size=64)
    assert overlays["shape"].tobytes() == expected.tobytes()


def test_figure_names_its_parts(model, dataset, tmp_path):
    figure = plot_attention(model, dataset["test"][0]["image"])
    assert [axes.get_title() for axes in figure.axes] == ["image", "colour", "shape"]
    figure.savefig(tmp_path / "attention.png")
    assert Image.open(tmp_path / "attention.png").size[0] > 400
    with pytest.raises(ValueError, match="Did you mean 'colour'"):
        plot_attention(model, dataset["test"][0]["image"], ["color"])
