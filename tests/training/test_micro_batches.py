"""Micro-batches: the gradients of the whole batch, from the memory of a few pictures."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import MobileNetV2Config

from cca_hf import CCAModel
from cca_hf.recipes.attribute_trainer import CCATrainer

from .conftest import EPOCH
from .test_trainer import ReadyTriplets

BATCH = 16
CASES = {
    "pictures": {},
    "the triplet loss": {"loss": "triplet", "mining": "hardest"},
    "a frozen backbone": {"freeze_backbone": True},
    "kept features": {"freeze_backbone": True, "cache_tokens": "cache", "cache_dtype": "float32"},
}


@pytest.fixture
def make_trainer(make_model, make_args, shapes, tmp_path):
    def make(model=None, triplets=None, callbacks=None, **changes) -> CCATrainer:
        if "cache_tokens" in changes:
            changes["cache_tokens"] = str(tmp_path / changes["cache_tokens"])
        model = make_model() if model is None else model
        return CCATrainer(model, make_args(**changes), shapes, triplets=triplets, callbacks=callbacks)

    return make


def gradients(trainer: CCATrainer, batch=None) -> dict[str, torch.Tensor]:
    """Of the first batch, in training mode."""
    batch = next(iter(trainer.get_train_dataloader())) if batch is None else batch
    model = trainer.accelerator.prepare(trainer.model).train()
    model.zero_grad()
    torch.manual_seed(0)
    trainer.compute_loss(model, dict(batch)).backward()
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert found and all(gradient.abs().max() > 0 for gradient in found.values())
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("size", [1, 5, BATCH])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_whole_batch(make_trainer, case, size):
    changes = CASES[case]
    expected = gradients(make_trainer(**changes))
    found = gradients(make_trainer(**changes, micro_batch_size=size))
    assert_same(found, expected)


def test_gradients_in_bfloat16(make_trainer):
    """Autocast is on both times; what is left are the roundings of sums over other numbers of rows."""
    expected, found = gradients(make_trainer(bf16=True)), gradients(make_trainer(bf16=True, micro_batch_size=5))
    in_float32 = gradients(make_trainer())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 0.01 * gradient.norm(), name
        assert (found[name] - in_float32[name]).norm() > 0.002 * gradient.norm(), name


def test_gradients_of_ready_triplets(make_trainer):
    changes = {"triplets": ReadyTriplets(), "per_device_train_batch_size": 8}
    batch = next(iter(make_trainer(**changes).get_train_dataloader()))
    expected = gradients(make_trainer(**changes), batch)
    assert_same(gradients(make_trainer(**changes, micro_batch_size=5), batch), expected)


def test_dropout_is_the_same_both_times(make_trainer, make_model):
    """Of the loss and of its gradient: those of a graph that holds all micro-batches at once."""
    dropping = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    trainer = make_trainer(make_model(**dropping), micro_batch_size=5)
    batch = next(iter(trainer.get_train_dataloader()))
    found = gradients(trainer, batch)

    model = make_model(**dropping).train()
    torch.manual_seed(0)
    every = torch.arange(5).expand(BATCH, -1)
    parts = zip(batch["pixel_values"].split(5), every.split(5), strict=True)
    embeddings = torch.cat([model(pictures, ids).embeddings for pictures, ids in parts])
    loss = make_trainer(model).loss  # with proxies that have not learned yet
    loss.compare(embeddings, batch["labels"]).loss.backward()
    assert_same(found, {name: p.grad for name, p in model.named_parameters()})


def test_what_is_kept_does_not_grow_with_the_batch(make_model):
    """Bytes of activations between the passes, and pictures that go through the backbone at once."""
    model = make_model().train()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args, kwargs: seen.append(len(args[0])), with_kwargs=True)

    def kept(batch: int, **options) -> int:
        sizes = []
        inputs = [torch.zeros(batch, 3, 32, 32), torch.zeros(batch, dtype=torch.long)]
        there_anyway = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *inputs]}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in there_anyway:
                sizes.append(tensor.nbytes)
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            embeddings = model(*inputs, **options).embeddings
        embeddings.sum().backward()
        return sum(sizes)

    one = kept(1)
    assert kept(64) > 20 * one
    seen.clear()
    assert kept(64, micro_batch_size=1) < one
    assert seen == [1] * 128  # each picture twice


def losses(trainer: CCATrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_a_run_is_the_same_run(make_trainer):
    """Accumulation and clipping included; evaluation has batches of its own."""
    changes = {"num_train_epochs": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3}
    plain, small = make_trainer(**changes), make_trainer(**changes, micro_batch_size=6)
    for trainer in (plain, small):
        trainer.train()
    assert len(losses(plain)) == EPOCH and losses(plain)[-1] != pytest.approx(losses(plain)[0], rel=1e-3)
    assert losses(small) == pytest.approx(losses(plain), rel=1e-4)
    assert small.evaluate()["eval_map"] == pytest.approx(plain.evaluate()["eval_map"], abs=1e-3)


def test_a_resumed_run_ends_with_the_same_weights(make_trainer, make_model, tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": None}
    changes |= {"load_best_model_at_end": False, "micro_batch_size": 6}
    dropping = {"hidden_dropout_prob": 0.3}
    whole = make_trainer(make_model(**dropping), **changes)
    whole.train()
    resumed = make_trainer(make_model(**dropping), **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    for name, weight in resumed.model.state_dict().items():
        assert weight.equal(whole.model.state_dict()[name]), name


def test_what_cannot_be_is_refused(make_trainer, make_args, make_model, shapes):
    with pytest.raises(ValueError, match="micro_batch_size must be at least 1, got 0"):
        make_args(micro_batch_size=0)
    statistics = CCAModel.from_backbone(MobileNetV2Config(depth_multiplier=0.35, image_size=32), shapes.attributes)
    assert not statistics.config.freeze_batch_norm
    with pytest.raises(ValueError, match="micro_batch_size needs freeze_batch_norm"):
        make_trainer(statistics, micro_batch_size=2)
    model, ids = make_model(), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="gives no attentions"):
        model(torch.zeros(2, 3, 32, 32), ids, output_attentions=True, micro_batch_size=1)
    with pytest.raises(ValueError, match="micro_batch_size must be at least 1, got -1"):
        model(torch.zeros(2, 3, 32, 32), ids, micro_batch_size=-1)
    with pytest.raises(ValueError, match="either pixel_values or backbone_features"):
        model(attribute_ids=ids, micro_batch_size=1)
