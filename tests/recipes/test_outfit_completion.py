"""The recipe of outfit completion: rooms whose items are equally red, from files to a checkpoint and its card."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, ViTConfig

from cca_hf.cli.train import run_task
from cca_hf.data.outfit_loading import load_outfits
from cca_hf.evaluation.outfits import evaluate_outfits, pair_distance
from cca_hf.hub.model_card import write_model_card
from cca_hf.models.loading import load_model
from cca_hf.models.modeling_outfit import OutfitModel
from cca_hf.recipes.command_line import CommandLineError, help_text, read_command
from cca_hf.recipes.outfit_completion import OutfitArguments, OutfitRun, make_trainer, run_training
from cca_hf.training.run_record import RunRecord

CATEGORIES = ["sofa", "lamp", "rug"]


@pytest.fixture(scope="module")
def room_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`items.csv` with images, and `rooms.json`: the items of a room are equally red, and else of random colours."""
    folder, random = tmp_path_factory.mktemp("rooms"), np.random.default_rng(0)
    rows, rooms = ["file_name,id,category"], []
    for number in range(40):
        red = random.integers(20, 236)
        room = []
        for category in CATEGORIES:
            name = f"{category}-{number}"
            colour = np.array([red, *random.integers(20, 236, 2)])
            levels = (colour + random.integers(-25, 26, (24, 24, 3))).clip(0, 255)
            Image.fromarray(levels.astype(np.uint8)).save(folder / f"{name}.png")
            rows.append(f"{name}.png,{name},{category}")
            room.append(name)
        rooms.append(room)
    (folder / "items.csv").write_text("\n".join(rows), encoding="utf-8")
    splits = {"train": rooms[:24], "validation": rooms[24:32], "test": rooms[32:]}
    (folder / "rooms.json").write_text(json.dumps(splits), encoding="utf-8")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    AutoModel.from_config(ViTConfig(image_size=32, patch_size=8, **small)).save_pretrained(folder / "backbone")
    return folder


def make_args(room_data: Path, output_dir: Path, **changes) -> OutfitArguments:
    settings = {
        "items": str(room_data / "items.csv"),
        "outfits": str(room_data / "rooms.json"),
        "backbone": str(room_data / "backbone"),
        "output_dir": str(output_dir),
        "use_cpu": True,
        "disable_tqdm": True,
        "num_train_epochs": 4,
        "per_device_train_batch_size": 24,
        "head_learning_rate": 1e-2,
        "feature_dropout": 0.0,
        "logging_steps": 1,
    }
    return OutfitArguments(**(settings | changes))


@pytest.fixture(scope="module")
def run(room_data: Path, tmp_path_factory: pytest.TempPathFactory) -> OutfitRun:
    return run_training(make_args(room_data, tmp_path_factory.mktemp("outfits") / "out"))


def test_it_learns_and_selects_on_validation(run: OutfitRun) -> None:
    logs = [entry for entry in run.history if "loss" in entry]
    losses = [entry["loss"] for entry in logs]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3]) and 0 <= logs[-1]["first"] <= 1
    evaluations = [entry["eval_fill_in_the_blank"] for entry in run.history if "eval_fill_in_the_blank" in entry]
    assert len(evaluations) == 4 and max(evaluations) > 0.5
    assert run.metrics["test_fill_in_the_blank"] > 0.55 > 2 * run.metrics["test_chance_fill_in_the_blank"]


def test_the_saved_model_has_the_measured_figures(run: OutfitRun) -> None:
    model = load_model(run.output_dir, "cpu")
    assert type(model) is OutfitModel and model.config.categories == run.data.categories
    x = model.features(run.data.items["image"])
    distance = pair_distance(x, run.data.category_ids, model.all_pair_weights())
    assert evaluate_outfits(run.data, "test", distance).metrics() == pytest.approx(run.result.metrics(), abs=1e-6)
    rows, names = run.data.rows(["sofa-35", "lamp-35"]), ["sofa", "lamp"]
    candidates = run.data.rows([f"rug-{number}" for number in range(32, 40)])
    found = model.complete(x[rows], names, x[candidates], "rug", top_k=2)
    assert 3 in [each.index for each in found]  # the rug that is as red


def test_its_record_and_its_card(run: OutfitRun) -> None:
    record = RunRecord.load(run.output_dir)
    assert record.splits == {"train": 72, "validation": 24, "test": 24} and record.seconds > 0
    assert record.settings["margin"] == 0.3 and record.settings["subspaces"] == "masks"
    assert record.data["outfits"] == "rooms.json" and record.dataset == "items.csv"
    card = write_model_card(run.output_dir).read_text(encoding="utf-8")
    assert "## Outfit completion" in card and "model.complete(" in card and "CSA-Net" in card
    assert str(run.output_dir.parent) not in card and "## Attributes" not in card


def test_images_instead_of_features(room_data: Path, tmp_path: Path) -> None:
    """A backbone that learns: its batches have images, and its weights change."""
    args = make_args(room_data, tmp_path, freeze_backbone=False, max_steps=2, eval_strategy="no", save_strategy="no")
    data = load_outfits(args.items, args.outfits)
    torch.manual_seed(0)
    model = OutfitModel.from_backbone(args.backbone, data.categories)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    make_trainer(model, args, data).train()
    changed = {name for name, parameter in model.named_parameters() if not parameter.equal(before[name])}
    assert any(name.startswith("backbone.") for name in changed) and "pair_weights.masks" in changed


def test_the_command(room_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`cca train outfits` trains, and writes the checkpoint and its card."""
    flags = {"items": room_data / "items.csv", "outfits": room_data / "rooms.json", "backbone": room_data / "backbone"}
    flags |= {"output_dir": tmp_path / "out", "max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    task, arguments = read_command(["outfits", *words, "--use_cpu"])
    run_task(task, arguments)
    assert f"model card: {tmp_path / 'out' / 'README.md'}" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").exists()
    text = help_text(everything=False, task="outfits")
    assert "--num_negatives" in text and "--images_per_value" not in text and "Loss:" not in text


def test_bad_arguments(room_data: Path, run: OutfitRun, tmp_path: Path) -> None:
    with pytest.raises(CommandLineError, match="required: --outfits, --backbone"):
        read_command(["outfits", "--items", "rooms"])
    with pytest.raises(CommandLineError, match="unknown argument --attributes"):
        read_command(["outfits", "--attributes", "colour"])
    with pytest.raises(ValueError, match="margin must be above 0, got 0"):
        make_args(room_data, tmp_path, margin=0)
    with pytest.raises(ValueError, match="contains checkpoint-.* of an earlier run"):
        run_training(make_args(room_data, run.output_dir))
    other = OutfitModel.from_backbone(room_data / "backbone", ["bed"])
    with pytest.raises(
        ValueError, match=r"the model has the categories \['bed'\], the data \['lamp', 'rug', 'sofa'\]"
    ):
        make_trainer(other, make_args(room_data, tmp_path), run.data)
