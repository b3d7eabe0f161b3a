"""The loss of re-identification by plain loops, whose gradient goes where, a checkpoint, and two processes."""

import math
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cca_hf.training.reidentification_loss import IdentityHeads, ReidentificationLoss, batch_hard_distances

LABELS = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3])  # 2 has one image
DIM, IDENTITIES = 6, 5


def make_branches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(len(LABELS), DIM, generator=generator).double().requires_grad_() for _ in range(count)]


def make_heads(*, branches: int, **settings) -> IdentityHeads:
    heads = IdentityHeads(IDENTITIES, DIM, [0, 1, 0][:branches], **settings).double()
    generator = torch.Generator().manual_seed(2)
    for parameter in heads.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator).double()
    return heads


def by_loops(heads: IdentityHeads, branches, smoothing: float, margin: float | None) -> torch.Tensor:
    total = 0.0
    for number, x in enumerate(branches):
        head = [0, 1, 0][number]
        mean = sum(x) / len(x)
        variance = sum((row - mean) ** 2 for row in x) / len(x)
        identity, triplets = [], []
        for row, label in zip(x, LABELS.tolist(), strict=True):
            neck = (row - mean) / (variance + 1e-5).sqrt() * heads.neck_scales[head]
            logits = torch.stack([(neck * weights).sum() for weights in heads.classifiers[head]])
            logs = logits - logits.exp().sum().log()
            identity.append(-(1 - smoothing) * logs[label] - smoothing * sum(logs) / IDENTITIES)
        for i, label in enumerate(LABELS.tolist()):
            distances = [(x[i] - x[j]).square().sum().sqrt() for j in range(len(x)) if j != i]
            same = [LABELS[j] == label for j in range(len(x)) if j != i]
            positives = [d for d, is_same in zip(distances, same, strict=True) if is_same]
            negatives = [d for d, is_same in zip(distances, same, strict=True) if not is_same]
            if positives:
                difference = max(positives) - min(negatives)
                smooth = (1 + difference.exp()).log() if margin is None else (difference + margin).clamp(min=0)
                triplets.append(smooth)
        loss = sum(identity) / len(identity) + sum(triplets) / len(triplets)
        if len(branches) == 1:
            return loss
        weight = heads.branch_weights[number]
        total = total + ((-weight).exp() * loss + weight) / 2
    return total


@pytest.mark.parametrize(("branches", "margin"), [(1, None), (3, None), (1, 0.3)])
def test_equals_plain_loops_in_value_and_gradients(branches: int, margin: float | None) -> None:
    """Embeddings and heads learn apart, by the gradients of one joint graph."""
    heads, given = make_heads(branches=branches, margin=margin, label_smoothing=0.2), make_branches(branches)
    expected = by_loops(heads, given, 0.2, margin)
    gradients = torch.autograd.grad(expected, [*given, *heads.parameters()])
    loss, figures, collapsed = heads(given, LABELS)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9) and collapsed == 0
    assert all(parameter.grad is not None for parameter in heads.parameters())
    (2 * loss).backward()  # as a gradient scaler does: the heads must not see the factor
    for found, right in zip(given, gradients, strict=False):
        torch.testing.assert_close(found.grad, 2 * right, atol=1e-9, rtol=1e-7)
    for parameter, right in zip(heads.parameters(), gradients[branches:], strict=True):
        torch.testing.assert_close(parameter.grad, right, atol=1e-9, rtol=1e-7)
    assert figures["positive_distance"] > 0 and figures["triplet_loss"] > 0


def test_equal_embeddings_and_a_batch_without_pairs() -> None:
    heads = make_heads(branches=1)
    equal = torch.ones(len(LABELS), DIM).double().requires_grad_()
    loss, _, collapsed = heads([equal], LABELS)
    loss.backward()
    assert collapsed == 1 and equal.grad.isfinite().all()
    alone = batch_hard_distances(make_branches(1)[0], torch.arange(len(LABELS)))
    assert not alone.is_anchor.any()
    loss, figures, _ = heads(make_branches(1), torch.arange(len(LABELS)) % IDENTITIES)
    assert math.isfinite(loss.item())
    loss, figures, _ = heads([make_branches(1)[0][:IDENTITIES]], torch.arange(IDENTITIES))
    assert figures["triplet_loss"] == 0 and figures["positive_distance"].isnan()


def test_a_checkpoint_goes_on(tmp_path: Path) -> None:
    heads = make_heads(branches=3)
    for _ in range(2):
        heads(make_branches(3), LABELS)
        heads.optimizer_step()
    heads.save(tmp_path)
    other = make_heads(branches=3)
    other.load(tmp_path)
    for each in (heads, other):
        each(make_branches(3), LABELS)
        each.optimizer_step()
    for one, two in zip(heads.parameters(), other.parameters(), strict=True):
        assert one.equal(two)
    with pytest.raises(ValueError, match="was made with other identities or another model"):
        make_heads(branches=1).load(tmp_path)


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="label_smoothing must be at least 0 and below 1, got 1"):
        IdentityHeads(3, 4, label_smoothing=1)
    with pytest.raises(ValueError, match="margin must be above 0, got 0"):
        IdentityHeads(3, 4, margin=0)


class Model(nn.Module):
    """Embeddings as they are given, with scales that learn."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(DIM).double())

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pooler_output": pixel_values * self.scale}


def make_loss() -> ReidentificationLoss:
    """Identity 10 + c of the data set is class c."""
    return ReidentificationLoss(make_heads(branches=1), {10 + place: place for place in range(IDENTITIES)})


def _part(rank: int, file: str, folder: str) -> None:
    """One of two processes: the gradients for half of the images, averaged as DistributedDataParallel does."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    model, loss, rows = Model(), make_loss(), slice(4 * rank, 4 * rank + 4)
    output = loss(model, {"pixel_values": make_branches(1)[0].detach()[rows], "labels": LABELS[rows] + 10})
    output.loss.backward()
    dist.all_reduce(model.scale.grad)
    model.scale.grad /= 2
    loss.optimizer_step()
    torch.save((output.loss, model.scale.grad, loss.state_dict()), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """Both do what one process does with all images."""
    if not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "rendezvous"), str(tmp_path))
    processes = [context.Process(target=_part, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    model, loss = Model(), make_loss()
    output = loss(model, {"pixel_values": make_branches(1)[0].detach(), "labels": LABELS + 10})
    output.loss.backward()
    loss.optimizer_step()
    for rank in range(2):
        found, gradient, state = torch.load(tmp_path / f"{rank}.pt")
        assert found.item() == pytest.approx(output.loss.item(), abs=1e-9)
        torch.testing.assert_close(gradient, model.scale.grad, atol=1e-9, rtol=1e-7)
        for name, value in loss.state_dict().items():
            torch.testing.assert_close(state[name], value, atol=1e-9, rtol=1e-7)
