"""`cca try`: what it prints, the page with the user's own images, and the checkpoint that it leaves."""

import csv
import re
import webbrowser
from pathlib import Path

import numpy as np
import pytest
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from cca_hf.cli.main import main
from cca_hf.data.shapes import SHAPE_ATTRIBUTES, draw_shape
from cca_hf.recipes import trial
from cca_hf.visualization.page import data_uri

IMAGES = 50
# as cameras, phones and people name files
NAMES = ["IMG_{:04}.JPG", "img {} (copy).jpg", "été #{}.jpeg", "a&b={}%.jpg"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with messy names, one of which is no image, and a table with two attributes and missing labels."""
    folder = tmp_path_factory.mktemp("photos") / "my photos"
    folder.mkdir()
    rows = []
    for number in range(IMAGES):
        values = {name: values[number % len(values[:3])] for name, values in SHAPE_ATTRIBUTES.items()}
        values["shape"] = SHAPE_ATTRIBUTES["shape"][number // 3 % 2]
        image, _, _ = draw_shape(**values, image_size=48, random=np.random.default_rng(number))
        name = NAMES[number % len(NAMES)].format(number)
        (folder / name).write_bytes(image)
        rows.append([name, values["colour"], values["shape"] if number % 10 else "", f"a note about image {number}"])
    (folder / rows[7][0]).write_bytes(b"not an image")
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", "colour", "shape", "note"], *rows])
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones") / "tiny-vit"
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Short trials, in this process and without matplotlib; the addresses that a browser would show."""
    addresses: list[str] = []
    monkeypatch.setattr(trial, "STEPS", 15)
    monkeypatch.setattr(trial, "SHAPES", 100)
    monkeypatch.setattr(trial, "SHAPE_EPOCHS", 1)
    monkeypatch.setattr("cca_hf.training.process.prepare_process", lambda: None)
    monkeypatch.setattr("cca_hf.visualization.report.can_draw", lambda: False)
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    monkeypatch.setenv("DISPLAY", ":0")
    return addresses


def run(*words: object) -> int:
    return main(["try", *map(str, words)])


def test_own_images(photos, backbone, tmp_path, opened, monkeypatch, capsys, caplog):
    out = tmp_path / "out"
    monkeypatch.setattr(trial, "MOST_IMAGES", {"train": 30, "validation": 100, "test": 100})
    assert run(photos, "--attributes", "colour", "shape", "--backbone", backbone, "--output_dir", out) == 0
    printed, progress = capsys.readouterr()
    assert printed.startswith(
        f"{photos}: 50 images (40 train, 5 validation, 5 test)\n"
        "attribute                    values  no label\n"
        "---------------------------  ------  --------\n"
        "colour: red, orange, yellow       3         0\n"
        "shape: circle, square             2         5\n"
        "Drawn at random for this trial: 30 train, 5 validation, 5 test.\n"
    )
    assert "'loss': " in progress and "'eval_map': " in progress
    assert "left out 1 unreadable image(s)" in caplog.text
    assert re.search("^colour +5 ", printed, re.MULTILINE)  # a row of the table of results
    assert "\nQueries: 5 (the test images). Other images that each is compared with: 29. Figures of so few" in printed

    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"Page: {out / 'report.html'}\n" in printed and opened == [(out / "report.html").as_uri()]
    pictures = [photo for photo in photos.iterdir() if photo.suffix != ".csv" and photo.stat().st_size > 100]
    shown = [photo for photo in pictures if data_uri(photo, 168) in page]
    assert len(pictures) == 49 and 10 < len(shown) <= 34

    # the checkpoint is one of the other commands; the test split that is cut again is the one of the trial
    assert main(["evaluate", "--model", str(out), "--dataset", str(photos), "--split", "test"]) == 0
    assert "colour" in capsys.readouterr().out


def test_one_attribute_of_few_images(photos, backbone, tmp_path, opened, capsys):
    few = tmp_path / "few"
    few.mkdir()
    rows = list(csv.reader((photos / "metadata.csv").open(encoding="utf-8")))
    with open(few / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([rows[0][:2], *(row[:2] for row in rows[9:21])])
    for name, *_ in rows[9:21]:
        (few / name).write_bytes((photos / name).read_bytes())
    words = ["--attributes", "colour", "--backbone", backbone, "--output_dir", tmp_path / "out", "--no-open"]
    assert run(few, *words) == 0
    printed = capsys.readouterr().out
    assert "12 images (10 train, 1 validation, 1 test)\n" in printed
    assert "\nQueries: 1 (the test images). Other images that each is compared with: 10. Figures" in printed
    assert opened == []


def test_shapes(tmp_path, opened, capsys):
    assert run("--output_dir", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Draws 100 images of shapes, and learns from scratch: colour, size, background\n")
    assert "\nQueries: 20 (the test images). Other images that each is compared with: 19. Figures" in printed
    assert printed.endswith(
        "Next:\n  cca try FOLDER_OR_TABLE\n"
        f"  cca evaluate --model {tmp_path / 'out'} --dataset {tmp_path / 'out' / 'shapes'}\n"
    )
    assert opened == [(tmp_path / "out" / "report.html").as_uri()]
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_backbone_that_the_hub_does_not_give(photos, tmp_path, capsys):
    """The tests have no network."""
    out = tmp_path / "out"
    assert run(photos, "--attributes", "colour", "--output_dir", out) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(
        "cca: error: the backbone google/mobilenet_v2_1.0_224 could not be loaded from the Hub: "
    )
    assert message.endswith("copy a vision model to this machine, and give its folder: --backbone FOLDER")
    assert not out.exists()


def test_images_that_cannot_be_read(photos, backbone, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "metadata.csv").write_bytes((photos / "metadata.csv").read_bytes())
    for photo in photos.glob("*.[jJ]*"):
        (broken / photo.name).write_bytes(b"not an image")
    assert run(broken, "--attributes", "colour", "--backbone", backbone, "--output_dir", tmp_path / "out") == 1
    assert capsys.readouterr().err.endswith("cca: error: no image of the split 'train' can be read\n")


def test_no_training_images(photos, tmp_path, capsys):
    (tmp_path / "test").symlink_to(photos)
    assert run(tmp_path, "--attributes", "colour", "--output_dir", tmp_path / "out") == 1
    assert (
        f"{tmp_path} has no training images: its only split is called test; call it train" in capsys.readouterr().err
    )


def test_shapes_take_no_options_of_images(capsys):
    assert run("--attributes", "colour") == 2
    message = "cca try: error: --attributes needs FOLDER_OR_TABLE: your images. See 'cca try --help'.\n"
    assert capsys.readouterr().err == message
