"""Runs every snippet of the README unchanged and offline, on the paths that it names (see `pages.py`)."""

import re
import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from .pages import ROOT, Block, check_installable, code_blocks, make_world, run, run_cca, shell_commands, train_briefly

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = [block for block in code_blocks(README) if block.language == "python"]
SHELL = [words for block in code_blocks(README) if block.language == "bash" for words in shell_commands(block.text)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the Hub names of the README are paths."""
    folder = tmp_path_factory.mktemp("readme")
    make_world(folder)
    return folder


def five_lines(names: dict[str, object]) -> None:
    embeddings = np.asarray(names["embeddings"])
    assert embeddings.shape[:2] == (120, 2)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), 1, atol=1e-5)
    assert names["trainer"].state.global_step == 36  # 4 epochs
    # the tiny backbone has random weights, so that the mAP is little above chance
    losses = [entry["loss"] for entry in names["trainer"].state.log_history if "loss" in entry]
    assert len(losses) > 2 and losses[-1] < losses[0]


def use_a_checkpoint(names: dict[str, object]) -> None:
    if "SentenceTransformer" in names:
        assert np.shape(names["embeddings"])[0] == 2 and np.ndim(names["embeddings"]) == 2
    elif "alike" in names:
        assert np.shape(names["embeddings"])[:2] == (2, 2)
        assert np.shape(names["alike"]) == (2, 2, 2)
        np.testing.assert_allclose(names["colour"], names["embeddings"][0, 0], atol=1e-5)
    elif "embed" in names:
        assert list(names["both"]) == ["colour", "closure"]
        np.testing.assert_allclose(names["both"]["colour"], names["colour"], atol=1e-5)
    else:
        assert names["embeddings"].shape[0] == 1 and names["embeddings"].dim() == 2


def train(names: dict[str, object]) -> None:
    if "trainer" in names:
        assert Path("my-run/final/model.safetensors").is_file()
        assert names["trainer"].state.global_step > 0
    else:
        assert "closure" in str(names["data"].summary())


def evaluate(names: dict[str, object]) -> None:
    assert 0 < names["result"].metrics()["map"] <= 1


def look(names: dict[str, object]) -> None:
    assert Path("report/report.html").stat().st_size > 10_000
    assert Path("report/report.png").is_file()


def search(names: dict[str, object]) -> None:
    assert len(names["hits"]) == 10 and "3" not in {hit.item_id for hit in names["hits"]}


CHECKS: dict[str, Callable[[dict[str, object]], None]] = {
    "Five lines": five_lines,
    "Use a checkpoint": use_a_checkpoint,
    "Train on your own data": train,
    "Evaluate": evaluate,
    "Look": look,
    "Search": search,
}


@pytest.mark.parametrize("block", PYTHON, ids=[f"{i}-{block.heading}" for i, block in enumerate(PYTHON)])
def test_python(block: Block, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    if block.heading == "Search":
        index_shoes(world)
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(block.text, f"README.md: {block.heading}", "exec"), names)
    CHECKS[block.heading](names)


def push_dry(words: list[str], folder: Path) -> dict[str, str]:
    """The files that a push would send to the Hub, as text; the tests in tests/hub push to a server."""
    if "out" in words and not (folder / "out").is_dir():
        shutil.copytree(folder / "me" / "cca-shoes", folder / "out")
    if "--dry_run" not in words:
        words = [*words, "--dry_run", tempfile.mkdtemp(dir=folder)]
    staged = folder / run_cca(words, folder).strip()
    return {path.name: path.read_text(errors="replace") for path in staged.rglob("*") if path.is_file()}


def index_shoes(folder: Path) -> None:
    """Runs the `cca index` line of the README, unless it has run in this process."""
    if not (folder / "shoes.index").is_dir():
        run_cca(next(words for words in SHELL if words[:2] == ["cca", "index"]), folder)


@pytest.mark.parametrize("words", SHELL, ids=" ".join)
def test_shell(words: list[str], world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match words:
        case ["make", target]:
            assert f"make {target} " in run(["make", "--no-print-directory", "help"], ROOT)
            assert run(["make", "--dry-run", target], ROOT)
        case ["pip", "install", what]:
            check_installable(what)
        case ["accelerate", "launch", "scripts/train.py", *flags]:
            train_briefly(flags, world)
            assert (world / "out" / "all_results.json").is_file()
        case ["cca", "try", *_]:
            for name, value in {"STEPS": 15, "SHAPES": 150, "SHAPE_EPOCHS": 1}.items():
                monkeypatch.setattr(f"cca_hf.recipes.trial.{name}", value)
            monkeypatch.setattr("cca_hf.training.process.prepare_process", lambda: None)
            assert "Page: cca-try/report.html" in run_cca([*words, "--no_open"], world)
        case ["cca", "evaluate", *_]:
            printed = run_cca(words, world)
            assert "heel_height" in printed and "chance" in printed.lower()
        case ["cca", "push", *_] | ["cca", "data", "push", *_]:
            assert push_dry(words, world)["README.md"].startswith("---\n")
        case ["cca", "embed", *_]:
            assert '"done": ' in run_cca(words, world)
        case ["cca", "export", *_]:  # an export takes many seconds; tests/runtimes/test_export.py tests it
            made = []
            monkeypatch.setattr("cca_hf.runtimes.export.export_model", lambda *_, **given: made.append(given["int8"]))
            monkeypatch.setattr("cca_hf.cli.embed.require", lambda *_, **__: None)
            assert run_cca(words, world).strip() == "shoes-int8" and made == [True]
        case ["cca", "index" | "search", *_]:
            if words[1] == "search":
                index_shoes(world)
            assert "colour" in run_cca(words, world)
        case ["cca", "demo", *_]:  # serves until it is interrupted; tests/hub/test_space.py tests the page
            pytest.importorskip("gradio", reason='the Space needs Gradio: pip install "cca_hf[space]"')
            index_shoes(world)
            assert run_cca([*words, "--export", "shoes-space"], world).startswith("shoes-space\n")
        case _:
            raise AssertionError(f"no test checks {shlex.join(words)!r}: add a case here")


def test_every_block_has_a_check() -> None:
    assert {block.language for block in code_blocks(README)} <= {"python", "bash", "bibtex", ""}
    assert len(PYTHON) >= 5 and len(SHELL) >= 4
    assert {block.heading for block in PYTHON} <= set(CHECKS)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)|`(docs/[\w./-]+)`", README))))
def test_links_have_targets(target: tuple[str, str]) -> None:
    path = target[0] or target[1]
    assert path.startswith("https://") or (ROOT / path).is_file()
