"""The recipe of re-identification: drawn persons before two cameras, from files to a checkpoint and its result."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, ViTConfig, ViTImageProcessor

from cca_hf.data.reidentification import SearchImages
from cca_hf.evaluation.reidentification import score_search
from cca_hf.evaluation.reidentification_result import ReidentificationResult
from cca_hf.evaluation.results import load_result
from cca_hf.hub.model_card import write_model_card
from cca_hf.models.image_embedder import ImageEmbedder
from cca_hf.models.modeling_dcal import DCALModel
from cca_hf.recipes.command_line import CommandLineError, help_text, read_command
from cca_hf.recipes.reidentification import ReidentificationRun, load_data, make_model, make_trainer, run_training
from cca_hf.recipes.reidentification_arguments import ReidentificationArguments
from cca_hf.recipes.reidentification_evaluation import evaluate_reidentifier
from cca_hf.training.run_record import RunRecord

from ..pages import run_cca, run_page

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def draw(colours: np.ndarray, camera: int, random: np.random.Generator) -> Image.Image:
    """A person in two colours; the second camera is darker."""
    levels = np.full((24, 12, 3), 128.0)
    levels[2:12, 3:9], levels[12:22, 3:9] = colours
    levels = levels * (1 - 0.2 * camera) + random.normal(0, 8, levels.shape)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def persons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of 20 training, 8 validation and 8 test persons, with an image by each camera twice; and a backbone."""
    folder, random = tmp_path_factory.mktemp("persons"), np.random.default_rng(0)
    for split, count in (("train", 20), ("validation", 8), ("test", 8)):
        (folder / "images" / split).mkdir(parents=True)
        rows = ["file_name,person,camera"]
        for number in range(count):
            colours = random.integers(20, 236, (2, 1, 1, 3))
            for place in range(1 if (split, number) == ("train", 0) else 4):
                name = f"{split}/{number}-{place}.png"
                draw(colours, place // 2, random).save(folder / "images" / name)
                rows.append(f"{number}-{place}.png,{split}-{number},cam{place // 2}")
        (folder / "images" / split / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    torch.manual_seed(0)
    config = ViTConfig(image_size=16, patch_size=4, **SMALL)
    AutoModel.from_config(config, add_pooling_layer=False).save_pretrained(folder / "backbone")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "backbone")
    return folder


def make_args(persons: Path, output_dir: Path, **changes) -> ReidentificationArguments:
    settings = {
        "dataset": str(persons / "images"),
        "identity_column": "person",
        "backbone": str(persons / "backbone"),
        "image_size": [16, 8],
        "padding": 1,
        "output_dir": str(output_dir),
        "use_cpu": True,
        "disable_tqdm": True,
        "num_train_epochs": 4,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
        "logging_steps": 1,
    }
    return ReidentificationArguments(**(settings | changes))


@pytest.fixture(scope="module")
def run(persons: Path, tmp_path_factory: pytest.TempPathFactory) -> ReidentificationRun:
    return run_training(make_args(persons, tmp_path_factory.mktemp("reid") / "out"))


def test_it_learns_and_selects_on_validation(run: ReidentificationRun) -> None:
    losses = [entry["loss"] for entry in run.history if "loss" in entry]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert {"identity_loss", "triplet_loss", "positive_distance"} <= run.history[0].keys()
    assert len([entry for entry in run.history if "eval_map" in entry]) == 4
    assert run.metrics["test_map"] > 1.5 * run.metrics["test_chance_map"]
    assert (run.result.queries, run.result.gallery, run.result.distractors) == (16, 16, 0)


def test_the_checkpoint_has_the_measured_figures(run: ReidentificationRun) -> None:
    """A plain ViT for rectangles, without a pooler and without neck and classifier."""
    embedder = ImageEmbedder.from_pretrained(run.output_dir, "cpu")
    assert type(embedder.model).__name__ == "ViTModel" and embedder.model.config.image_size == [16, 8]
    images = SearchImages(run.data, "test")
    embeddings = embedder.encode(run.data.images["test"]["image"])
    assert embeddings.shape == (32, 16) and images.search.rows["test"].tolist() == [*range(32)]
    assert score_search(images, embeddings).metrics() == pytest.approx(run.result.metrics(), abs=1e-6)
    saved = load_result(run.output_dir / "test_evaluation.json", ReidentificationResult)
    assert saved.metrics() == pytest.approx(run.result.metrics())


def test_its_record(run: ReidentificationRun) -> None:
    record = RunRecord.load(run.output_dir)
    assert record.splits == {"train": 77, "validation": 32, "test": 32} and record.seconds > 0
    assert record.settings["images_per_identity"] == 4 and record.settings["backbone"] == "backbone"
    assert record.data["camera_column"] == "camera" and record.data["group_column"] == "person"
    card = write_model_card(run.output_dir).read_text(encoding="utf-8")
    assert "## Re-identification" in card and "| mAP |" in card and "ImageEmbedder" in card
    assert str(run.output_dir.parent) not in (run.output_dir / "run.json").read_text() + card


def test_dcal_learns_all_branches(persons: Path, tmp_path: Path) -> None:
    """One step changes the backbone, GLCA and the heads; the embedding is that of both class tokens."""
    config = '{"model_type": "vit", "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, '
    config += '"num_attention_heads": 2, "intermediate_size": 16}'
    off = {"eval_strategy": "no", "save_strategy": "no", "max_steps": 1, "warmup_steps": 0}
    args = make_args(
        persons,
        tmp_path,
        backbone=None,
        backbone_config=config,
        dcal=True,
        random_erasing=0,
        min_images_per_identity=2,
        **off,
    )
    data, model = load_data(args), make_model(args)
    assert type(model) is DCALModel and model.config.local_share == 0.3 and data.images["train"].num_rows == 76
    trainer = make_trainer(model, args, data)
    heads = trainer.loss.heads
    assert heads.head_of_branch == [0, 1, 0] and tuple(heads.classifiers.shape) == (2, 19, 16)
    assert trainer.learning_rates["local_layer.mlp.fc1.weight"] == args.head_learning_rate
    before = {name: value.clone() for name, value in [*model.named_parameters(), *heads.named_parameters()]}
    trainer.train()
    for name, value in [*model.named_parameters(), *heads.named_parameters()]:
        assert name.endswith("key.bias") or not value.equal(before[name]), name
    metrics = trainer.evaluate("test")
    assert 0 < metrics["eval_map"] <= 1 and metrics["eval_minp"] > 0


def test_the_command_and_its_flags(persons: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dataset", "persons", "--backbone", "vit", "--identity_column", "person", "--image_size", "128", "64"]
    task, (args,) = read_command(["reidentify", *words])
    assert task.recipe == "cca_hf.recipes.reidentification" and args.height_and_width == [128, 64]
    text = help_text(everything=False, task="reidentify")
    assert "--camera_column TEXT" in text and "--label_smoothing_factor" not in text and "Loss:" not in text
    with pytest.raises(CommandLineError, match="unknown argument --identity_colum: did you mean --identity_column"):
        read_command(["reidentify", "--identity_colum", "person"])


def test_bad_arguments(persons: Path, run: ReidentificationRun, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give either --backbone"):
        make_args(persons, tmp_path, backbone=None)
    with pytest.raises(ValueError, match="need --dcal"):
        make_args(persons, tmp_path, local_share=0.1)
    with pytest.raises(ValueError, match="random_erasing must be between 0 and 1, got 2"):
        make_args(persons, tmp_path, random_erasing=2)
    with pytest.raises(ValueError, match="contains checkpoint-.* of an earlier run"):
        run_training(make_args(persons, run.output_dir))
    with pytest.raises(ValueError, match=r"no camera column 'cam' \(did you mean 'camera'\?\)"):
        load_data(make_args(persons, tmp_path, camera_column="cam"))
    with pytest.raises(ValueError, match="no training identity has 5 images; the most is 4"):
        load_data(make_args(persons, tmp_path, min_images_per_identity=5))


def test_the_command_evaluate(persons: Path, run: ReidentificationRun, tmp_path: Path) -> None:
    """The columns are those of the training; a model that was not trained here needs them."""
    words = ["cca", "evaluate", "--model", str(run.output_dir), "--dataset", str(persons / "images")]
    found = json.loads(run_cca([*words, "--output_dir", str(tmp_path), "--json"], tmp_path))
    assert found == pytest.approx(run.result.intervals() | run.result.metrics(), abs=1e-6)
    assert load_result(tmp_path / "evaluation.json", ReidentificationResult).queries == 16
    embedder = ImageEmbedder.from_pretrained(persons / "backbone", "cpu")
    with pytest.raises(ValueError, match="was not trained by 'cca train reidentify'.*Give --attribute"):
        evaluate_reidentifier(embedder, str(persons / "backbone"), str(persons / "images"))
    columns = {"identity_column": "person", "camera_column": "camera"}
    other = evaluate_reidentifier(embedder, str(persons / "backbone"), str(persons / "images"), **columns)
    assert other.queries == 16 and other.figures["map"] > 0


def test_the_page(persons: Path, tmp_path: Path) -> None:
    """Its data set and its backbone are folders."""
    (tmp_path / "google").mkdir()
    (tmp_path / "persons").symlink_to(persons / "images")
    (tmp_path / "google" / "vit-base-patch16-224-in21k").symlink_to(persons / "backbone")
    loaded, evaluated = run_page("docs/reidentification.md", tmp_path)
    assert loaded.printed == "16 queries, 16 images in the gallery\n"
    assert "16 queries of 8 identities in a gallery of 16 images, 0 of them distractors." in evaluated.printed
