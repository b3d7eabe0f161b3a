"""The conditional triplet loss against triple plain loops, pytorch-metric-learning and its own promises."""

import itertools

import pytest
import torch

from cca_hf.training.losses import (
    ConditionalLossOutput,
    ConditionalSoftTripletLoss,
    ConditionalTripletLoss,
    explicit_triplet_loss,
)

MINING = ["all", "semihard", "hardest"]
LOSSES = [*(ConditionalTripletLoss(0.2, mining) for mining in MINING), ConditionalSoftTripletLoss(0.1)]
ATTRIBUTES = 4


def make_batch(seed: int, batch: int = 14, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings close enough that all three kinds of triplets occur, and labels with every special case in them."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(batch, ATTRIBUTES, 6, generator=generator, dtype=dtype) + 1.0
    embeddings = torch.nn.functional.normalize(raw, dim=-1)
    labels = torch.randint(-1, 3, (batch, ATTRIBUTES), generator=generator)  # -1: not labelled
    labels[:, 2] = 1  # one value alone: no negatives
    labels[:, 3] = torch.arange(batch)  # every value once: no positives
    labels[3, :2] = 7  # a value with one image: a negative, never an anchor
    return embeddings, labels


def loss_by_loops(embeddings: torch.Tensor, labels: torch.Tensor, margin: float, mining: str) -> ConditionalLossOutput:
    batch, attributes, _ = embeddings.shape
    losses, shares, positive_means, negative_means, present = [], [], [], [], []
    for a in range(attributes):

        def similarity(i: int, j: int, a: int = a) -> torch.Tensor:
            return embeddings[i, a] @ embeddings[j, a]

        triplets, positive_pairs, negative_pairs = [], [], []
        for i in range(batch):
            if labels[i, a] < 0:
                continue
            positives = [j for j in range(batch) if j != i and labels[j, a] == labels[i, a]]
            negatives = [j for j in range(batch) if labels[j, a] >= 0 and labels[j, a] != labels[i, a]]
            positive_pairs += [similarity(i, p) for p in positives]
            negative_pairs += [similarity(i, n) for n in negatives]
            if mining == "hardest" and positives and negatives:
                positives = [min(positives, key=lambda p, i=i: similarity(i, p))]
                negatives = [max(negatives, key=lambda n, i=i: similarity(i, n))]
            triplets += [(similarity(i, p), similarity(i, n)) for p, n in itertools.product(positives, negatives)]
        active = [n - p + margin for p, n in triplets if n - p + margin > 0 and (mining != "semihard" or n < p)]
        zero = embeddings.new_zeros(())
        losses.append(torch.stack(active).mean() if active else zero)
        shares.append(embeddings.new_tensor(len(active) / max(len(triplets), 1)))
        positive_means.append(torch.stack(positive_pairs).mean() if positive_pairs else zero)
        negative_means.append(torch.stack(negative_pairs).mean() if negative_pairs else zero)
        present.append(len(triplets) > 0)
    return ConditionalLossOutput(
        loss=torch.stack(losses).sum() / max(sum(present), 1),
        attribute_loss=torch.stack(losses),
        active_share=torch.stack(shares),
        positive_similarity=torch.stack(positive_means),
        negative_similarity=torch.stack(negative_means),
        has_triplets=torch.tensor(present),
    )


@pytest.mark.parametrize("mining", MINING)
@pytest.mark.parametrize("margin", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_values_and_gradients_are_those_of_plain_loops(mining, margin, seed):
    embeddings, labels = make_batch(seed)
    ours, plain = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    actual = ConditionalTripletLoss(margin, mining)(ours, labels)
    expected = loss_by_loops(plain, labels, margin, mining)
    for name, value in actual._asdict().items():
        torch.testing.assert_close(value.double(), expected._asdict()[name].double(), atol=1e-12, rtol=0, msg=name)
    assert actual.loss > 0 and actual.has_triplets.tolist() == [True, True, False, False]
    actual.loss.backward()
    expected.loss.backward()
    torch.testing.assert_close(ours.grad, plain.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mining", MINING)
def test_each_attribute_is_pytorch_metric_learnings_loss(mining):
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    from pytorch_metric_learning import losses, miners

    margin, distance = 0.3, distances.CosineSimilarity()
    embeddings, labels = make_batch(seed=5, batch=24)
    reference = losses.TripletMarginLoss(margin=margin, distance=distance, triplets_per_anchor="all")
    miner = {
        "all": lambda e, y: None,
        "semihard": miners.TripletMarginMiner(margin, type_of_triplets="semihard", distance=distance),
        "hardest": miners.BatchHardMiner(distance=distance),
    }[mining]
    actual = ConditionalTripletLoss(margin, mining)(embeddings, labels)
    for a in range(2):  # the two attributes that have triplets
        labelled = labels[:, a] >= 0
        e, y = embeddings[labelled, a], labels[labelled, a]
        torch.testing.assert_close(actual.attribute_loss[a], reference(e, y, miner(e, y)), atol=1e-6, rtol=1e-6)


def soft_loss_by_loops(embeddings: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """(attributes,)"""
    batch, attributes, _ = embeddings.shape
    losses = []
    for a in range(attributes):
        of_anchors = []
        for i in range(batch):
            others = [j for j in range(batch) if j != i and labels[j, a] >= 0 and labels[i, a] >= 0]
            positives = [j for j in others if labels[j, a] == labels[i, a]]
            if not positives or len(positives) == len(others):
                continue
            scores = {j: (embeddings[i, a] @ embeddings[j, a] / temperature).exp() for j in others}
            against = sum(scores[n] for n in others if n not in positives)
            of_anchors.append(-sum((scores[p] / (scores[p] + against)).log() for p in positives) / len(positives))
        losses.append(torch.stack(of_anchors).mean() if of_anchors else embeddings.new_zeros(()))
    return torch.stack(losses)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_the_soft_loss_and_its_gradients_are_those_of_plain_loops(temperature, seed):
    embeddings, labels = make_batch(seed)
    ours, plain = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    actual = ConditionalSoftTripletLoss(temperature)(ours, labels)
    expected = soft_loss_by_loops(plain, labels, temperature)
    torch.testing.assert_close(actual.attribute_loss, expected.detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(actual.loss, expected.sum() / 2, atol=1e-12, rtol=0)
    actual.loss.backward()
    (expected.sum() / 2).backward()
    torch.testing.assert_close(ours.grad, plain.grad, atol=1e-12, rtol=0)

    triplets = ConditionalTripletLoss(0.2)(embeddings, labels)
    for name in ("active_share", "positive_similarity", "negative_similarity", "has_triplets"):
        assert actual._asdict()[name].equal(triplets._asdict()[name])


def test_the_soft_loss_of_an_attribute_is_pytorch_metric_learnings():
    """Theirs is the mean over positive pairs, ours over anchors first: the same where all values are as frequent."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    embeddings, _ = make_batch(seed=5, batch=24)
    labels = torch.arange(24)[:, None].expand(-1, ATTRIBUTES) % 3
    actual = ConditionalSoftTripletLoss(0.1)(embeddings, labels)
    for a in range(ATTRIBUTES):
        expected = losses.NTXentLoss(temperature=0.1)(embeddings[:, a], labels[:, a])
        torch.testing.assert_close(actual.attribute_loss[a], expected, atol=1e-6, rtol=1e-6)


def test_ties_and_the_rim_of_the_margin_are_counted_alike_on_both_sides():
    """All similarities equal: every triplet is active and costs the margin; none is semi-hard."""
    embeddings = torch.nn.functional.normalize(torch.ones(9, 1, 5), dim=-1)
    labels = torch.arange(9)[:, None] % 3
    output = ConditionalTripletLoss(0.1, "all")(embeddings, labels)
    assert output.active_share.item() == 1 and output.loss.item() == pytest.approx(0.1)
    semihard = ConditionalTripletLoss(0.1, "semihard")(embeddings, labels)
    assert semihard.active_share.item() == 0 and semihard.loss.item() == 0

    # Similarities on a grid: many differences hit the margin exactly or miss it by one rounding. Such a triplet costs
    # nothing, but did one side count it and the other not, the sum would be wrong by a whole similarity.
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        embeddings = torch.randint(-10, 11, (16, 1, 1), generator=generator) / 10
        labels = torch.randint(0, 3, (16, 1), generator=generator)
        for mining in MINING:
            actual = ConditionalTripletLoss(0.1, mining)(embeddings, labels)
            looked_at = sum(
                int((labels == labels[i]).sum() - 1) * int((labels != labels[i]).sum()) if mining != "hardest" else 1
                for i in range(16)
            )
            total = actual.loss.double() * actual.active_share.double() * looked_at
            expected = loss_by_loops(embeddings.double(), labels, 0.1, mining)
            expected_total = expected.loss * expected.active_share * looked_at
            surplus = (total - expected_total).item()
            if mining == "semihard":  # at its other rim (negative as near as the positive) a triplet costs the margin
                surplus -= 0.1 * round(surplus / 0.1)
            assert abs(surplus) < 1e-3, mining


def test_a_batch_without_any_triplet_costs_nothing_and_can_be_differentiated():
    embeddings = torch.nn.functional.normalize(torch.randn(5, 2, 4), dim=-1).requires_grad_()
    labels = torch.tensor([[0, -1], [1, -1], [2, -1], [3, -1], [-1, 0]])
    for loss in LOSSES:
        output = loss(embeddings, labels)
        assert output.loss.item() == 0 and not output.has_triplets.any()
        (gradient,) = torch.autograd.grad(output.loss, embeddings)
        assert gradient.eq(0).all()


def test_unlabelled_images_and_other_attributes_have_no_influence():
    embeddings, labels = make_batch(seed=1)
    loss = ConditionalTripletLoss(0.2)
    before = loss(embeddings, labels)
    moved = embeddings.clone()
    moved[labels < 0] = -moved[labels < 0]
    torch.testing.assert_close(loss(moved, labels).attribute_loss, before.attribute_loss)
    moved[:, 1] = moved[:, 1].flip(0)
    after = loss(moved, labels).attribute_loss
    torch.testing.assert_close(after[0], before.attribute_loss[0])
    assert after[1] != before.attribute_loss[1]


def test_nan_embeddings_give_a_nan_loss():
    """Sorting and counting must not hide them: the trainer stops on this."""
    embeddings, labels = make_batch(seed=2)
    embeddings[0, 0, 0] = torch.nan
    labels[0, 0] = 0
    for loss in LOSSES:
        assert loss(embeddings, labels).loss.isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(dtype):
    embeddings, labels = make_batch(seed=3, batch=64, dtype=torch.float32)
    half = embeddings.to(dtype).requires_grad_()
    for loss in LOSSES:
        with torch.autocast("cpu", torch.bfloat16):
            output = loss(half, labels)
        expected = loss(half.detach().float(), labels)
        assert output.loss.dtype == torch.float32
        torch.testing.assert_close(output.loss.detach(), expected.loss)
        (gradient,) = torch.autograd.grad(output.loss, half)
        assert gradient.dtype == dtype and torch.isfinite(gradient).all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_memory_is_quadratic(loss):
    """512 images and 8 attributes hold about 10^8 triplets: they must not be formed. The peak of torch's tensors."""
    embeddings = torch.nn.functional.normalize(torch.randn(512, 8, 32), dim=-1).requires_grad_()
    labels = torch.randint(0, 6, (512, 8))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss(embeddings, labels).loss.backward()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 8 * 512 * 512 * 4 < peak < 300 * 2**20, f"{peak / 2**20:.0f} MiB"


def test_explicit_triplets_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    anchor, positive, negative = (
        torch.nn.functional.normalize(torch.randn(20, 5, generator=generator, dtype=torch.float64), dim=-1)
        for _ in range(3)
    )
    ids = torch.arange(20) % 3
    output = explicit_triplet_loss(anchor, positive, negative, 0.3, attribute_ids=ids, num_attributes=4)
    near = [float(a @ p) for a, p in zip(anchor, positive, strict=True)]
    far = [float(a @ n) for a, n in zip(anchor, negative, strict=True)]
    costs = [max(0.0, n - p + 0.3) for p, n in zip(near, far, strict=True)]
    active = [cost for cost in costs if cost > 0]
    assert 0 < len(active) < 20
    assert output.loss.item() == pytest.approx(sum(active) / len(active))
    assert output.has_triplets.tolist() == [True, True, True, False]
    for a in range(3):
        mine = range(a, 20, 3)
        of_attribute = [costs[i] for i in mine if costs[i] > 0]
        assert output.attribute_loss[a].item() == pytest.approx(sum(of_attribute) / len(of_attribute))
        assert output.active_share[a].item() == pytest.approx(len(of_attribute) / len(mine))
        assert output.positive_similarity[a].item() == pytest.approx(sum(near[i] for i in mine) / len(mine))
        assert output.negative_similarity[a].item() == pytest.approx(sum(far[i] for i in mine) / len(mine))

    easy = explicit_triplet_loss(anchor.requires_grad_(), anchor.detach(), -anchor.detach(), 0.3)
    easy.loss.backward()
    assert easy.loss.item() == 0 and easy.active_share.item() == 0 and anchor.grad.eq(0).all()
    assert explicit_triplet_loss(anchor * torch.nan, positive, negative, 0.3).loss.isnan()


def test_wrong_arguments_say_what_is_allowed():
    with pytest.raises(ValueError, match="all, semihard, hardest, got 'hard'"):
        ConditionalTripletLoss(mining="hard")
    with pytest.raises(ValueError, match="above 0, got -1"):
        ConditionalTripletLoss(margin=-1)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        ConditionalSoftTripletLoss(temperature=0)
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(4,\)"):
        ConditionalTripletLoss()(torch.ones(4, 3), torch.ones(4))
    with pytest.raises(ValueError, match=r"\(4, 3\), \(4, 3\) and \(5, 3\)"):
        explicit_triplet_loss(torch.ones(4, 3), torch.ones(4, 3), torch.ones(5, 3))
