"""Losses of pytorch-metric-learning in each attribute's space: by hand, in training, with weights of their own."""

import pytest
import torch

from cca_hf.recipes.attribute_trainer import CCATrainer
from cca_hf.training.losses import ConditionalTripletLoss
from cca_hf.training.per_attribute_loss import PerAttributeLoss

from .conftest import EPOCH

losses = pytest.importorskip("pytorch_metric_learning.losses", reason='needs pip install "cca_hf[losses]"')
miners = pytest.importorskip("pytorch_metric_learning.miners")

ATTRIBUTES = {"colour": ["red", "green", "blue"], "shape": ["round", "square"], "brand": ["a", "b", "c", "d"]}
DIM = 8
STATELESS = {
    "multi-similarity": lambda: PerAttributeLoss(losses.MultiSimilarityLoss(), miner=miners.MultiSimilarityMiner()),
    "triplets": lambda: PerAttributeLoss(losses.TripletMarginLoss(), miner=miners.TripletMarginMiner()),
    "contrastive": lambda: PerAttributeLoss(losses.ContrastiveLoss()),
    "hardest": lambda: PerAttributeLoss(losses.NTXentLoss(), miner=miners.BatchHardMiner()),
}
WITH_WEIGHTS = {
    "ProxyAnchor": lambda values: losses.ProxyAnchorLoss(len(values), DIM),
    "ArcFace": lambda values: losses.ArcFaceLoss(len(values), DIM),
    "SoftTriple": lambda values: losses.SoftTripleLoss(len(values), DIM),
    "margins": lambda values: losses.MarginLoss(num_classes=len(values), learn_beta=True),
}


@pytest.fixture
def batch():
    """(24, 3, 8) unit vectors, labels; of the second attribute every third is missing, the third has no pair."""
    generator = torch.Generator().manual_seed(5)
    embeddings = torch.nn.functional.normalize(torch.randn(24, 3, DIM, generator=generator), dim=-1)
    labels = torch.stack([torch.randint(0, n, (24,), generator=generator) for n in (3, 2, 4)], dim=1)
    labels[::3, 1] = -1
    labels[:, 2] = -1
    labels[:4, 2] = torch.arange(4)
    return embeddings.requires_grad_(), labels


def one_each(make) -> dict[str, torch.nn.Module]:
    return {name: make(values) for name, values in ATTRIBUTES.items()}


def by_hand(loss: dict[str, torch.nn.Module], miner, embeddings, labels) -> torch.Tensor:
    """The library called as its documentation says, for the two attributes that have pairs."""
    of_attributes = []
    for column, name in enumerate(["colour", "shape"]):
        rows = [row for row in range(len(labels)) if labels[row, column] >= 0]
        embedded, values = embeddings[rows, column], labels[rows, column]
        mined = None if miner is None else miner(embedded, values)
        of_attributes.append(loss[name](embedded, values, mined))
    return sum(of_attributes) / 2


@pytest.mark.parametrize("case", STATELESS)
def test_it_is_the_library_for_each_attribute(batch, case):
    embeddings, labels = batch
    loss = STATELESS[case]().settle(ATTRIBUTES, DIM)
    found = loss(embeddings, labels)
    (gradient,) = torch.autograd.grad(found.loss, embeddings)
    expected = by_hand(dict.fromkeys(ATTRIBUTES, loss.losses[0]), loss.miner, embeddings, labels)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, embeddings)[0])
    assert found.loss > 0 and found.has_triplets.tolist() == [True, True, False] and found.attribute_loss[2] == 0
    assert gradient[:, 2].eq(0).all() and gradient[::3, 1].eq(0).all()
    told = ConditionalTripletLoss()(embeddings, labels)  # the other figures are those of our own losses
    for name in ("active_share", "positive_similarity", "negative_similarity"):
        assert getattr(found, name).equal(getattr(told, name))


@pytest.mark.parametrize("case", WITH_WEIGHTS)
def test_weights_learn_by_the_gradient_of_one_joint_loss(batch, case):
    """Embeddings and weights learn apart, and yet as in one graph and one step of Adam."""
    embeddings, labels = batch
    torch.manual_seed(0)
    given = one_each(WITH_WEIGHTS[case])
    torch.manual_seed(0)
    joint = one_each(WITH_WEIGHTS[case])
    before = [weight.detach().clone() for weight in given["shape"].parameters()]
    loss = PerAttributeLoss(given, learning_rate=0.05).settle(ATTRIBUTES, DIM)
    found = loss(embeddings, labels)
    (gradient,) = torch.autograd.grad(found.loss, embeddings)

    expected = by_hand(joint, None, embeddings, labels)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, embeddings, retain_graph=True)[0])
    weights = [weight for name in ("colour", "shape") for weight in joint[name].parameters()]
    optimizer = torch.optim.Adam(weights, lr=0.05)
    (2 * expected).backward()  # the sum over the attributes
    optimizer.step()
    loss.optimizer_step()
    learned = [weight for name in ("colour", "shape") for weight in given[name].parameters()]
    for mine, theirs in zip(learned, weights, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert any(not mine.equal(old) for mine, old in zip(given["shape"].parameters(), before, strict=True))
    with torch.no_grad():  # an evaluation moves nothing
        loss(embeddings, labels)
    assert all(mine.equal(theirs) for mine, theirs in zip(learned, [w.detach().clone() for w in learned], strict=True))


def test_a_memory_of_earlier_batches_is_filled_once_a_batch(batch):
    made = one_each(lambda values: losses.CrossBatchMemory(losses.ContrastiveLoss(), DIM, memory_size=100))
    loss = PerAttributeLoss(made).settle(ATTRIBUTES, DIM)
    for _ in range(2):
        loss(*batch).loss.backward()
    assert [made[name].queue_idx for name in ATTRIBUTES] == [48, 32, 0]


def test_a_batch_without_any_pair_has_a_gradient(batch):
    embeddings, labels = batch
    loss = PerAttributeLoss(losses.ContrastiveLoss()).settle(ATTRIBUTES, DIM)
    found = loss(embeddings, torch.full_like(labels, -1))
    found.loss.backward()
    assert found.loss == 0 and embeddings.grad.eq(0).all()


@pytest.mark.parametrize("weights", [False, True], ids=["MultiSimilarity", "ProxyAnchor"])
def test_it_trains(make_model, make_args, shapes, tmp_path, weights):
    """In micro-batches, and on from a checkpoint as if it had not stopped."""

    def trainer(**changes) -> CCATrainer:
        torch.manual_seed(1)
        model = make_model()
        if weights:
            dim = model.config.hidden_size
            loss = PerAttributeLoss(
                {name: losses.ProxyAnchorLoss(len(values), dim) for name, values in shapes.attributes.items()}
            )
        else:
            loss = PerAttributeLoss(losses.MultiSimilarityLoss(), miner=miners.MultiSimilarityMiner())
        args = make_args(eval_strategy="no", head_learning_rate=3e-3, crop_scale=1.0, **changes)
        return CCATrainer(model, args, shapes, loss=loss)

    straight = trainer(num_train_epochs=4, save_strategy="steps", save_steps=3 * EPOCH + 4, micro_batch_size=6)
    straight.train()
    logged = [entry["loss"] for entry in straight.state.log_history if "loss" in entry]
    first, last = (sum(epoch) / EPOCH for epoch in (logged[:EPOCH], logged[-EPOCH:]))
    assert len(logged) == 4 * EPOCH and last < 0.97 * first
    assert (tmp_path / "out" / f"checkpoint-{3 * EPOCH + 4}" / PerAttributeLoss.file_name).exists() == weights

    resumed = trainer(num_train_epochs=4, save_strategy="no", micro_batch_size=6)
    resumed.train(str(tmp_path / "out" / f"checkpoint-{3 * EPOCH + 4}"))
    for name, weight in straight.model.state_dict().items():
        assert weight.equal(resumed.model.state_dict()[name]), name
    assert all(a.equal(b) for a, b in zip(straight.loss.parameters(), resumed.loss.parameters(), strict=True))


def test_what_cannot_be(make_model, make_args, shapes, tmp_path):
    with pytest.raises(TypeError, match="torch.nn.Module.*got 'MultiSimilarityLoss'"):
        PerAttributeLoss("MultiSimilarityLoss")
    with pytest.raises(ValueError, match="at least 0, got -1"):
        PerAttributeLoss(losses.ContrastiveLoss(), learning_rate=-1)
    for shared in (losses.ArcFaceLoss(4, DIM), losses.CrossBatchMemory(losses.ContrastiveLoss(), DIM)):
        with pytest.raises(ValueError, match=rf"which attributes cannot share.*{type(shared).__name__}\(\.\.\."):
            PerAttributeLoss(shared).settle(ATTRIBUTES, DIM)
    with pytest.raises(ValueError, match=r"given for \['colour'\], the data has \['colour', 'shape', 'brand'\]"):
        PerAttributeLoss({"colour": losses.ContrastiveLoss()}).settle(ATTRIBUTES, DIM)
    for made in (lambda _: losses.ArcFaceLoss(2, DIM), lambda values: losses.ProxyAnchorLoss(len(values), 9)):
        with pytest.raises(ValueError, match="'colour', .* does not accept embeddings of 8 numbers with 3 values"):
            PerAttributeLoss(one_each(made)).settle(ATTRIBUTES, DIM)
    with pytest.raises(ValueError, match="must return one number"):
        PerAttributeLoss(torch.nn.CosineSimilarity(dim=0)).settle({"colour": ["red"] * 8}, 4)
    args = make_args(eval_strategy="no")
    with pytest.raises(ValueError, match="loss is for images with labels"):
        CCATrainer(make_model(), args, shapes, triplets=[], loss=PerAttributeLoss(losses.ContrastiveLoss()))


def test_checkpoints_of_other_trainings(tmp_path):
    first = PerAttributeLoss(one_each(WITH_WEIGHTS["ProxyAnchor"])).settle(ATTRIBUTES, DIM)
    (tmp_path / "rng_state.pth").touch()  # of a checkpoint that a training can continue from
    with pytest.raises(ValueError, match="made without losses that learn"):
        first.load(tmp_path)
    first.save(tmp_path)
    other = PerAttributeLoss(one_each(WITH_WEIGHTS["SoftTriple"])).settle(ATTRIBUTES, DIM)
    with pytest.raises(ValueError, match="made with other losses"):
        other.load(tmp_path)
