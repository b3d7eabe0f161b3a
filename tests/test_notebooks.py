"""Executes the notebooks as Jupyter does: each in a new kernel, in an empty folder."""

import re
from pathlib import Path
from typing import Any

import pytest

from .pages import ROOT

nbformat = pytest.importorskip("nbformat", reason='the notebooks are executed with pip install "cca_hf[test]"')
nbclient = pytest.importorskip("nbclient", reason='the notebooks are executed with pip install "cca_hf[test]"')
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").iterdir())


def read(name: str) -> Any:
    return nbformat.read(ROOT / "notebooks" / name, as_version=4)


def execute(name: str, folder: Path) -> Any:
    """The notebook with its outputs; an exception in a cell is an error."""
    notebook = read(name)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def shown(notebook: Any, kind: str) -> list[str]:
    """What the cells display as one MIME type, in order; printed text counts as `text/plain`."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [
        output.text if output.output_type == "stream" else output.data[kind]
        for output in outputs
        if (output.output_type == "stream" and kind == "text/plain" and output.name == "stdout")
        or (output.output_type != "stream" and kind in output.data)
    ]


def test_train_on_your_images(tmp_path: Path) -> None:
    notebook = execute("train_on_your_images.ipynb", tmp_path)
    text = "\n".join(shown(notebook, "text/plain"))
    achieved = {name: tuple(map(float, figures)) for name, *figures in MAP_ROW.findall(text)}
    assert achieved.keys() >= {"colour", "pattern", "background"}
    assert achieved["colour"][0] > 90 > 30 > achieved["colour"][1]  # mAP and chance in %
    assert len(shown(notebook, "image/png")) == 1
    assert (tmp_path / "my-run" / "final" / "model.safetensors").is_file()


def test_search_a_catalogue(tmp_path: Path) -> None:
    pytest.importorskip("lancedb", reason='the index needs LanceDB: pip install "cca_hf[search]"')
    notebook = execute("search_a_catalogue.ipynb", tmp_path)
    but_blue, like_item = shown(notebook, "text/plain")[-2:]
    assert len(re.findall(r"\('blue', ", but_blue)) == 6
    assert len(set(re.findall(r"\('item-\d+', '(\w+)'\)", like_item))) == 1
    assert len(shown(notebook, "image/png")) == 5


# a row of `EvaluationResult.table()`: the attribute, the number of queries, mAP and chance
MAP_ROW = re.compile(r"^(\w+) +\d+ +([\d.]+) +\(([\d.]+)\)", re.MULTILINE)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_committed_without_outputs(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert f"def test_{name.removesuffix('.ipynb')}(" in Path(__file__).read_text(encoding="utf-8"), "not executed"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
        for link in re.findall(r"\]\(([^)#:]+)[)#]", cell.source):
            assert (ROOT / "notebooks" / link).is_file(), link
