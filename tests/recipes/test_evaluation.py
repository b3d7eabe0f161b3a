"""Evaluation of a checkpoint on the data set of its training: never on images that it was trained on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Image, concatenate_datasets
from PIL import Image as PILImage

from cca_hf.cli.main import main
from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.shapes import generate_shapes_dataset
from cca_hf.evaluation import EvaluationResult, RetrievalEvaluator
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.recipes.attribute_retrieval import DataArguments, ModelArguments, TrainingRun, run_training
from cca_hf.recipes.evaluation import load_evaluation_data
from cca_hf.training.arguments import CCATrainingArguments
from cca_hf.training.run_record import RunRecord, rows_digest

VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
ATTRIBUTES = ["shape", "colour"]


@pytest.fixture(scope="module")
def images() -> Dataset:
    """150 images in groups of three, in an order in which seeds and groups decide the splits."""
    splits = generate_shapes_dataset(num_images=150, image_size=32, seed=0)
    whole = concatenate_datasets(list(splits.values()))
    return whole.add_column("item", [f"item {row // 3}" for row in range(150)])


@pytest.fixture(scope="module")
def catalogue(images, tmp_path_factory) -> Path:
    """A data set without splits."""
    folder = tmp_path_factory.mktemp("data") / "catalogue"
    folder.mkdir()
    images.to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


def train(dataset: Path, output_dir: Path, **data: object) -> TrainingRun:
    args = CCATrainingArguments(
        output_dir=str(output_dir),
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        per_device_train_batch_size=16,
        images_per_value=2,
        report_to="none",
    )
    data_args = DataArguments(str(dataset), ATTRIBUTES, **data)
    return run_training(ModelArguments(backbone_config=json.dumps(VIT)), data_args, args)


@pytest.fixture(scope="module")
def run(catalogue, tmp_path_factory) -> TrainingRun:
    return train(catalogue, tmp_path_factory.mktemp("run") / "out", group_column="item", split_seed=3)


def evaluate(model: Path, dataset: Path, *words: object) -> int:
    return main(["evaluate", "--model", str(model), "--dataset", str(dataset), "--json", *map(str, words)])


def figures(capsys, model: Path, dataset: Path, *words: object) -> dict[str, float]:
    capsys.readouterr()
    assert evaluate(model, dataset, *words) == 0
    return json.loads(capsys.readouterr().out)


def saved_figures(run: TrainingRun) -> dict[str, float]:
    result = EvaluationResult.load_json(run.output_dir / "test_evaluation.json")
    return result.intervals() | result.metrics()


def pixels(dataset: Dataset) -> list[bytes]:
    return [image["bytes"] for image in dataset["image"]]


@pytest.mark.parametrize("checkpoint", ["", "checkpoint-1", "checkpoint-2"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_splits_are_those_of_the_training(run, catalogue, checkpoint, split):
    data = load_evaluation_data(str(catalogue), ATTRIBUTES, split, str(run.output_dir / checkpoint))
    assert pixels(data.splits[split]) == pixels(run.data.splits[split])
    assert data.group_column == "item" and data.attributes == run.data.attributes


@pytest.mark.parametrize("split", ["valid", "val", "dev"])
def test_other_names_of_the_validation_split(run, catalogue, capsys, split):
    measured = figures(capsys, run.output_dir, catalogue, "--split", split)
    assert measured == figures(capsys, run.output_dir, catalogue, "--split", "validation")


def test_the_figures_are_those_of_the_training(run, catalogue, capsys):
    assert figures(capsys, run.output_dir, catalogue) == pytest.approx(saved_figures(run), abs=1e-6)


@pytest.mark.parametrize("data", [{"split_seed": 5}, {"group_column": "item"}, {}])
def test_no_test_image_was_trained_on(catalogue, tmp_path, capsys, data):
    """With groups or a seed, 21 to 23 of 30 test images were."""
    run = train(catalogue, tmp_path / "out", **data)
    evaluated = load_evaluation_data(str(catalogue), ATTRIBUTES, "test", str(run.output_dir)).splits["test"]
    assert not {*pixels(evaluated)} & {*pixels(run.data.splits["train"]), *pixels(run.data.splits["validation"])}
    assert figures(capsys, run.output_dir, catalogue) == pytest.approx(saved_figures(run), abs=1e-6)


def test_a_data_set_that_moved_is_the_same(run, catalogue, tmp_path, capsys):
    moved = shutil.copytree(catalogue, tmp_path / "elsewhere" / "catalogue")
    assert figures(capsys, run.output_dir, moved) == pytest.approx(saved_figures(run), abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split_seed", 4], "was trained with --split_seed 3, which decides which images its 'test' split contains"),
        (["--group_column", "colour"], "was trained with --group_column item, which"),
        (["--split", "train", "--split-seed", 0], "which images its 'train' split contains; with --split_seed 0"),
    ],
)  # fmt: skip
def test_flags_that_contradict_the_training(run, catalogue, capsys, words, message):
    assert evaluate(run.output_dir, catalogue, *words) == 1
    assert message in capsys.readouterr().err
    assert evaluate(run.output_dir, catalogue, "--split_seed", 3, "--group_column", "item") == 0


def test_a_data_set_that_changed(run, images, tmp_path, capsys):
    (tmp_path / "catalogue").mkdir()
    images.select(range(147)).to_parquet(tmp_path / "catalogue" / "train.parquet")
    assert evaluate(run.output_dir, tmp_path / "catalogue") == 1
    assert f"{tmp_path / 'catalogue'} has changed since" in capsys.readouterr().err


@pytest.mark.parametrize("record", ["none", "of version 0.1", "of another data set"])
def test_a_training_that_is_not_known(run, catalogue, tmp_path, capsys, record):
    """Its splits may be others; whoever knows them says how they were cut."""
    model = shutil.copytree(run.output_dir, tmp_path / "out", ignore=shutil.ignore_patterns("checkpoint-*"))
    content = json.loads((model / "run.json").read_text())
    if record == "none":
        (model / "run.json").unlink()
    elif record == "of version 0.1":
        del content["data"]
        (model / "run.json").write_text(json.dumps(content))
        assert RunRecord.load(model).data == {}
    else:
        (model / "run.json").write_text(json.dumps({**content, "dataset": "me/shoes", "dataset_on_hub": True}))
    assert evaluate(model, catalogue) == 1
    message = capsys.readouterr().err
    assert "has no 'test' split" in message and "repeat the --split_seed (0 unless it was given)" in message
    repeated = figures(capsys, model, catalogue, "--split_seed", 3, "--group_column", "item")
    assert repeated == pytest.approx(saved_figures(run), abs=1e-6)
    data = load_evaluation_data(str(catalogue), ATTRIBUTES, "train", str(model))
    assert len(data["train"]) == 150  # nothing is cut


def test_a_split_of_the_source_is_used_as_it_is(images, tmp_path, capsys):
    """With the group column of the training, so that the figures are the same, unless another is given."""
    (tmp_path / "shoes").mkdir()
    for split, rows in (("train", range(90)), ("validation", range(90, 120)), ("test", range(120, 150))):
        images.select(rows).to_parquet(tmp_path / "shoes" / f"{split}.parquet")
    run = train(tmp_path / "shoes", tmp_path / "out", group_column="item")
    assert RunRecord.load(run.output_dir).data["cut_splits"] == {}
    model = CCAModel.from_pretrained(run.output_dir)
    for words, groups in (([], "item"), (["--group_column", "size"], "size")):
        metrics = figures(capsys, run.output_dir, tmp_path / "shoes", *words)
        data = load_attribute_dataset(tmp_path / "shoes", ATTRIBUTES, group_column=groups)
        expected = RetrievalEvaluator(data, "test")(model)
        assert metrics == pytest.approx(expected.intervals() | expected.metrics(), abs=1e-6)
    shutil.rmtree(tmp_path / "shoes")
    (tmp_path / "shoes").mkdir()
    images.remove_columns("item").to_parquet(tmp_path / "shoes" / "test.parquet")
    data = load_evaluation_data(str(tmp_path / "shoes"), ATTRIBUTES, "test", str(run.output_dir))
    assert data.group_column is None and len(data["test"]) == 150  # another data set of the same name


def test_files_and_images_that_were_skipped(tmp_path, images):
    folder = tmp_path / "files"
    (folder / "train").mkdir(parents=True)
    rows = []
    for row in range(120):
        noise = np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        PILImage.fromarray(noise).save(folder / "train" / f"{row}.png")
        labels = {"shape": "round" if row % 2 else "square", "colour": ["red", "green", "blue"][row % 3]}
        rows.append(json.dumps({"file_name": f"{row}.png", **labels}))
    (folder / "train" / "metadata.jsonl").write_text("\n".join(rows))
    for row in range(0, 120, 4):
        (folder / "train" / f"{row}.png").write_bytes(b"no image")
    run = train(folder, tmp_path / "out", on_unreadable="skip")
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "files")
    data = load_evaluation_data(str(moved), ATTRIBUTES, "test", str(run.output_dir))
    names = [Path(image["path"]).name for image in data.splits["test"]["image"]]
    assert names == [Path(image["path"]).name for image in run.data.splits["test"]["image"]]
    assert all(int(Path(name).stem) % 4 for name in names)


def test_the_record_is_written_before_the_training_ends(catalogue, tmp_path, monkeypatch):
    """An interrupted training leaves checkpoints, which can be evaluated."""
    from cca_hf.recipes.attribute_trainer import CCATrainer

    def interrupted(self, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(CCATrainer, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(catalogue, tmp_path / "out", split_seed=7)
    record = RunRecord.load(tmp_path / "out")
    assert record.data["split_seed"] == 7 and set(record.data["cut_splits"]) == {"train", "validation", "test"}
    assert record.seconds == 0 and record.confusions == {}


def test_the_digest_sees_images_and_their_order(images, tmp_path):
    digest = rows_digest(images.select(range(10)))
    assert digest == rows_digest(images.select(range(10))) and len(digest) == 32
    assert digest != rows_digest(images.select(range(1, 11)))
    assert digest != rows_digest(images.select(range(9, -1, -1)))
    paths = [str(tmp_path / folder / f"{row}.png") for folder in "ab" for row in range(3)]
    files = Dataset.from_dict({"image": paths}).cast_column("image", Image())
    assert rows_digest(files.select([0, 1])) != rows_digest(files.select([3, 4]))
