"""Every snippet of the README runs, on the paths it names: made in a temporary folder, offline.

The Hub's names in it are folders there: `me/shoes` (pictures with a metadata.csv), `me/cca-shoes` (a tiny checkpoint),
`google/vit-base-patch16-224-in21k` (a tiny random ViT). The tools prefer a folder of that name to the Hub.
"""

import csv
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COLOURS = {"black": (20, 20, 20), "blue": (40, 60, 200), "red": (200, 40, 40), "white": (240, 240, 240)}
HEELS = ("flat", "high", "low")
CLOSURES = ("buckle", "laces")


class Block(NamedTuple):
    heading: str
    language: str
    text: str


def code_blocks(page: str = README) -> list[Block]:
    blocks, heading, fence = [], "", None
    for line in page.splitlines():
        if fence is None and line.startswith("#"):
            heading = line.lstrip("# ")
        elif fence is None and line.startswith("```"):
            fence = (line[3:], [])
        elif fence is not None and line == "```":
            blocks.append(Block(heading, fence[0], "\n".join(fence[1])))
            fence = None
        elif fence is not None:
            fence[1].append(line)
    assert fence is None, "a code block has no end"
    return blocks


def shell_commands(text: str) -> list[list[str]]:
    return [words for line in text.replace("\\\n", " ").splitlines() if (words := shlex.split(line, comments=True))]


PYTHON = [block for block in code_blocks() if block.language == "python"]
SHELL = [words for block in code_blocks() if block.language == "bash" for words in shell_commands(block.text)]


def write_split(folder: Path, images: int, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "colour", "heel_height", "closure"])
        for index in range(images):
            colour, heel, closure = (list(values)[index % len(values)] for values in (COLOURS, HEELS, CLOSURES))
            pixels = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 12, (40, 40, 3)), 0, 255).astype(np.uint8)
            pixels[30 - 10 * HEELS.index(heel) :, 28:36] = 128
            Image.fromarray(pixels).save(folder / f"{index:04}.jpg")
            rows.writerow([f"{index:04}.jpg", colour, heel if index % 9 else "", closure])


def write_triplets(folder: Path, pictures: Path) -> None:
    from datasets import Dataset, Image

    columns = ("anchor", "positive", "negative")
    shown = {name: [str(pictures / f"{row + place:04}.jpg") for row in range(9)] for place, name in enumerate(columns)}
    triplets = Dataset.from_dict({"condition": ["closure", "heel_height", "colour"] * 3, **shown})
    for name in columns:
        triplets = triplets.cast_column(name, Image())
    folder.mkdir(parents=True)
    triplets.to_parquet(folder / "test-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the README's names are paths."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    from cca_hf import CCAModel

    folder = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    for split, images in (("train", 48), ("validation", 24), ("test", 24)):
        write_split(folder / "me" / "shoes" / split, images, rng)
    write_triplets(folder / "me" / "shoe-triplets", folder / "me" / "shoes" / "test")
    for name in ("query.jpg", "other.jpg"):
        Image.fromarray(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(folder / name)
    backbone = folder / "google" / "vit-base-patch16-224-in21k"
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(backbone)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(backbone)
    attributes = {"colour": list(COLOURS), "heel_height": list(HEELS), "closure": list(CLOSURES)}
    CCAModel.from_backbone(backbone, attributes=attributes).save_pretrained(folder / "me" / "cca-shoes")
    return folder


def five_lines(names: dict[str, object]) -> None:
    embeddings = np.asarray(names["embeddings"])
    assert embeddings.shape[:2] == (24, 2)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), 1, atol=1e-5)


def use_a_checkpoint(names: dict[str, object]) -> None:
    if "alike" in names:
        assert np.shape(names["embeddings"])[:2] == (2, 2)
        assert np.shape(names["alike"]) == (2,)
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


CHECKS: dict[str, Callable[[dict[str, object]], None]] = {
    "Five lines": five_lines,
    "Use a checkpoint": use_a_checkpoint,
    "Train on your own data": train,
    "Evaluate": evaluate,
    "Look": look,
}


@pytest.mark.parametrize("block", PYTHON, ids=[f"{i}-{block.heading}" for i, block in enumerate(PYTHON)])
def test_python(block: Block, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(block.text, f"README.md: {block.heading}", "exec"), names)
    CHECKS[block.heading](names)


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_cca(words: list[str], folder: Path) -> str:
    return run([sys.executable, "-c", "import sys; from cca_hf.cli import main; sys.exit(main())", *words[1:]], folder)


def index_shoes(folder: Path) -> None:
    """By the README's own line, unless that ran in this process."""
    if not (folder / "shoes.index").is_dir():
        run_cca(next(words for words in SHELL if words[:2] == ["cca", "index"]), folder)


@pytest.mark.parametrize("words", SHELL, ids=" ".join)
def test_shell(words: list[str], world: Path) -> None:
    match words:
        case ["make", target]:
            assert f"make {target} " in run(["make", "--no-print-directory", "help"], ROOT)
            assert run(["make", "--dry-run", target], ROOT)
        case ["pip", "install", what]:
            extras = re.search(r"\[options.extras_require\]\n(.*?)\n\[", (ROOT / "setup.cfg").read_text(), re.DOTALL)
            found = re.fullmatch(r"\.(?:\[(\w+)\])?", what)
            assert found and extras and (not found[1] or f"{found[1]} =" in extras[1].splitlines())
        case ["accelerate", "launch", "scripts/train.py", *flags]:
            launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
            quick = ["--max_steps", "2", "--report_to", "none", "--cpu_threads", "1"]
            run([*launch, str(ROOT / "scripts" / "train.py"), *flags, *quick], world)
            assert (world / "out" / "all_results.json").is_file()
        case ["cca", "evaluate", *_]:
            printed = run_cca(words, world)
            assert "heel_height" in printed and "chance" in printed.lower()
        case ["cca", "embed", *_]:
            assert '"done": ' in run_cca(words, world)
        case ["cca", "export", *_]:
            if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
                assert run_cca(words, world).strip() == "shoes-int8"
        case ["cca", "index" | "search", *_]:
            if words[1] == "search":
                index_shoes(world)
            assert "colour" in run_cca(words, world)
        case ["cca", "demo", *_]:  # serves until it is interrupted; tests/hub/test_space.py looks at the page
            pytest.importorskip("gradio", reason='the Space needs Gradio: pip install "cca_hf[space]"')
            index_shoes(world)
            assert run_cca([*words, "--export", "shoes-space"], world).startswith("shoes-space\n")
        case _:
            raise AssertionError(f"no test knows how to check {shlex.join(words)!r}: teach this one")


def test_every_block_is_checked() -> None:
    assert {block.language for block in code_blocks()} <= {"python", "bash", "bibtex", ""}
    assert len(PYTHON) >= 5 and len(SHELL) >= 4
    assert {block.heading for block in PYTHON} <= set(CHECKS)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)|`(docs/[\w./-]+)`", README))))
def test_links_lead_somewhere(target: tuple[str, str]) -> None:
    path = target[0] or target[1]
    assert path.startswith("https://") or (ROOT / path).is_file()
