"""Value proxies: the loss by a loop, whose gradient goes where, and a checkpoint that goes on."""

import pytest
import torch

from cca_hf.training.attribute_losses import ValueProxies

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
