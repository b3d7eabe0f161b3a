"""Weights of the loss learn with the model: one step for each of its steps, and none if that is skipped."""

import pytest
import torch
from accelerate import Accelerator

from cca_hf.recipes.attribute_trainer import CCATrainer
from cca_hf.training.attribute_losses import ValueProxies
from cca_hf.training.per_attribute_loss import PerAttributeLoss

losses = pytest.importorskip("pytorch_metric_learning.losses", reason='needs pip install "cca_hf[losses]"')

STILL = {"learning_rate": 0.0, "head_learning_rate": 0.0, "eval_strategy": "no", "save_strategy": "no"}


def proxy_anchors(attributes, dim: int) -> PerAttributeLoss:
    torch.manual_seed(0)
    return PerAttributeLoss({name: losses.ProxyAnchorLoss(len(values), dim) for name, values in attributes.items()})


@pytest.fixture
def make_trainer(make_model, make_args, shapes):
    def make(foreign: bool, **changes) -> CCATrainer:
        model = make_model(hidden_dropout_prob=0.0)
        loss = proxy_anchors(shapes.attributes, model.config.hidden_size) if foreign else None
        return CCATrainer(model, make_args(**(STILL | changes)), shapes, loss=loss)

    return make


@pytest.mark.parametrize("foreign", [False, True], ids=["value proxies", "PerAttributeLoss"])
def test_one_step_by_the_mean_gradient_of_the_micro_batches(make_trainer, foreign):
    trainer = make_trainer(foreign, gradient_accumulation_steps=2, max_steps=1)
    batches = list(trainer.get_train_dataloader())[:2]
    by_hand = make_trainer(foreign).loss
    weights = list(by_hand.parameters())
    gradients = []
    for batch in batches:
        every = torch.arange(5).expand(len(batch["labels"]), -1)
        embeddings = trainer.model(batch["pixel_values"], every).embeddings.detach().requires_grad_()
        by_hand.compare(embeddings, batch["labels"])
        gradients.append([weight.grad for weight in weights])
        by_hand.zero_grad()
    for weight, *parts in zip(weights, *gradients, strict=True):
        weight.grad = (parts[0] + parts[1]) / 2
    torch.optim.Adam(weights, lr=1e-2).step()
    trainer.train()
    for learned, expected in zip(trainer.loss.parameters(), weights, strict=True):
        torch.testing.assert_close(learned, expected)


@pytest.mark.parametrize("foreign", [False, True], ids=["value proxies", "PerAttributeLoss"])
def test_no_step_if_the_models_is_skipped(make_trainer, foreign, monkeypatch):
    """As a gradient scaler does when it finds an infinite gradient; the batch is then lost for both."""
    trainer = make_trainer(foreign, max_steps=3)
    before = [parameter.detach().clone() for parameter in trainer.loss.parameters()]
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda self: True))
    trainer.train()
    assert before and all(
        parameter.equal(old) and parameter.grad is None
        for parameter, old in zip(trainer.loss.parameters(), before, strict=True)
    )


def test_proxies_of_one_batch_learn_as_before():
    """One batch for each step: the gradient itself, to the last bit, and not a mean."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(16, 2, 8, generator=generator), dim=-1)
    labels = torch.randint(0, 3, (16, 2), generator=generator)
    proxies, plain = ValueProxies([3, 3], 8), ValueProxies([3, 3], 8)
    for _ in range(3):
        proxies(embeddings, labels)
        proxies.optimizer_step()
        plain.vectors.grad = torch.autograd.grad(plain._loss(embeddings, labels, plain.vectors).sum(), plain.vectors)[
            0
        ]
        plain.optimizer.step()
    assert proxies.vectors.equal(plain.vectors)
