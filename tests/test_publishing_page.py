"""Runs every snippet of docs/publishing.md on the paths that it names, as for the README; pushes are dry runs."""

from pathlib import Path

import numpy as np
import pytest

from cca_hf import push_model

from .test_readme import ROOT, code_blocks, push_dry, run_cca, shell_commands, world  # noqa: F401  (a fixture)

BLOCKS = code_blocks((ROOT / "docs" / "publishing.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "python"], ids=lambda block: block.heading
)
def test_python(block, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.chdir(world)
    names: dict = {"__name__": "page"}
    exec(compile(block.text, f"docs/publishing.md: {block.heading}", "exec"), names)
    if "trainer" in names:
        assert names["trainer"].publish is push_model
    elif "evaluator" in names:
        np.testing.assert_allclose(names["evaluator"](names["colour"])["cosine_accuracy"], 1)
    elif "embeddings" in names:
        expected = names["model"][0].model.encode(["query.jpg", "other.jpg"], "colour")[:, 0]
        np.testing.assert_allclose(names["embeddings"], expected, atol=1e-6)
    else:
        assert names["model"].config.attributes == ["colour", "heel_height", "closure"]


def test_shell(world: Path) -> None:  # noqa: F811
    pushed = {}
    for block in BLOCKS:
        for words in shell_commands(block.text) if block.language == "bash" else []:
            if words[:2] == ["cca", "check"]:
                assert "ok           model.safetensors" in run_cca(words, world).splitlines()
            elif words[0] == "cca":
                pushed[" ".join(words)] = push_dry(words, world)
            else:  # a login, and a training that pushes: tested in tests/hub
                assert words[:2] in (["hf", "auth"], ["accelerate", "launch"])
    models = [files for words, files in pushed.items() if words.startswith("cca push")]
    data = [files for words, files in pushed.items() if words.startswith("cca data push")]
    assert len(models) == 2 and all({"model.safetensors", "modules.json"} <= set(files) for files in models)
    assert [("Annotations only" in files["README.md"]) for files in data] == [False, True]
