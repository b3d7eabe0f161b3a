"""The three stages of ADDE: what each learns, and how a training continues after an interruption."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
from datasets import DatasetDict
from transformers import ViTConfig

from cca_hf.evaluation.manipulation import ManipulationEvaluator
from cca_hf.models.modeling_adde import ADDEModel
from cca_hf.recipes.manipulation_trainer import ADDETrainer, ManipulationArguments

from .conftest import TINY_VIT, child_environment
from .processes.manipulation import Steps, make_trainer

ENCODER = [f"encoder/{step}" for step in range(1, 7)]
JOINT = [f"out/{step}" for step in range(1, 7)]


@pytest.fixture(scope="module")
def undisturbed(shapes_folder, tmp_path_factory):
    """A complete training, and its steps."""
    steps = Steps()
    trainer = make_trainer(shapes_folder, tmp_path_factory.mktemp("undisturbed") / "out", steps)
    outcome = trainer.train()
    return trainer, steps.done, outcome


def assert_same_weights(trainer: ADDETrainer, other: ADDETrainer) -> None:
    weights = other.model.state_dict()
    assert all(weight.equal(weights[name]) for name, weight in trainer.model.state_dict().items())


def test_three_stages(undisturbed):
    trainer, steps, outcome = undisturbed
    assert steps == [*ENCODER, *JOINT]
    folder = trainer.args.output_dir
    first = json.loads(open(f"{folder}/encoder/trainer_state.json").read())
    assert first["best_metric"] == max(e["eval_map"] for e in first["log_history"] if "eval_map" in e)
    (of_first, of_last) = (
        {name for entry in history for name in entry if name.startswith("loss_")}
        for history in (first["log_history"], trainer.state.log_history)
    )
    assert of_first == {"loss_classification", "loss_size", "loss_background", "loss_whole"}
    assert of_last == of_first | {"loss_compositional", "loss_consistency", "loss_memory"}
    evaluated = [entry["eval_ndcg"] for entry in trainer.state.log_history if "eval_ndcg" in entry]
    assert len(evaluated) == 3 and trainer.state.best_metric == max(evaluated)
    alone = json.loads(open(f"{folder}/encoder/all_results.json").read())["train_runtime"]
    assert outcome.metrics["train_runtime"] > alone > 0


def test_the_figures_of_validation_are_those_of_the_evaluator(undisturbed):
    trainer = undisturbed[0]
    metrics = trainer.evaluate()
    expected = ManipulationEvaluator(trainer.data, "validation", num_changes=(1, 2))(trainer.model).metrics()
    for name in ("ndcg", "ndcg_target", "top_10", "ndcg_1_change", "chance_ndcg"):
        assert metrics[f"eval_{name}"] == pytest.approx(expected[name], abs=1e-6)


def test_the_second_stage_takes_means_of_training_images(undisturbed):
    trainer = undisturbed[0]
    folder = trainer.args.output_dir
    encoder = ADDEModel.from_pretrained(f"{folder}/encoder")
    assert not encoder.has_prototypes
    labels = trainer.data.labels("train")
    embeddings = encoder.encode(trainer.data["train"]["image"])
    again = make_trainer_like(trainer, encoder, images_per_prototype=10_000)
    again.set_prototypes()
    for place, (name, values) in enumerate(trainer.data.attributes.items()):
        prototypes = encoder.value_prototypes(name)
        assert list(prototypes) == values
        for value, vector in enumerate(prototypes.values()):
            mean = embeddings[labels[:, place] == value, place].mean(axis=0)
            np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def make_trainer_like(trainer: ADDETrainer, model: ADDEModel, **changes) -> ADDETrainer:
    settings = {"output_dir": trainer.args.output_dir, "use_cpu": True, "bf16": False, "disable_tqdm": True}
    settings |= {"per_device_train_batch_size": 16, "images_per_value": 2, "eval_strategy": "no"}
    return ADDETrainer(model, ManipulationArguments(**(settings | changes)), trainer.data)


def test_killed_in_the_last_stage(undisturbed, shapes_folder, tmp_path, repository, warm_python):
    """In another process; the resumed training does not repeat the first stage, and ends with the same weights."""
    script = repository / "tests" / "training" / "processes" / "manipulation.py"
    command = [script, shapes_folder, tmp_path / "out", "--die-at", "out/3"]
    killed = warm_python.run(*command, env=child_environment(repository))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    steps = Steps()
    trainer = make_trainer(shapes_folder, tmp_path / "out", steps, resume_from_checkpoint="last")
    trainer.train()
    assert steps.done == JOINT[2:]
    assert_same_weights(trainer, undisturbed[0])


@pytest.mark.parametrize("stage", ["encoder/3", "second"])
def test_interrupted_before_the_last_stage(stage, undisturbed, shapes_folder, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if stage == "second":
            patched.setattr(ADDETrainer, "set_prototypes", stop)
        else:
            patched.setattr("os.kill", stop)
        with pytest.raises(KeyboardInterrupt):
            make_trainer(shapes_folder, tmp_path / "out", Steps(stage)).train()
    steps = Steps()
    trainer = make_trainer(shapes_folder, tmp_path / "out", steps)
    trainer.train(resume_from_checkpoint="last")
    assert steps.done == ([] if stage == "second" else ENCODER[2:]) + JOINT
    assert_same_weights(trainer, undisturbed[0])


def test_a_checkpoint_of_the_first_stage_by_its_name(undisturbed, shapes_folder, tmp_path):
    trainer, *_ = undisturbed
    checkpoint = f"{trainer.args.output_dir}/encoder/checkpoint-4"
    again = make_trainer(shapes_folder, trainer.args.output_dir, steps := Steps())
    again.train(resume_from_checkpoint=checkpoint)
    assert steps.done == [*ENCODER[4:], *JOINT]
    assert_same_weights(again, trainer)


def test_values_without_training_images_stay_without_prototype(shapes, tmp_path):
    labels = shapes.labels("train")
    rows = np.flatnonzero(labels[:, 3] != 0)  # no small shape
    splits = {name: shapes.splits[name] for name in ("train", "validation")}
    splits["train"] = splits["train"].select(rows)
    data = replace(shapes, splits=DatasetDict(splits))
    model = ADDEModel.from_backbone(ViTConfig(**TINY_VIT), data.attributes, embedding_dim=24)
    settings = {"use_cpu": True, "bf16": False, "disable_tqdm": True, "attribute_map": "none", "max_steps": 2}
    settings |= {"per_device_train_batch_size": 16, "images_per_value": 2, "eval_strategy": "no"}
    args = ManipulationArguments(output_dir=tmp_path, save_strategy="no", **settings)
    trainer = ADDETrainer(model, args, data)
    trainer.train()
    assert list(model.value_prototypes("size")) == data.attributes["size"][1:]
    with pytest.raises(ValueError, match="no training image showed it"):
        model.manipulate(model.encode(data["validation"]["image"][:1]), add={"size": data.attributes["size"][0]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"proxy_weight": 0.5}, "proxy_weight is not for the training of manipulation: its losses are those of ADDE"),
        ({"memory_weight": -1.0}, "memory_weight must be at least 0, got -1.0"),
        ({"global_weight": 0.0, "compositional_weight": 0.0}, "are both 0: no embedding would be learned"),
        ({"images_per_prototype": 0}, "images_per_prototype at least 1; got 8.0 and 0"),
    ],
)
def test_arguments_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        ManipulationArguments(output_dir="out", **settings)
