"""The recipe of classification: folders of coloured images, from files to a checkpoint that a pipeline runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    BeitConfig,
    BeitForImageClassification,
    ResNetConfig,
    ViTConfig,
    pipeline,
)

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.hub.model_card import write_model_card
from cca_hf.models.images import UnreadableImageError
from cca_hf.models.modeling_crossvit import CrossViTForImageClassification
from cca_hf.models.modeling_dcal import DCALForImageClassification
from cca_hf.recipes.classification import ClassificationRun, make_trainer, run_training
from cca_hf.recipes.classification_arguments import ClassificationArguments
from cca_hf.recipes.classification_data import load_classes
from cca_hf.recipes.classifiers import make_classifier, with_image_size
from cca_hf.recipes.command_line import CommandLineError, help_text, read_command
from cca_hf.training.run_record import RunRecord

from ..pages import run_cca

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 40, 40)}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT |= {"image_size": 32, "patch_size": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`birds` has a folder for each of three colours in three splits, and `backbone` is a tiny ViT."""
    folder, random = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    for split, count in {"train": 16, "validation": 6, "test": 6}.items():
        for name, colour in COLOURS.items():
            place = folder / "birds" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                levels = (np.array(colour) + random.integers(-40, 41, (24, 24, 3))).clip(0, 255)
                Image.fromarray(levels.astype(np.uint8)).save(place / f"{number}.png")
    torch.manual_seed(0)
    AutoModel.from_config(ViTConfig(**VIT)).save_pretrained(folder / "backbone")
    return folder


def make_args(world: Path, output_dir: Path, **changes: Any) -> ClassificationArguments:
    settings: dict[str, Any] = {
        "dataset": str(world / "birds"),
        "backbone": None if "backbone_config" in changes else str(world / "backbone"),
        "output_dir": str(output_dir),
        "use_cpu": True,
        "disable_tqdm": True,
        "max_steps": 2,
        "per_device_train_batch_size": 16,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    return ClassificationArguments(**(settings | changes))


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> ClassificationRun:
    changes = {"max_steps": 12, "eval_strategy": "epoch", "save_strategy": "epoch", "learning_rate": 1e-3}
    changes |= {"head_learning_rate": 1e-2, "layer_decay": 0.8, "ema_decay": 0.5, "warmup_steps": 0}
    return run_training(make_args(world, tmp_path_factory.mktemp("classified") / "out", **changes))


def test_it_learns_and_selects_on_validation(run: ClassificationRun) -> None:
    losses = [entry["loss"] for entry in run.history if "loss" in entry]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    evaluations = [entry["eval_accuracy"] for entry in run.history if "eval_accuracy" in entry]
    assert len(evaluations) == 4 and max(evaluations) > 0.6
    assert run.metrics["test_accuracy"] == run.result.metrics()["accuracy"] > 0.6 > run.metrics["test_chance_accuracy"]
    state = json.loads((run.output_dir / "trainer_state.json").read_text(encoding="utf-8"))
    best = load_file(Path(state["best_model_checkpoint"]) / "model.safetensors")  # the average that was evaluated
    saved = load_file(run.output_dir / "model.safetensors")
    assert state["best_metric"] == max(evaluations) and all(best[name].equal(saved[name]) for name in saved)


def test_transformers_runs_it(run: ClassificationRun, world: Path) -> None:
    classify = pipeline("image-classification", model=str(run.output_dir), device="cpu")
    right = 0
    for path in sorted((world / "birds" / "test").rglob("*.png")):
        right += classify(str(path))[0]["label"] == path.parent.name
    assert right / 18 == run.metrics["test_accuracy"]
    config = (run.output_dir / "config.json").read_text(encoding="utf-8")
    assert str(world) not in config and json.loads(config)["id2label"] == {"0": "blue", "1": "green", "2": "red"}


def test_evaluate_repeats_the_figures(run: ClassificationRun, world: Path, tmp_path: Path) -> None:
    words = ["cca", "evaluate", "--model", str(run.output_dir), "--dataset", "birds", "--device", "cpu"]
    table = run_cca(words, world)
    assert table.splitlines()[0].split()[:2] == ["in", "%"] and "mean recall of the classes" in table
    metrics = json.loads(run_cca([*words, "--json", "--output_dir", str(tmp_path)], world))
    assert metrics["accuracy"] == run.metrics["test_accuracy"]
    assert metrics["nll"] == pytest.approx(run.metrics["test_nll"], abs=1e-5)
    assert json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))["split"] == "test"


def test_its_record_report_and_card(run: ClassificationRun) -> None:
    record = RunRecord.load(run.output_dir)
    assert record.splits == {"train": 48, "validation": 18, "test": 18} and record.seconds > 0
    assert record.data["label_column"] == "label" and record.settings["backbone"] == "backbone"
    assert record.settings["ema_decay"] == 0.5 and record.settings["learning_rate"] == 1e-3
    page = (run.output_dir / "report.html").read_text(encoding="utf-8")
    assert "A classifier of 3 classes (<code>ViTForImageClassification</code>)" in page
    assert page.count("<rect ") == 15 and "Accuracy on validation" in page and str(run.output_dir.parent) not in page
    card = write_model_card(run.output_dir).read_text(encoding="utf-8")
    assert "## Classification" in card and "ViTForImageClassification" in card and "type: accuracy" in card
    assert str(run.output_dir.parent) not in card and "| blue | 6 |" in card


def test_a_resumed_training_ends_with_the_same_weights(world: Path, tmp_path: Path) -> None:
    """All random changes and the average of the weights continue from a checkpoint in the middle of an epoch."""
    changes = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "warmup_steps": 0, "ema_decay": 0.9}
    changes |= {"mixup": 0.5, "cutmix": 0.5, "random_erasing": 0.5, "rand_augment": 9}
    args = make_args(world, tmp_path / "out", **changes)
    data = load_attribute_dataset(args.dataset, ["label"])

    def train(args: ClassificationArguments, resume: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        trainer = make_trainer(make_classifier(args, data.attributes["label"]), args, data)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.state_dict()

    undisturbed = train(args, False)
    shutil.copytree(tmp_path / "out" / "checkpoint-2", tmp_path / "killed" / "checkpoint-2")
    args = make_args(world, tmp_path / "killed", **changes)
    resumed = train(args, True)
    assert all(weight.equal(resumed[name]) for name, weight in undisturbed.items())
    args = make_args(world, tmp_path / "killed", **(changes | {"ema_decay": None, "max_steps": 6}))
    with pytest.raises(ValueError, match="checkpoint-4 was made with ema_decay: resume it with ema_decay"):
        train(args, True)


def test_a_linear_probe_changes_no_weight_and_no_statistics(world: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    native = AutoModel.from_config(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]))
    native.save_pretrained(tmp_path / "resnet")
    before = {name: value.clone() for name, value in native.state_dict().items()}
    for freeze in (True, False):
        args = make_args(
            world, tmp_path, backbone=str(tmp_path / "resnet"), freeze_backbone=freeze, max_steps=1, warmup_steps=0
        )
        data = load_classes(args)
        model = make_classifier(args, data.attributes["label"])
        make_trainer(model, args, data).train()
        after = model.resnet.state_dict()
        changed = {name for name, value in before.items() if not value.equal(after[name])}
        assert bool(changed) != freeze and not any("running" in name for name in changed)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_models_from_scratch(world: Path, tmp_path: Path) -> None:
    small = {"model_type": "crossvit", "hidden_sizes": [16, 16], "num_attention_heads": [2, 2], "num_layers": [1, 1]}
    small |= {"image_size": 48, "num_blocks": 1}
    args = make_args(world, tmp_path, backbone_config=json.dumps(small), image_size=[48, 24], drop_path=0.1)
    model = make_classifier(args, [*COLOURS])
    assert type(model) is CrossViTForImageClassification and model.config.image_size == [48, 24]
    assert model.config.drop_path_rate == 0.1 and model.config.num_labels == 3
    model = make_classifier(make_args(world, tmp_path, backbone_config="crossvit_tiny_240"), [*COLOURS])
    assert model.config.hidden_sizes == [96, 192] and model.image_processor.size["height"] == 240
    dinov2 = json.dumps({"model_type": "dinov2", **VIT})
    args = make_args(world, tmp_path, backbone_config=dinov2, drop_path=0.2)
    assert make_classifier(args, [*COLOURS]).config.drop_path_rate == 0.2
    with pytest.raises(ValueError, match="a backbone of type 'vit' has no drop path"):
        make_classifier(make_args(world, tmp_path, drop_path=0.2), [*COLOURS])


def test_dcal_learns_from_mixed_labels(world: Path, tmp_path: Path) -> None:
    args = make_args(world, tmp_path, dcal=True, local_share=0.3, mixup=1.0, max_steps=1, warmup_steps=0)
    data = load_classes(args)
    torch.manual_seed(0)
    model = make_classifier(args, data.attributes["label"])
    assert type(model) is DCALForImageClassification and model.config.local_share == 0.3
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = make_trainer(model, args, data)
    trainer.train()
    changed = {name for name, weight in model.named_parameters() if not weight.equal(before[name])}
    assert "loss_weights" in changed and any("backbone" in name for name in changed)
    rates = {group["initial_lr"]: len(group["params"]) for group in trainer.optimizer.param_groups}
    assert [*rates] == [1e-4, 1e-3]  # the backbone, and what is new
    args = make_args(world, tmp_path, dcal=True, local_attention=False, pairwise_attention=False)
    assert make_classifier(args, [*COLOURS]).config.branches == ("self",)


def test_other_image_sizes(world: Path, tmp_path: Path) -> None:
    """The positions of a ViT are interpolated as transformers does in a call, and the checkpoint needs no argument."""
    args = make_args(world, tmp_path, image_size=[48, 24])
    torch.manual_seed(0)
    model = make_classifier(args, [*COLOURS]).eval()
    native = AutoModelForImageClassification.from_pretrained(world / "backbone", num_labels=3).eval()
    native.classifier.load_state_dict(model.classifier.state_dict())
    images = torch.randn(2, 3, 48, 24)
    expected = native(images, interpolate_pos_encoding=True).logits
    assert torch.allclose(model(images).logits, expected, atol=1e-6)
    assert model.config.image_size == [48, 24] and model.image_processor.size["width"] == 24
    beit = BeitForImageClassification(BeitConfig(**VIT, num_labels=3, use_relative_position_bias=True))
    with pytest.raises(ValueError, match=r"image_size cannot be \[64, 64\]: the weights .*relative_position"):
        with_image_size(beit, 64, 64)


def test_the_command(world: Path, tmp_path: Path) -> None:
    flags = ["--dataset", "birds", "--backbone", "backbone", "--output_dir", str(tmp_path / "out"), "--max_steps", "1"]
    flags += ["--eval_strategy", "no", "--save_strategy", "no", "--no_local_attention", "--dcal"]
    task, (args,) = read_command(["classify", *flags, "--use_cpu"])
    assert task.recipe == "cca_hf.recipes.classification" and args.dcal and not args.local_attention
    text = help_text(everything=False, task="classify")
    assert "--label_column" in text and "--label_smoothing NUMBER" in text and "--images_per_value" not in text
    with pytest.raises(
        CommandLineError, match="unknown argument --label_smoothing_factor: did you mean --label_smoot"
    ):
        read_command(["classify", *flags, "--label_smoothing_factor", "0.1"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone_config": "{}", "backbone": "b"}, "give either --backbone"),
        ({"local_share": 0.3}, "--local_share, --no_local_attention and .* need --dcal"),
        ({"mixup": 2}, "mixup must be between 0 and 1, got 2"),
        ({"ema_decay": 1.0}, "ema_decay must be above 0 and below 1, got 1.0"),
        (
            {"freeze_backbone": True, "layer_decay": 0.5},
            "--freeze_backbone needs --backbone, a pretrained one, and no",
        ),
        ({"image_size": [1, 2, 3]}, "--image_size must be a positive number, or height and width"),
    ],
)
def test_bad_arguments(world: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_args(world, tmp_path, **changes)


def make_folder(folder: Path, counts: dict[str, int], labels: str | None = None) -> str:
    """Grey images in folders; with labels, one letter for an image, also `metadata.csv` with the column `kind`."""
    rows = ["file_name,kind"]
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), 10 * number).save(folder / name / f"{number}.png")
            rows.append(f"{name}/{number}.png,")
    if labels is not None:
        lines = [row + label for row, label in zip(rows[1:], labels, strict=True)]
        (folder / "metadata.csv").write_text("\n".join([rows[0], *lines]), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("counts", "labels", "column", "message"),
    [
        ({"train/a": 3, "train/b": 3, "test/c": 2}, None, None, "2 images of the split 'test' are of .*'c'"),
        ({"train/a": 2, "train/b": 2}, None, "lable", r"no label column 'lable' \(did you mean 'label'\?\)"),
        ({"train/a": 3}, None, None, r"There is no column 'label'; the columns are \['image'\]"),
        ({"all": 3}, "xxx", "kind", "the training images have one class, 'x' in the column 'kind'"),
        ({"all": 3}, "xyz", "kind", "all 3 classes in the column 'kind' have one training image"),
    ],
)  # fmt: skip
def test_bad_data(world, tmp_path, counts, labels, column, message) -> None:
    data = make_folder(tmp_path / "data", counts, labels)
    with pytest.raises(ValueError, match=message):
        load_classes(make_args(world, tmp_path, dataset=data, label_column=column))


def test_rare_classes_and_unreadable_images(world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The only column whose values repeat has the classes; a class of one image may leave the training images."""
    folder = make_folder(tmp_path / "data", {"all": 11}, "xxxxxyyyyyz")
    rare = []
    for seed in (0, 1):
        data = load_classes(make_args(world, tmp_path, dataset=folder, split_seed=seed))
        rare.append(data.labels("train").max())
    assert rare == [2, 2] or "the model cannot learn them: 'z'" in caplog.text
    (tmp_path / "data" / "all" / "3.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match="1 unreadable image"):
        load_classes(make_args(world, tmp_path, dataset=folder))
    data = load_classes(make_args(world, tmp_path, dataset=folder, on_unreadable="skip"))
    assert sum(rows.num_rows for rows in data.splits.values()) == 10 and list(data.attributes) == ["kind"]
