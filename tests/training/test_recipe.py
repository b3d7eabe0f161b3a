"""The main job: `run_training`, and `scripts/train.py` in a process of its own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig

from cca_hf.data.shapes import generate_shapes_dataset
from cca_hf.evaluation.entanglement.evaluator import measure_entanglement
from cca_hf.evaluation.entanglement.result import EntanglementResult
from cca_hf.evaluation.retrieval.evaluator import RetrievalEvaluator
from cca_hf.models.images import UnreadableImageError
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.recipes.attribute_retrieval import DataArguments, ModelArguments, run_training

from .conftest import EPOCH, TINY_VIT

VIT = json.dumps({"model_type": "vit", **TINY_VIT})


def test_it_trains_measures_once_and_saves_everything(make_args, shapes_folder, tmp_path, shapes, capsys, caplog):
    data_args = DataArguments(str(shapes_folder), ["shape", "colour"])
    run = run_training(ModelArguments(backbone_config=VIT), data_args, make_args(num_train_epochs=2))

    saved = CCAModel.from_pretrained(tmp_path / "out")
    assert saved.config.attributes == ["shape", "colour"]
    assert saved.config.attribute_values["colour"] == shapes.attributes["colour"]
    best = CCAModel.from_pretrained(run_state(tmp_path)["best_model_checkpoint"])
    trained = {name: weight for name, weight in saved.state_dict().items() if not name.startswith("prototypes.")}
    assert all(weight.equal(best.state_dict()[name]) for name, weight in trained.items())
    assert list(saved.value_prototypes("shape")) == run.data.values_in("train")["shape"]

    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    for measure in ("map", "map_weighted", "map_macro", "map_shape", "map_colour", "map_macro_colour", "recall@1"):
        assert 0 < results[f"test_{measure}"] <= 1
        assert 0 < results[f"test_chance_{measure}"] < 1
    assert results["test_map"] == pytest.approx((results["test_map_shape"] + results["test_map_colour"]) / 2)
    assert results["test_map"] == run.metrics["test_map"] == run.result.metrics()["map"]
    assert [results["test_map_interval_low"], results["test_map_interval_high"]] == list(run.result.map_interval)
    assert results["train_runtime"] > 0
    assert sum("test_map" in entry for entry in run.history) == 1

    embeddings = saved.encode(shapes["test"]["image"])
    assert np.linalg.norm(embeddings, axis=-1) == pytest.approx(1, abs=1e-5)
    assert json.loads((tmp_path / "out" / "test_evaluation.json").read_text())["metrics"] == run.result.metrics()
    printed = capsys.readouterr().out
    assert run.result.table() in printed

    assert run.entanglement is None and not (tmp_path / "out" / "test_entanglement.json").exists()
    reason = "it needs 200 images that are labelled with two attributes, with at least 10 of a value, and there are "
    assert caplog.text.count(f"The entanglement of the test split is not measured: {reason}") == 1


@pytest.mark.parametrize("case", ["bfloat16", "kept features"])
def test_the_final_figures_are_those_of_the_saved_checkpoint(case, make_args, shapes_folder, tmp_path):
    """They are computed from the images in the precision that is saved, whatever the training computed in."""
    changes = {"bf16": True}
    if case == "kept features":
        changes |= {"freeze_backbone": True, "cache_tokens": str(tmp_path / "cache"), "cache_dtype": "bfloat16"}
    args = make_args(num_train_epochs=2, head_learning_rate=3e-3, **changes)
    run = run_training(ModelArguments(backbone_config=VIT, image_size=24), DataArguments(str(shapes_folder)), args)
    expected = RetrievalEvaluator(run.data, "test")(CCAModel.from_pretrained(tmp_path / "out")).metrics()
    assert run.result.metrics() == pytest.approx(expected, abs=1e-6)
    assert {name: run.metrics[f"test_{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert RetrievalEvaluator(run.data, "test")(run.model).metrics() == pytest.approx(expected, abs=1e-6)


def test_the_entanglement_of_the_test_split(make_args, tmp_path, monkeypatch, capsys):
    """From the one pass that measures the retrieval, with the figures of `cca evaluate --entanglement`."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    for split, dataset in generate_shapes_dataset(num_images=1010, image_size=32, seed=0).items():
        rows = range(202) if split == "test" else range(64)
        dataset.select(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    two = DataArguments(str(folder), ["size", "background"])
    passes = []
    features = CCAModel.get_backbone_features
    monkeypatch.setattr(
        CCAModel,
        "get_backbone_features",
        lambda model, pixels: passes.append(len(pixels)) or features(model, pixels),
    )
    args = make_args(max_steps=1, eval_strategy="no", save_strategy="no")
    run = run_training(ModelArguments(backbone_config=VIT), two, args)
    assert sum(passes) == 202
    assert run.entanglement.images == 202 and list(run.entanglement.readers) == ["linear", "neighbours"]
    expected = measure_entanglement(CCAModel.from_pretrained(tmp_path / "out"), run.data, "test")
    np.testing.assert_equal(run.entanglement.to_dict(), expected.to_dict())
    assert EntanglementResult.load_json(tmp_path / "out" / "test_entanglement.json").metrics() == expected.metrics()
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    for name in ("entanglement", "entanglement_neighbours", "informativeness"):
        assert results[f"test_{name}"] == expected.metrics()[name]
    assert f"linear: entanglement {expected.score:.3f} (" in capsys.readouterr().out
    retrieval = RetrievalEvaluator(run.data, "test")(CCAModel.from_pretrained(tmp_path / "out"))
    assert run.result.metrics() == pytest.approx(retrieval.metrics(), abs=1e-6)

    off = make_args(output_dir=str(tmp_path / "off"), max_steps=1, eval_strategy="no", measure_entanglement=False)
    (tmp_path / "off").mkdir()
    for name in ("test_entanglement.json", "test_entanglement.png"):
        (tmp_path / "off" / name).touch()
    assert run_training(ModelArguments(backbone_config=VIT), two, off).entanglement is None
    assert not [*(tmp_path / "off").glob("*entanglement*")]  # those of an earlier training


def run_state(tmp_path) -> dict:
    return json.loads((tmp_path / "out" / "trainer_state.json").read_text())


def test_it_goes_on_where_it_stopped_and_never_over_another_run(make_args, shapes_folder, tmp_path, caplog):
    data_args = DataArguments(str(shapes_folder), ["shape", "colour"])
    model_args = ModelArguments(backbone_config=VIT)
    run_training(model_args, data_args, make_args(resume_from_checkpoint="last"))
    assert "training starts at the beginning" in caplog.text
    with pytest.raises(ValueError, match=f"contains checkpoint-{EPOCH} of an earlier run"):
        run_training(model_args, data_args, make_args())
    more = run_training(model_args, data_args, make_args(num_train_epochs=2, resume_from_checkpoint="last"))
    steps = [entry["step"] for entry in more.history if "loss" in entry]
    assert steps == list(range(1, 2 * EPOCH + 1))


def test_the_single_space_gives_one_embedding_for_all(make_args, shapes_folder, tmp_path):
    model_args = ModelArguments(backbone_config=VIT, condition_embedding="none")
    run = run_training(model_args, DataArguments(str(shapes_folder)), make_args(max_steps=2))
    embeddings = run.model.encode(run.data["test"]["image"][:4])
    assert np.abs(embeddings - embeddings[:, :1]).max() < 1e-6


def test_a_backbone_on_disk_and_its_configuration(make_args, shapes_folder, tmp_path, shapes):
    from transformers import ViTModel

    torch.manual_seed(1)
    backbone = ViTModel(ViTConfig(**TINY_VIT))
    backbone.save_pretrained(tmp_path / "vit")
    still = {"learning_rate": 0.0, "head_learning_rate": 0.0, "max_steps": 1}
    data_args = DataArguments(str(shapes_folder))
    run = run_training(ModelArguments(backbone=str(tmp_path / "vit")), data_args, make_args(**still))
    patches = "embeddings.patch_embeddings.projection.weight"
    assert run.model.backbone.state_dict()[patches].equal(backbone.state_dict()[patches])

    from_file = ModelArguments(backbone_config=str(tmp_path / "vit" / "config.json"), image_size=48, embedding_dim=8)
    args = make_args(output_dir=str(tmp_path / "scratch"), max_steps=1)
    fresh = run_training(from_file, data_args, args).model
    assert not fresh.backbone.state_dict()[patches].equal(backbone.state_dict()[patches])
    assert fresh.config.image_size == 48 and fresh.config.embedding_dim == 8
    args = make_args(output_dir=str(tmp_path / "new"))
    with pytest.raises(ValueError, match="such as vit; got 'vitt'"):
        run_training(ModelArguments(backbone_config='{"model_type": "vitt"}'), data_args, args)


def test_bad_input_is_found_before_training(make_args, tmp_path):
    model_args, args = ModelArguments(backbone_config=VIT), make_args()
    with pytest.raises(FileNotFoundError, match="no_such_folder"):
        run_training(model_args, DataArguments(str(tmp_path / "no_such_folder")), args)

    folder = tmp_path / "pictures" / "train"
    folder.mkdir(parents=True)
    rows = []
    for row in range(60):
        Image.new("RGB", (32, 32), (4 * row, 0, 0)).save(folder / f"{row}.png")
        labels = {"colour": "red" if row % 2 else "blue", "shape": "round" if row % 3 else "square"}
        rows.append(json.dumps({"file_name": f"{row}.png", **labels}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match="color.*colour"):
        run_training(model_args, DataArguments(str(tmp_path / "pictures"), ["color", "shape"]), args)

    broken = folder / "7.png"
    broken.write_bytes(broken.read_bytes()[:60])
    data_args = DataArguments(str(tmp_path / "pictures"), ["colour", "shape"])
    with pytest.raises(UnreadableImageError, match="7.png"):
        run_training(model_args, data_args, args)
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    data_args.on_unreadable = "skip"
    run = run_training(model_args, data_args, make_args(per_device_train_batch_size=8))
    assert sum(dataset.num_rows for dataset in run.data.splits.values()) == 59


def test_the_script_under_accelerate(run_python, shapes_folder, tmp_path, repository):
    """Settings in a file, a flag that changes one of them, and the page to look at."""
    settings = tmp_path / "settings.json"
    settings.write_text(
        json.dumps(
            {
                "dataset": str(shapes_folder),
                "attributes": ["shape", "colour", "background"],
                "backbone_config": {"model_type": "vit", **TINY_VIT},
                "output_dir": str(tmp_path / "elsewhere"),
                "per_device_train_batch_size": 16,
                "images_per_value": 2,
                "num_train_epochs": 1,
                "use_cpu": True,
                "cpu_threads": 1,
            }
        )
    )
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    done = run_python(*launch, repository / "scripts" / "train.py", settings, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "elsewhere").exists()
    assert "query-weighted" in done.stdout
    assert f"report: {tmp_path / 'out' / 'report.html'}" in done.stdout and (tmp_path / "out" / "report.html").exists()
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert {"test_map", "test_chance_map", "test_map_background", "train_runtime"} <= results.keys()
    assert CCAModel.from_pretrained(tmp_path / "out").config.attributes == ["shape", "colour", "background"]
