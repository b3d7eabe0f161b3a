"""Value proxies: the loss by a loop, whose gradient goes where, and a checkpoint that goes on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict
from transformers import ViTConfig

from cca_hf import ADDEModel, CCAModel, CCATrainer
from cca_hf.models.value_prototypes import shape_of_prototypes
from cca_hf.training.attribute_losses import ValueProxies

from .conftest import TINY_VIT

NUM_VALUES = [3, 5]


@pytest.fixture
def batch():
    """(16, 2, 8) unit vectors and labels; of the second attribute every third is missing."""
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.nn.functional.normalize(torch.randn(16, 2, 8, generator=generator), dim=-1)
    labels = torch.stack([torch.randint(0, n, (16,), generator=generator) for n in NUM_VALUES], dim=1)
    labels[::3, 1] = -1
    return embeddings, labels


def test_the_loss_by_a_loop(batch):
    embeddings, labels = batch
    proxies = ValueProxies(NUM_VALUES, 8, temperature=0.2)
    with torch.no_grad():
        found = proxies(embeddings, labels)
    for attribute, count in enumerate(NUM_VALUES):
        losses = []
        for x, label in zip(embeddings[:, attribute].double(), labels[:, attribute].tolist(), strict=True):
            if label >= 0:
                own = proxies.vectors[attribute, :count].detach().double()
                cosines = torch.stack([x @ p / p.norm() for p in own]) / 0.2
                losses.append(cosines.exp().sum().log() - cosines[label])
        assert found[attribute].item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)


def test_the_gradient_is_that_of_one_joint_loss(batch):
    """Embeddings and proxies learn apart, and yet by the same gradients as in one graph."""
    embeddings, labels = batch
    proxies = ValueProxies(NUM_VALUES, 8)
    asked = embeddings.clone().requires_grad_()
    joint_x, joint_p = asked.detach().clone().requires_grad_(), proxies.vectors.detach().clone().requires_grad_()
    proxies._loss(joint_x, labels, joint_p).sum().backward()
    proxies(asked, labels).sum().backward()
    torch.testing.assert_close(asked.grad, joint_x.grad)
    torch.testing.assert_close(proxies.vectors.grad, joint_p.grad)


def test_only_training_moves_them(batch):
    proxies = ValueProxies(NUM_VALUES, 8)
    before = proxies.vectors.detach().clone()
    with torch.no_grad():
        proxies(*batch)
    assert proxies.vectors.equal(before)
    proxies(*batch)
    assert proxies.vectors.equal(before)
    proxies.optimizer_step()
    moved = (proxies.vectors != before).any(-1)
    assert moved[proxies.known].all() and not moved[~proxies.known].any()


def test_they_come_to_stand_for_their_values(batch):
    generator = torch.Generator().manual_seed(0)
    middles = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=-1)
    labels = torch.arange(5).repeat(8)[:, None]
    noisy = middles[labels[:, 0]] + 0.1 * torch.randn(40, 8, generator=generator)
    embeddings = torch.nn.functional.normalize(noisy, dim=-1)[:, None]
    proxies = ValueProxies([5], 8)
    for _ in range(200):
        proxies(embeddings, labels)
        proxies.optimizer_step()
    cosines = torch.nn.functional.normalize(proxies.vectors[0].detach(), dim=-1) @ middles.T
    assert cosines.argmax(1).tolist() == [0, 1, 2, 3, 4]


def test_an_attribute_without_labels_costs_nothing(batch):
    embeddings, labels = batch
    labels[:, 1] = -1
    proxies = ValueProxies(NUM_VALUES, 8)
    found = proxies(embeddings.requires_grad_(), labels)
    assert found[1] == 0 and found[0] > 0
    found.sum().backward()
    assert embeddings.grad[:, 1].eq(0).all() and proxies.vectors.isfinite().all()


def test_a_checkpoint_goes_on(batch, tmp_path):
    straight, first, resumed = (ValueProxies(NUM_VALUES, 8, seed=seed) for seed in (0, 0, 1))
    for proxies, steps in ((first, 3), (straight, 6)):
        for _ in range(steps):
            proxies(*batch)
            proxies.optimizer_step()
    first.save(tmp_path)
    resumed.load(tmp_path)
    for _ in range(3):
        resumed(*batch)
        resumed.optimizer_step()
    assert resumed.vectors.equal(straight.vectors)


def test_checkpoints_of_other_trainings(tmp_path):
    (tmp_path / "rng_state.pth").touch()  # of a checkpoint that a training can continue from
    with pytest.raises(ValueError, match="made without value proxies"):
        ValueProxies(NUM_VALUES, 8).load(tmp_path)
    ValueProxies([3, 6], 8).save(tmp_path)
    assert (tmp_path / ValueProxies.file_name).exists()
    with pytest.raises(ValueError, match=r"shape \(2, 6, 8\), this training has \(2, 5, 8\)"):
        ValueProxies(NUM_VALUES, 8).load(tmp_path)


@pytest.mark.parametrize("model_class", [CCAModel, ADDEModel])
def test_a_training_leaves_them_with_the_model(model_class, shapes, make_args, tmp_path):
    """Those of the checkpoint that was loaded at the end, for the values that a training image shows."""
    without_circles = shapes["train"].filter(lambda row: row["shape"] != 0)
    data = replace(shapes, splits=DatasetDict({**shapes.splits, "train": without_circles}))
    model = model_class.from_backbone(ViTConfig(**TINY_VIT), data.attributes, embedding_dim=16)
    model.set_prototypes(torch.ones(shape_of_prototypes(model.config)), torch.ones(5, 7) > 2)
    steps = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    trainer = CCATrainer(model, make_args(max_steps=2, load_best_model_at_end=True, **steps), data)
    trainer.train()
    stored = torch.load(Path(trainer.state.best_model_checkpoint) / ValueProxies.file_name)["vectors"]
    expected = torch.nn.functional.normalize(stored, dim=-1)
    trainer.save_model(str(tmp_path / "model"))
    saved = model_class.from_pretrained(tmp_path / "model")
    for place, (name, shown) in enumerate(data.values_in("train").items()):
        found, values = saved.value_prototypes(name), data.attributes[name]
        assert list(found) == shown
        for value, vector in found.items():
            assert vector == pytest.approx(expected[place, values.index(value)].numpy(), abs=1e-6)
    assert list(saved.value_prototypes("shape")) == data.attributes["shape"][1:]
    assert all(p.requires_grad for p in model.parameters_without_effect())
    if model_class is CCAModel:
        CCATrainer(model, make_args(max_steps=1, proxy_weight=0.0), data).train()
        assert not model.has_prototypes


def test_values_with_other_names_have_none(shapes, make_args):
    """The rows of the proxies are those of the data."""
    model = CCAModel.from_backbone(ViTConfig(**TINY_VIT), list(shapes.attributes))
    CCATrainer(model, make_args(max_steps=1), shapes).train()
    assert not model.has_prototypes
