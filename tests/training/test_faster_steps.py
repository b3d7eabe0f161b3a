"""What makes a step faster or smaller and changes nothing: compilation, gradient checkpointing, fused optimisers."""

import pytest
import torch
from accelerate.state import AcceleratorState
from torch._dynamo.utils import counters

from cca_hf.models.modeling_cca import CCAModel
from cca_hf.recipes.attribute_trainer import CCATrainer
from cca_hf.training.checkpoints import last_checkpoint

from .conftest import EPOCH


@pytest.fixture
def train(make_model, make_args, shapes, tmp_path):
    """An epoch; the trainer after it."""

    def train(**changes) -> CCATrainer:
        model = make_model(hidden_dropout_prob=0.0)
        trainer = CCATrainer(model, make_args(learning_rate=1e-3, **changes), shapes)
        trainer.train()
        return trainer

    return train


@pytest.fixture
def compilation(monkeypatch):
    """What transformers leaves in the environment for all that follows is taken back; counters from 0."""
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.setenv(name, "no")
        monkeypatch.delenv(name)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    AcceleratorState._reset_state(reset_partial_state=True)


def losses(trainer: CCATrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


CASES = {
    "pictures": {},
    "micro-batches": {"micro_batch_size": 8},
    "kept features": {"freeze_backbone": True, "cache_tokens": "cache", "cache_dtype": "float32"},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "bfloat16": {"bf16": True},
}


@pytest.mark.parametrize("case", CASES)
def test_a_compiled_run_is_the_same_run(train, tmp_path, case, compilation):
    """In one graph without a break: what is not in it would run as slowly as before."""
    changes = CASES[case]
    if "cache_tokens" in changes:
        changes = changes | {"cache_tokens": str(tmp_path / "cache")}
    plain = train(**changes, output_dir=str(tmp_path / "plain"))
    compiled = train(**changes, torch_compile_backend="aot_eager")
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-2 if "bf16" in changes else 1e-4)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
    saved = CCAModel.from_pretrained(last_checkpoint(tmp_path / "out"))
    for name, weight in saved.state_dict().items():
        assert weight.equal(compiled.model.state_dict()[name]), name


def test_gradient_checkpointing_changes_no_gradient(train):
    plain, less = train(max_steps=1, max_grad_norm=0), train(max_steps=1, max_grad_norm=0, gradient_checkpointing=True)
    assert less.model.is_gradient_checkpointing and not plain.model.is_gradient_checkpointing
    batch = next(iter(plain.get_train_dataloader()))
    for trainer in (plain, less):
        trainer.model.load_state_dict(plain.model.state_dict())
        trainer.model.train().zero_grad()
        trainer.compute_loss(trainer.model, dict(batch)).backward()
    for (name, one), other in zip(plain.model.named_parameters(), less.model.parameters(), strict=True):
        assert one.grad.abs().max() > 0
        torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_the_optimiser_is_fused(train):
    fused, plain = train(), train(optim="adamw_torch")
    assert all(group["fused"] for group in fused.optimizer.optimizer.param_groups)
    assert not any(group["fused"] for group in plain.optimizer.optimizer.param_groups)
    assert len(losses(fused)) == EPOCH and losses(fused) == pytest.approx(losses(plain), rel=1e-4)
