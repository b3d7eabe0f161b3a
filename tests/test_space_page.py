"""Runs every snippet of docs/space.md on the paths that it names, as for the README, and loads the served page."""

import re
import urllib.request
from pathlib import Path

import pytest

from .test_readme import ROOT, code_blocks, run_cca, shell_commands, world  # noqa: F401  (a fixture)

PAGE = (ROOT / "docs" / "space.md").read_text(encoding="utf-8")


def test_page(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    gradio = pytest.importorskip("gradio", reason='the Space needs Gradio: pip install "cca_hf[space]"')
    monkeypatch.chdir(world)
    ran = []
    for block in code_blocks(PAGE):
        if block.language == "python":
            names: dict[str, object] = {"__name__": "page"}
            exec(compile(block.text, f"docs/space.md: {block.heading}", "exec"), names)
            with urllib.request.urlopen(str(names["address"]), timeout=300) as answer:
                assert answer.status == 200 and "Alike in which respect?" in answer.read().decode()
            gradio.close_all()
            ran.append("python")
            continue
        for words in shell_commands(block.text):
            ran.append(" ".join(words[:2]))
            if words[:2] == ["pip", "install"]:
                extra = re.fullmatch(r"\.\[(\w+)\]", words[2])
                assert extra and f"\n{extra[1]} =\n" in (ROOT / "setup.cfg").read_text()
            elif words[:2] == ["cca", "index"] or "--export" in words:
                assert run_cca(words, world)
            elif words[0] == "hf":
                assert words == ["hf", "upload", "me/shoes-space", "shoes-space", ".", "--repo-type", "space"]
                assert (world / "shoes-space" / "app.py").is_file()
            else:  # commands that serve until they are interrupted: tested in tests/hub/test_space.py
                assert words in (["cca", "demo"], ["cca", "demo", "--store", "shoes.index"])
    assert ran == ["pip install", "cca demo", "cca index", "cca demo", "cca demo", "hf upload", "python"]
