"""`cca train recognise`, `cca evaluate` and `cca label` on small images, whose upper half is the colour."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from datasets import Dataset, DatasetDict, load_dataset
from PIL import Image
from transformers import ViTConfig

from cca_hf.cli.main import main
from cca_hf.data.recognition import load_recognition_dataset
from cca_hf.evaluation.recognition_result import RecognitionResult
from cca_hf.models.attribute_recognition import encode_labels, positive_shares
from cca_hf.models.loading import load_model, load_recogniser
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.recipes.attribute_recognition import run_training
from cca_hf.recipes.command_line import read_command
from cca_hf.recipes.recognisers import make_recogniser
from cca_hf.recipes.recognition_arguments import RecognitionArguments

from ..pages import ROOT, code_blocks, run_command, shell_commands

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
VIT = json.dumps(
    {
        "model_type": "vit",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "patch_size": 8,
    }
)
SWIN = json.dumps(
    {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 2,
        "patch_size": 4,
    }
)
ATTRIBUTES = ["colour", "bag", "items"]
SETTINGS = {
    "attributes": ATTRIBUTES,
    "image_size": [32, 16],
    "padding": 2,
    "per_device_train_batch_size": 12,
    "head_learning_rate": 3e-3,
    "use_cpu": True,
    "disable_tqdm": True,
}


def make_split(count: int, seed: int, folder: Path, **columns) -> Dataset:
    rng, rows = np.random.default_rng(seed), []
    for row in range(count):
        colour = [*COLOURS][row % 3]
        levels = np.zeros((32, 16, 3), np.uint8)
        levels[:16] = COLOURS[colour]
        levels += rng.integers(20, size=levels.shape, dtype=np.uint8)
        path = folder / f"{seed}-{row}.png"
        Image.fromarray(levels).save(path)
        given = {
            "colour": None if row % 8 == 7 else colour,
            "bag": row % 2 == 0,
            "items": [["hat"], [], None][row % 3],
        }
        image = {"bytes": path.read_bytes(), "path": path.name}
        rows.append({"image": image, **given, "person": row // 2, **columns})
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recognition")
    splits = DatasetDict(
        {name: make_split(24, seed, folder) for seed, name in enumerate(("train", "validation", "test"))}
    )
    (folder / "people").mkdir()
    for name, rows in splits.items():
        rows.to_parquet(str(folder / "people" / f"{name}.parquet"))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return run_training(
        RecognitionArguments(
            dataset=str(folder / "people"),
            group_column="person",
            backbone_config=VIT,
            local_backbone_config=SWIN,
            num_train_epochs=6,
            eval_strategy="steps",
            eval_steps=6,
            save_steps=6,
            save_strategy="steps",
            output_dir=str(folder / "out"),
            **SETTINGS,
        )
    )


def test_training_gives_a_calibrated_model(run):
    config = run.model.config
    assert config.attribute_kinds == {"colour": "exclusive", "bag": "binary", "items": "multiple"}
    assert config.image_size == [32, 16] and config.has_fusion
    labels = encode_labels(config, {name: run.data["train"][name] for name in ("colour", "bag")})
    assert config.positive_shares["bag"] == positive_shares(config, labels)["bag"] == [0.5]
    assert config.positive_shares["items"] == [0.5]  # of the images with a list
    assert set(config.temperatures) == set(config.thresholds) == set(ATTRIBUTES)
    assert config.thresholds["items"] >= 0.5
    assert run.result.attributes[0].mean_accuracy.value > 0.9  # the colour is easy
    assert run.metrics["test_mean_accuracy"] == run.result.metrics()["mean_accuracy"]


def test_the_folder_has_everything(run, capsys):
    stored = RecognitionResult.load_json(run.output_dir / "test_evaluation.json")
    assert stored == run.result
    record = json.loads((run.output_dir / "run.json").read_text())
    assert record["value_counts"]["items"] == {"hat": 8} and record["data"]["attributes"] == ATTRIBUTES
    assert record["settings"]["max_error"] == 0.1 and "dataset" not in record["settings"]
    model = load_recogniser(run.output_dir, "cpu")
    assert model.config.thresholds == run.model.config.thresholds
    assert main(["card", "--model", str(run.output_dir)]) == 0
    card = (run.output_dir / "README.md").read_text()
    assert "## Recognition of attributes" in card and "### Images of people" in card
    assert "one embedding of an image for each" not in card and "Rare values of items" in card
    capsys.readouterr()


def test_evaluate_gives_the_figures_of_the_training(run, folder, capsys):
    words = ["evaluate", "--model", str(run.output_dir), "--dataset", str(folder / "people"), "--device", "cpu"]
    assert main([*words, "--output_dir", str(folder / "results")]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[:2] == ["%", "mA"]
    measured = RecognitionResult.load_json(folder / "results" / "evaluation.json")
    assert measured.metrics() == pytest.approx(run.result.metrics(), abs=1e-6)
    assert main([*words, "--entanglement"]) == 2
    assert "--report are for embeddings" in capsys.readouterr().err


def test_evaluate_on_another_data_set_with_fewer_attributes(run, folder, capsys):
    other = folder / "other"
    other.mkdir()
    make_split(9, 9, folder).remove_columns(["bag", "items"]).to_parquet(str(other / "test.parquet"))
    words = ["evaluate", "--model", str(run.output_dir), "--dataset", str(other), "--device", "cpu", "--json"]
    assert main([*words, "--attributes", "colour"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["mean_accuracy_colour"] == metrics["mean_accuracy"] > 0.9
    assert main([*words, "--attributes", "color"]) == 1
    assert "unknown attribute 'color'. Did you mean 'colour'?" in capsys.readouterr().err


def test_label_fills_missing_labels_only(run, folder, capsys):
    output, source = folder / "labelled.csv", str(folder / "people")
    words = ["label", "--model", str(run.output_dir), "--dataset", source, "--device", "cpu"]
    assert main([*words, "--split", "train", "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["attribute", "labelled", "proposed", "unknown"]
    assert lines[3].split() == ["bag", "24", "0", "0"]
    assert lines[-1] == f"written: {output}"
    table = pandas.read_csv(output, keep_default_na=False)
    assert table["file_name"][0] == "0-0.png" and "image" not in table
    missing = table["colour"] == ""
    assert missing.sum() == 3 and (table["colour_probability"][~missing] == "").all()
    truth = [[*COLOURS][row % 3] for row in range(24)]
    for row in np.flatnonzero(missing):
        assert table["colour_proposed"][row] in (truth[row], "") and float(table["colour_probability"][row]) > 0.3
    assert main([*words, "--output", str(output)]) == 1
    assert f"{output} exists already; choose a new file" in capsys.readouterr().err


def test_label_all_writes_a_data_set(run, folder, capsys):
    output = folder / "checked"
    words = ["label", "--model", str(run.output_dir), "--dataset", str(folder / "people"), "--device", "cpu", "--all"]
    assert main([*words, "--attributes", "colour", "items", "--output", str(output)]) == 0
    assert "unknown value: " in capsys.readouterr().out or run.model.config.thresholds["colour"] < 0.4
    checked, given = load_dataset(str(output)), load_dataset(str(folder / "people"))
    assert {name: rows.num_rows for name, rows in checked.items()} == dict.fromkeys(
        ("train", "validation", "test"), 24
    )
    rows = checked["test"]
    assert rows["colour"][:] == given["test"]["colour"][:] and rows["items"][:] == given["test"]["items"][:]
    predictions = load_recogniser(run.output_dir, "cpu").predict(rows["image"], ["colour", "items"])
    assert rows["colour_proposed"][:] == [each["colour"].value for each in predictions]
    assert rows["items_proposed"][:] == [each["items"].value for each in predictions]
    assert rows["items_probability"][:] == pytest.approx([each["items"].probability for each in predictions], abs=1e-6)
    assert main([*words, "--dataset", str(output), "--output", str(folder / "again.csv")]) == 1
    assert "already has the column 'colour_probability': rename or remove it" in capsys.readouterr().err


def test_label_needs_no_columns_and_names_unreadable_images(run, folder, capsys):
    images = folder / "images"
    images.mkdir()
    Image.new("RGB", (16, 32), COLOURS["blue"]).save(images / "a.png")
    (images / "b.png").write_bytes(b"no image")
    (images / "metadata.csv").write_text("file_name,price\na.png,3\nb.png,4\n")
    words = ["label", "--model", str(run.output_dir), "--dataset", str(images), "--device", "cpu"]
    words += ["--attributes", "colour", "--output", str(folder / "new.parquet")]
    assert main(words) == 1
    assert "b.png" in capsys.readouterr().err
    assert main([*words, "--on_unreadable", "skip"]) == 0
    assert "1 images with no readable file: b.png" in capsys.readouterr().out
    table = pandas.read_parquet(folder / "new.parquet")
    assert table["price"].tolist() == [3, 4] and table["colour_probability"].isna().tolist() == [False, True]


@pytest.fixture(scope="module")
def cca(folder) -> Path:
    """A CCA model that was not trained, on the attributes that have one value."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    model = CCAModel.from_backbone(config, attributes={"colour": ["blue", "green", "red"], "bag": ["false", "true"]})
    model.save_pretrained(folder / "cca")
    return folder / "cca"


def test_a_head_on_cca_keeps_its_embeddings(cca, folder):
    settings = {name: value for name, value in SETTINGS.items() if name not in ("attributes", "image_size")}
    args = RecognitionArguments(
        dataset=str(folder / "people"),
        model=str(cca),
        freeze_backbone=True,
        max_steps=4,
        eval_strategy="no",
        save_strategy="no",
        output_dir=str(folder / "out-cca"),
        **settings,
    )
    run = run_training(args)
    assert [each.name for each in run.result.attributes] == ["colour", "bag"]
    before, after = load_model(cca, "cpu"), load_model(folder / "out-cca", "cpu")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(before(images).embeddings, after(images).embeddings)
    args.attributes = ["colour"]
    with pytest.raises(ValueError, match="the attributes of .* are colour, bag: leave --attributes out"):
        run_training(args)


@pytest.mark.parametrize(
    ("field", "other"), [("backbone_config", "use_local"), ("local_backbone_config", "use_global")]
)
def test_one_branch_alone(folder, field, other):
    source = {"backbone_config": VIT, "local_backbone_config": SWIN}[field]
    args = RecognitionArguments(dataset="-", output_dir=str(folder / "one"), **{field: source}, **SETTINGS)
    data = load_recognition_dataset(str(folder / "people"), ATTRIBUTES)
    model = make_recogniser(args, data).eval()
    assert not vars(model.config)[other] and not model.config.has_fusion
    assert model(torch.rand(1, 3, 32, 16)).logits.shape == (1, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give --backbone or --local_backbone, or both"),
        ({"model": "a", "backbone": "b"}, "give --backbone or --local_backbone, or both"),
        ({"backbone": "b", "backbone_config": "{}"}, r"either --backbone \(pretrained\) or --backbone_config"),
        ({"backbone": "b", "fusion": False}, "--no_fusion needs both branches"),
        ({"backbone": "b", "channel_attention": False}, "--no_channel_attention needs a local branch"),
        ({"backbone_config": VIT, "freeze_backbone": True}, "--freeze_backbone needs something that was pretrained"),
        ({"model": "a", "image_size": [32]}, "--image_size is not for --model"),
        ({"backbone": "b", "max_error": 0.0}, "max_error must be above 0 and below 1, got 0.0"),
    ],
)
def test_settings_that_do_not_fit(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        RecognitionArguments(dataset="-", output_dir=str(tmp_path), use_cpu=True, **given)


def test_a_plateau_is_one_of_the_highest_metric(tmp_path):
    settings = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": '{"patience": 2}'}
    args = RecognitionArguments(dataset="-", backbone="b", output_dir=str(tmp_path), use_cpu=True, **settings)
    assert args.lr_scheduler_kwargs == {"mode": "max", "patience": 2} and args.greater_is_better


def test_the_page_runs(run, folder, tmp_path):
    """The commands of docs/recognition.md on the model of these tests; of the training, only the flags are read."""
    shutil.copytree(folder / "people", tmp_path / "me" / "shoes")
    (tmp_path / "me" / "other-shoes").mkdir()
    make_split(9, 9, folder).remove_columns(["bag", "items"]).to_parquet(str(tmp_path / "me/other-shoes/test.parquet"))
    shutil.copytree(run.output_dir, tmp_path / "out")
    Image.new("RGB", (16, 32), COLOURS["blue"]).save(tmp_path / "shoe.jpg")
    printed, names = [], {"__name__": "page"}
    for block in code_blocks((ROOT / "docs" / "recognition.md").read_text(encoding="utf-8")):
        if block.language == "python":
            output = io.StringIO()
            with contextlib.chdir(tmp_path), contextlib.redirect_stdout(output):
                exec(compile(block.text, block.heading, "exec"), names)
            printed.append(output.getvalue())
        for words in shell_commands(block.text) if block.language == "bash" else ():
            if words[1] == "train":
                task, (args,) = read_command(words[2:])
                assert task.recipe == "cca_hf.recipes.attribute_recognition" and args.attributes == [
                    "colour",
                    "closure",
                ]
            else:
                printed.append(run_command(words, tmp_path))
    measured, elsewhere, labelled, again, in_python = printed
    assert measured.startswith("%") and elsewhere.count("\n") == 6
    assert labelled.endswith("written: labelled.csv\n") and again.endswith("written: labelled\n")
    first, *table = in_python.splitlines()
    assert first.startswith("Prediction(value=") and table[0].split()[0] == "attribute"
