"""The heat map shows the figures of the result, and says where there are none."""

import math

import numpy as np
import pytest
from PIL import Image

from cca_hf.evaluation.entanglement.result import EntanglementResult, ReaderEntanglement
from cca_hf.visualization import plot_entanglement


@pytest.fixture
def result():
    matrix = np.array([[1.0, 0.07], [math.nan, 0.98]])
    reader = ReaderEntanglement(matrix, matrix, matrix, matrix, matrix, score_spread=0.01)
    return EntanglementResult(("colour", "shape"), {"linear": reader, "neighbours": reader}, 100, {"colour": 3})


def test_heat_map(result, tmp_path):
    figure = plot_entanglement(result)
    assert len(figure.axes) == 2
    for axes in figure.axes:
        cells = [text.get_text() for text in axes.texts]
        assert cells == ["1.00", "0.07", "-", "0.98"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["colour", "shape"]
        assert "entanglement 0.07" in axes.get_title() and "informativeness 0.99" in axes.get_title()
        shown = axes.images[0].get_array()
        assert np.ma.getmaskarray(shown).tolist() == [[False, False], [True, False]]
    figure.savefig(tmp_path / "entanglement.png")
    assert len(Image.open(tmp_path / "entanglement.png").convert("RGB").getcolors(1 << 20)) > 10
