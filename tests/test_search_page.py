"""Every snippet of docs/search.md runs, one after the other, on the paths it names, as in the README."""

import re
from pathlib import Path

import pytest

from .test_readme import ROOT, code_blocks, run_cca, shell_commands, world  # noqa: F401  (a fixture)

PAGE = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")


def test_page(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    pytest.importorskip("lancedb", reason='the index needs LanceDB: pip install "cca_hf[search]"')
    monkeypatch.chdir(world)
    ran = []
    for block in code_blocks(PAGE):
        if block.language == "bash":
            for words in shell_commands(block.text):
                ran.append(" ".join(words[:2]))
                if words[:2] == ["pip", "install"]:
                    extra = re.fullmatch(r"\.\[(\w+)\]", words[2])
                    assert extra and f"\n{extra[1]} =\n" in (ROOT / "setup.cfg").read_text()
                else:
                    assert words[0] == "cca"
                    assert "colour" in run_cca(words, world)
            continue
        assert block.language == "python"
        names: dict[str, object] = {"__name__": "page"}
        exec(compile(block.text, f"docs/search.md: {block.heading}", "exec"), names)
        ran.append(block.heading)
        if block.heading == "From Python":
            prices = [hit.columns["price"] for hit in names["hits"]]
            assert len(prices) == 10 and max(prices) < 50
        elif block.heading == "What can be asked":
            assert len(names["one"]) == 5 and "sku-3" not in {hit.item_id for hit in names["one"] + names["but_red"]}
            assert all(len(names[name]) == 10 for name in ("mixed", "red", "but_red", "both"))
            assert [len(hits) for hits in names["many"]] == [10, 10]
        else:
            assert (names["cheap"], names["same"], names["unknown"]) == (5, 5, 4)
    shell = ["pip install"] * 2 + ["cca index"] + ["cca search"] * 3
    assert ran == [*shell, "From Python", "What can be asked", "Filters"]
    assert (world / "found.html").read_text(encoding="utf-8").count("data:image/jpeg;base64,") == 10
