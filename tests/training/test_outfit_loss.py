"""The outfit ranking loss against plain loops, for outfits of different sizes, and in two processes."""

import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cca_hf.training.outfit_loss import OutfitRankingLoss, outfit_distances, outfit_ranking_loss


def make_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """12 images of 3 categories; outfits of one to four items with up to three negatives, and one without any."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "backbone_features": torch.randn(12, 5, generator=generator, dtype=torch.float64),
        "categories": torch.randint(3, (12,), generator=generator),
        "outfits": torch.tensor([[0, 1, 2, 3], [4, -1, -1, -1], [5, 6, -1, -1], [7, 8, 9, -1]]),
        "candidates": torch.tensor([[4, 5, 6, 7], [1, 2, -1, -1], [3, -1, -1, -1], [0, 10, 11, -1]]),
    }


class Model(nn.Module):
    """Features as they are given, and weights of pairs that learn."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.pairs = nn.Parameter(torch.rand(3, 3, 5, generator=generator, dtype=torch.float64))
        self.scale = nn.Parameter(torch.ones(5, dtype=torch.float64))

    def forward(self, backbone_features: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(features=backbone_features * self.scale, pair_weights=self.pairs)


def by_loops(
    features, pairs, categories, outfits, candidates, margin: float
) -> tuple[torch.Tensor, list[list[float]]]:
    losses, every = [], []
    for items, others in zip(outfits.tolist(), candidates.tolist(), strict=True):
        distances = []
        for candidate in (row for row in others if row >= 0):
            parts = []
            for item in (row for row in items if row >= 0):
                v = pairs[categories[item], categories[candidate]]
                parts.append((((features[item] - features[candidate]) * v) ** 2).sum())
            distances.append(sum(parts) / len(parts))
        if len(distances) > 1:
            losses.append(max(distances[0] - min(distances[1:]) + margin, 0 * distances[0]))
        every.append([distance.item() for distance in distances])
    return sum(losses) / len(losses), every


@pytest.mark.parametrize("margin", [0.3, 3.0])
def test_equals_plain_loops(margin: float) -> None:
    batch, model = make_batch(), Model()
    output = model(batch["backbone_features"])
    indices = [batch[name] for name in ("categories", "outfits", "candidates")]
    distances = outfit_distances(output.features, output.pair_weights, *indices)
    result = outfit_ranking_loss(distances, margin)
    expected, every = by_loops(output.features, output.pair_weights, *indices, margin)
    assert (result.loss.sum() / 3 - expected).abs() < 1e-9 and not result.has_negative[2] and result.loss[2] == 0
    for row, of_outfit in zip(distances.tolist(), every, strict=True):
        assert row[: len(of_outfit)] == pytest.approx(of_outfit, abs=1e-9)
        assert set(row[len(of_outfit) :]) <= {float("inf")}
    ours = torch.autograd.grad(result.loss.sum() / 3, [model.pairs, model.scale])
    output = model(batch["backbone_features"])
    loops = torch.autograd.grad(
        by_loops(output.features, output.pair_weights, *indices, margin)[0], [model.pairs, model.scale]
    )
    for one, other in zip(ours, loops, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def test_figures() -> None:
    batch, model = make_batch(), Model()
    output = OutfitRankingLoss(0.3)(model, batch)
    _, every = by_loops(
        batch["backbone_features"],
        model.pairs,
        *(batch[name] for name in ("categories", "outfits", "candidates")),
        0.3,
    )
    compared = [distances for distances in every if len(distances) > 1]
    assert output.logs["first"] == pytest.approx(sum(d[0] < min(d[1:]) for d in compared) / 3)
    assert output.logs["positive_distance"] == pytest.approx(sum(d[0] for d in compared) / 3, rel=1e-5)
    assert output.logs["negative_distance"] == pytest.approx(sum(min(d[1:]) for d in compared) / 3, rel=1e-5)
    assert output.collapsed == 0
    batch["backbone_features"] = torch.ones_like(batch["backbone_features"])
    assert OutfitRankingLoss(0.3)(model, batch).collapsed == 1
    batch["candidates"] = batch["candidates"][:, :1]
    nothing = OutfitRankingLoss(0.3)(model, batch)
    assert nothing.loss == 0 and nothing.collapsed.isnan() and nothing.logs["first"].isnan()


def _part(rank: int, file: str, folder: str) -> None:
    """One of two processes: the gradients for half of the outfits, averaged as DistributedDataParallel does."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    batch, model = make_batch(), Model()
    rows = slice(0, 3) if rank == 0 else slice(3, 4)  # with two outfits that have a negative, and with one
    part = {**batch, "outfits": batch["outfits"][rows], "candidates": batch["candidates"][rows]}
    OutfitRankingLoss(3.0)(model, part).loss.backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= 2
    torch.save([parameter.grad for parameter in model.parameters()], Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """The averaged gradients are those of one process with all outfits."""
    if not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "rendezvous"), str(tmp_path))
    processes = [context.Process(target=_part, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    model = Model()
    OutfitRankingLoss(3.0)(model, make_batch()).loss.backward()
    for rank in range(2):
        for gradient, parameter in zip(torch.load(tmp_path / f"{rank}.pt"), model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=0)
