"""Resuming after the output folder was moved or copied, or from a checkpoint that cannot be resumed."""

import shutil

import pytest
import torch

from cca_hf.models.modeling_cca import CCAModel
from cca_hf.recipes.attribute_trainer import CCATrainer
from cca_hf.training.checkpoints import last_checkpoint

from .conftest import EPOCH


@pytest.fixture
def make_trainer(make_model, make_args, shapes):
    def make(**changes) -> CCATrainer:
        # this metric is the same in all evaluations, so that the first checkpoint is the best
        settings = {"num_train_epochs": 2, "metric_for_best_model": "chance_map", "save_total_limit": None}
        rates = {"learning_rate": 3e-3, "head_learning_rate": 3e-3}
        return CCATrainer(make_model(), make_args(**(settings | rates | changes)), shapes)

    return make


def same_weights(model: CCAModel, checkpoint) -> bool:
    expected = CCAModel.from_pretrained(checkpoint).state_dict()
    return all(weight.equal(expected[name]) for name, weight in model.set_prototypes(None).state_dict().items())


def test_the_best_checkpoint_is_found_where_the_folder_is_now(make_trainer, tmp_path, monkeypatch, caplog):
    trainer = make_trainer()
    trainer.train()
    out, best, last = tmp_path / "out", f"checkpoint-{EPOCH}", f"checkpoint-{2 * EPOCH}"
    assert same_weights(trainer.model, out / best) and not same_weights(trainer.model, out / last)

    def resume(folder, checkpoint="last", **changes):
        resumed = make_trainer(output_dir=str(folder), **changes)
        resumed.train(checkpoint)
        assert resumed.state.global_step == 2 * EPOCH
        return resumed

    shutil.copytree(out, tmp_path / "copy")
    with torch.no_grad():  # the original has changed since
        other = CCAModel.from_pretrained(out / best)
        next(other.parameters()).add_(1)
        other.save_pretrained(out / best)
    copied = resume(tmp_path / "copy")
    assert copied.state.best_model_checkpoint == str(tmp_path / "copy" / best)
    assert same_weights(copied.model, tmp_path / "copy" / best) and not same_weights(copied.model, out / best)

    shutil.rmtree(out)
    (tmp_path / "copy").rename(tmp_path / "moved")
    moved = resume(tmp_path / "moved")
    assert same_weights(moved.model, tmp_path / "moved" / best)
    assert f"the output folder was moved: the best checkpoint so far is {tmp_path / 'moved' / best}" in caplog.text

    # another output folder, and a relative path to the checkpoint
    monkeypatch.chdir(tmp_path)
    elsewhere = resume("new", f"moved/{last}")
    assert elsewhere.state.best_model_checkpoint == f"moved/{best}"
    assert same_weights(elsewhere.model, tmp_path / "moved" / best)

    # only one checkpoint is kept: the best one
    resume("moved", str(tmp_path / "moved" / last), save_total_limit=1)
    assert last_checkpoint("moved").name == best


def test_a_best_checkpoint_that_is_missing_is_reported(make_trainer, tmp_path, caplog):
    make_trainer().train()
    shutil.rmtree(tmp_path / "out" / f"checkpoint-{EPOCH}")
    resumed = make_trainer(num_train_epochs=3)
    resumed.train("last")
    assert f"checkpoint-{EPOCH}, the best checkpoint so far, is missing in {tmp_path / 'out'}" in caplog.text
    assert resumed.state.best_model_checkpoint == str(tmp_path / "out" / f"checkpoint-{3 * EPOCH}")


def test_a_checkpoint_of_the_model_alone_cannot_be_resumed(make_trainer, tmp_path):
    settings = {"max_steps": 2, "eval_strategy": "no"}
    make_trainer(save_only_model=True, **settings).train()
    with pytest.raises(
        ValueError, match="contains the model alone, because it was saved with save_only_model"
    ) as error:
        make_trainer(**settings).train("last")
    assert "proxy_weight" not in str(error.value)
    shutil.rmtree(tmp_path / "out")
    make_trainer(proxy_weight=0.0, **settings).train()
    with pytest.raises(ValueError, match="was made without value proxies: resume with --proxy_weight 0"):
        make_trainer(**settings).train("last")
