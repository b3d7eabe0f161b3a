"""`evaluate`, `predict` and the constructor take names of splits and data sets, as a user of `Trainer` expects."""

from dataclasses import replace

import pytest
from datasets import DatasetDict

from cca_hf import RetrievalEvaluator
from cca_hf.recipes.attribute_trainer import CCATrainer

from .conftest import EPOCH


@pytest.fixture
def make_trainer(make_model, make_args, shapes):
    def make(data=shapes, model=None, **options) -> CCATrainer:
        trainer = {key: options.pop(key) for key in ("train_dataset", "eval_dataset") if key in options}
        return CCATrainer(make_model() if model is None else model, make_args(**options), data, **trainer)

    return make


def figures(data, model, split: str) -> dict[str, float]:
    return RetrievalEvaluator(data, split)(model).metrics()


def of_prefix(metrics: dict[str, float], prefix: str, expected: dict[str, float]) -> dict[str, float]:
    return {name: metrics[f"{prefix}_{name}"] for name in expected}


def test_evaluate_takes_a_name_or_a_data_set(make_trainer, shapes):
    trainer = make_trainer()
    expected = figures(shapes, trainer.model, "test")
    for given in ("test", shapes["test"], trainer.images_of("test")):
        assert of_prefix(trainer.evaluate(given), "eval", expected) == pytest.approx(expected, abs=1e-6)
    part = shapes["test"].select(range(30))
    expected = figures(replace(shapes, splits=DatasetDict(test=part)), trainer.model, "test")
    assert of_prefix(trainer.evaluate(part), "eval", expected) == pytest.approx(expected, abs=1e-6)
    several = trainer.evaluate({"first": "test", "second": part})
    assert several["eval_second_map"] == pytest.approx(expected["map"], abs=1e-6) != several["eval_first_map"]
    with pytest.raises(KeyError, match="tset"):
        trainer.evaluate("tset")


def test_predict_takes_a_name_or_a_data_set(make_trainer, shapes):
    trainer = make_trainer()
    by_name, by_data_set = trainer.predict("test"), trainer.predict(shapes["test"])
    assert by_name.predictions.shape == (45, 5, 32)
    assert (by_name.predictions == by_data_set.predictions).all()
    assert (by_name.label_ids == shapes.labels("test")).all()
    assert by_name.metrics["test_map"] == by_data_set.metrics["test_map"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_persistent_workers_do_not_mix_up_splits(make_trainer, shapes):
    trainer = make_trainer(dataloader_num_workers=1, dataloader_persistent_workers=True)
    validation = trainer.evaluate()["eval_map"]
    assert trainer.evaluate("test")["eval_map"] != validation == trainer.evaluate()["eval_map"]


def test_the_constructor_takes_data_sets(make_trainer, shapes):
    """In the place of `data`, and of its splits."""
    half = shapes["train"].select(range(80))
    expected = figures(shapes, make_trainer().model, "test")
    for data in (shapes, None):
        trainer = make_trainer(data, train_dataset=half, eval_dataset=shapes["test"])
        assert len(trainer.train_dataset) == 80
        assert of_prefix(trainer.evaluate(), "eval", expected) == pytest.approx(expected, abs=1e-6)
    trainer.train()
    assert 0 < trainer.state.global_step < EPOCH  # half of the images make fewer batches


def test_several_evaluation_data_sets(make_trainer, shapes):
    trainer = make_trainer(
        eval_dataset={"v": "validation", "t": shapes["test"]}, metric_for_best_model="v_map", max_steps=2
    )
    metrics = trainer.evaluate()
    assert metrics["eval_t_map"] == pytest.approx(figures(shapes, trainer.model, "test")["map"], abs=1e-6)
    assert metrics["eval_v_map"] == pytest.approx(figures(shapes, trainer.model, "validation")["map"], abs=1e-6)
    trainer.evaluate("t")
    trainer.train()
    assert trainer.state.best_metric > 0


def test_what_is_missing_is_named(make_trainer):
    with pytest.raises(ValueError, match="give data, an AttributeDataset, or a train_dataset"):
        make_trainer(data=None)
