"""Runs every block of the tutorials in the order of the pages: the first trains the model that the others use."""

import json
from pathlib import Path

import numpy as np
import pytest

from .pages import Ran, add_sentence_encoder, run_page


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Ran]]:
    """The working folder of the reader, and the blocks of the first tutorial with their results."""
    folder = tmp_path_factory.mktemp("tutorials")
    return folder, [ran._replace(names=dict(ran.names)) for ran in run_page("docs/tutorials/train.md", folder)]


def python(ran: list[Ran]) -> list[dict[str, object]]:
    return [block.names for block in ran if not block.command]


def test_train(first: tuple[Path, list[Ran]]) -> None:
    folder, ran = first
    (trained,) = (block for block in ran if block.command)
    drawn, looked, reported, used, piped = python(ran)
    assert len(list((folder / "catalogue").rglob("*.png"))) == 1000
    assert looked["data"].attributes.keys() == {"colour", "pattern", "background"}
    rows = [line.split()[0] for line in trained.printed.splitlines() if "(" in line and line[0] != "%"]
    assert [name for name in rows if name in looked["data"].attributes] == ["colour", "pattern", "background"]
    result = reported["result"].metrics()
    assert result["map"] > result["chance_map"] + 0.1  # clearly above chance
    assert (folder / "report" / "report.html").is_file() and (folder / "out" / "report.html").is_file()
    assert np.shape(used["embeddings"]) == (2, 3, 64) and np.shape(used["alike"]) == (3,)
    np.testing.assert_allclose(piped["colour"], used["embeddings"][0, 0], atol=1e-5)


def test_search(first: tuple[Path, list[Ran]]) -> None:
    pytest.importorskip("lancedb", reason='the index needs LanceDB: pip install "cca_hf[search]"')
    pytest.importorskip("faiss")
    folder, _ = first
    ran = list(run_page("docs/tutorials/search.md", folder))
    commands = [" ".join(block.command[:2]) for block in ran if block.command]
    assert commands == ["pip install", "cca index", "cca search", "cca search", "pip install"]
    assert "data:image/" in (folder / "found.html").read_text(encoding="utf-8")
    names = ran[-1].names
    assert len(names["hits"]) == 5 and all(hit.columns["colour"] != "red" for hit in names["hits"])
    assert len(names["but_red"]) == 5
    expected = np.sort(names["embeddings"][:, 0] @ names["query"])[::-1][:5]
    np.testing.assert_allclose(names["similarities"], expected, atol=1e-5)


def test_manipulate(first: tuple[Path, list[Ran]]) -> None:
    pytest.importorskip("lancedb", reason='the index needs LanceDB: pip install "cca_hf[search]"')
    folder, _ = first
    ran = list(run_page("docs/tutorials/manipulate.md", folder))
    commands = [" ".join(block.command[:2]) for block in ran if block.command]
    assert commands == ["pip install", "cca index", "cca search", "cca search", "cca evaluate", "cca train"]
    assert "Item 3, but colour red, any pattern" in (folder / "changed.html").read_text(encoding="utf-8")
    (names,) = python(ran)
    assert [hit.columns["colour"] for hit in names["hits"]].count("red") >= 3
    assert not names["changed"][0, 1].any() and names["changed"].shape == (1, 3, 64)
    figures = json.loads((folder / "changed" / "manipulation.json").read_text())["metrics"]
    assert figures["top_10_1_change"] > figures["chance_top_10_1_change"] + 0.1
    results = json.loads((folder / "adde" / "all_results.json").read_text())
    assert results["test_manipulation_ndcg"] > results["test_manipulation_chance_ndcg"]


def test_text(first: tuple[Path, list[Ran]]) -> None:
    folder, _ = first
    if not add_sentence_encoder(folder):
        pytest.skip("the sentence encoder of the test extra is missing")
    ran = list(run_page("docs/tutorials/text.md", folder))
    names = ran[-1].names
    assert names["model"].config.attributes == ["colour", "pattern", "background", "hue"]
    (compared,) = (block.printed for block in ran if "conditioned on" in block.printed)
    figures = {line.split()[-3].rstrip(":"): float(line.split()[-1]) for line in compared.splitlines()}
    assert figures["hue"] > 0.9 > 0.6 > figures["pattern"]  # as on the page
    from cca_hf import CCAModel

    again = CCAModel.from_pretrained(folder / "out-text-hue").encode(folder / "catalogue/test/0000.png")
    np.testing.assert_allclose(again[0, 3], names["embeddings"][0, 0], atol=1e-4)


def test_publish(first: tuple[Path, list[Ran]]) -> None:
    folder, _ = first
    ran = list(run_page("docs/tutorials/publish.md", folder))
    assert [" ".join(block.command[:2]) for block in ran] == ["cca card", "cca push", ""]
    assert ran[-1].names["spaces"].keys() == {"colour", "pattern", "background"}
    card = (folder / "published" / "README.md").read_text(encoding="utf-8")
    assert "me/cca-catalogue" in card and "license: apache-2.0" in card
    published = {path.name for path in (folder / "published").iterdir()}
    assert {"model.safetensors", "handler.py", "modules.json"} <= published
