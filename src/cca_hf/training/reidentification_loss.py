"""The loss of re-identification: a classifier of the training identities behind a BN neck, and batch-hard triplets.

For the embeddings x of a batch, with identities y (Luo et al., Bag of Tricks, CVPR Workshops 2019; TransReID):

    L = cross_entropy(W BN(x), y) + mean_i log(1 + exp(d(i, p) - d(i, n)))

where d is the Euclidean distance, p the farthest image of i's identity in the batch, and n the nearest of another. BN
has a scale and no shift. Images are compared by x later, so neck and classifier are parts of the loss, and the model
is saved without them.

A model with several branches, as DCAL, has the loss 1/2 sum_b (e^-w_b L_b + w_b), w learned.
"""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import nn

from cca_hf.models.image_embedder import features_of
from cca_hf.models.modeling_dcal import draw_partners

from .distributed import gather_with_gradient
from .losses import at_least_fp32
from .task import Loss, LossOutput, OwnWeights

# model, pixel values, identities -> the embeddings of each branch (batch, dim)
Branches = Callable[[nn.Module, torch.Tensor, torch.Tensor], Sequence[torch.Tensor]]

_BN_EPS = 1e-5
_EQUAL = 1e-3  # the largest distance over the mean length, below which all embeddings count as equal


def one_branch(model: nn.Module, pixel_values: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor]:
    """The embedding of any vision model."""
    return (features_of(model(pixel_values=pixel_values)),)


def branches_without_pairs(
    model: nn.Module, pixel_values: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Those of DCAL without PWCA."""
    return model(pixel_values=pixel_values).branch_embeddings


def branches_with_pairs(
    model: nn.Module, pixel_values: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Those of DCAL; the partner of an image is one of another identity."""
    partners = draw_partners(labels, len(labels))
    return model(pixel_values=pixel_values, partners=partners).branch_embeddings


class TripletDistances(NamedTuple):
    """
    Args:
        positive: (batch,) the distance of the farthest image of the same identity.
        negative: (batch,) that of the nearest image of another identity.
        is_anchor: (batch,) bool, whether the batch has both.
        farthest: the largest distance in the batch.
    """

    positive: torch.Tensor
    negative: torch.Tensor
    is_anchor: torch.Tensor
    farthest: torch.Tensor


def batch_hard_distances(embeddings: torch.Tensor, labels: torch.Tensor) -> TripletDistances:
    """The hardest triplet of each image (Hermans et al. 2017), from embeddings (batch, dim) and labels (batch,)."""
    squares = embeddings.square().sum(dim=1)
    squared = squares[:, None] + squares - 2 * embeddings @ embeddings.T
    distances = squared.clamp(min=1e-12).sqrt()  # the root has no gradient at 0
    same = labels[:, None] == labels
    others = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = distances.masked_fill(~others, -torch.inf).amax(dim=1)
    negative = distances.masked_fill(same, torch.inf).amin(dim=1)
    is_anchor = others.any(dim=1) & ~same.all(dim=1)
    return TripletDistances(positive, negative, is_anchor, distances.detach().amax())


def batch_hard_loss(distances: TripletDistances, margin: float | None = None) -> torch.Tensor:
    """The mean over the anchors of log(1 + exp(d_p - d_n)), or of max(0, d_p - d_n + margin); 0 without an anchor."""
    difference = distances.positive[distances.is_anchor] - distances.negative[distances.is_anchor]
    losses = nn.functional.softplus(difference) if margin is None else torch.relu(difference + margin)
    return losses.sum() / max(len(losses), 1)


class IdentityHeads(OwnWeights):
    """Neck and classifier of each branch, and the weights of the branches.

    The neck normalises by the statistics of the batch only. Nothing reads it after the training, so it has no running
    statistics.

    Args:
        num_identities: in the training images.
        dim: width of an embedding.
        head_of_branch: the head of each branch; PWCA of DCAL has that of self-attention: [0, 1, 0].
        label_smoothing: share of the probability of an identity that all identities divide equally.
        margin: of the triplets; None for the smooth form.
        learning_rate: of an Adam, without the Trainer's schedule.
        seed: of the initial classifiers.

    Raises:
        ValueError: for a setting outside its range.
    """

    file_name = "identity_heads.pt"
    absent = "classifiers of identities: resume it by the task that made it"
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        num_identities: int,
        dim: int,
        head_of_branch: Sequence[int] = (0,),
        *,
        label_smoothing: float = 0.1,
        margin: float | None = None,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
        if margin is not None and not margin > 0:
            raise ValueError(f"margin must be above 0, got {margin}")
        self.head_of_branch = list(head_of_branch)
        self.label_smoothing = label_smoothing
        self.margin = margin
        heads = max(self.head_of_branch) + 1
        random = torch.Generator().manual_seed(seed)
        self.neck_scales = nn.Parameter(torch.ones(heads, dim))
        self.classifiers = nn.Parameter(0.001 * torch.randn(heads, num_identities, dim, generator=random))
        several = len(self.head_of_branch) > 1
        self.branch_weights = nn.Parameter(torch.zeros(len(self.head_of_branch))) if several else None
        self.optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate)

    def forward(
        self, branches: Sequence[torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """The loss, its figures, and whether all embeddings are equal; its gradient goes to the embeddings alone.

        While gradients are recorded, those of the heads are collected for `optimizer_step`.

        Args:
            branches: the embeddings of each branch, (batch, dim).
            labels: (batch,) ids of training identities.
        """
        with torch.autocast(labels.device.type, enabled=False):
            branches = [at_least_fp32(embeddings) for embeddings in branches]
            loss, figures, collapsed = self._loss(branches, labels)
            if torch.is_grad_enabled():
                loss = self._collect_gradients(branches, loss)
        return loss, figures, collapsed

    def _loss(
        self, branches: Sequence[torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        identity, triplet = [], []
        hardest = [batch_hard_distances(embeddings, labels) for embeddings in branches]
        for head, embeddings, distances in zip(self.head_of_branch, branches, hardest, strict=True):
            neck = nn.functional.batch_norm(
                embeddings, None, None, self.neck_scales[head], None, training=True, eps=_BN_EPS
            )
            logits = neck @ self.classifiers[head].T
            identity.append(nn.functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing))
            triplet.append(batch_hard_loss(distances, self.margin))
        losses = torch.stack(identity) + torch.stack(triplet)
        if self.branch_weights is None:
            loss = losses[0]
        else:
            loss = (torch.exp(-self.branch_weights) * losses + self.branch_weights).sum() / 2
        with torch.no_grad():
            first = hardest[0]
            figures = {
                "identity_loss": torch.stack(identity).mean(),
                "triplet_loss": torch.stack(triplet).mean(),
                "positive_distance": first.positive[first.is_anchor].mean(),
                "negative_distance": first.negative[first.is_anchor].mean(),
            }
            collapsed = (first.farthest < _EQUAL * branches[0].norm(dim=1).mean()).float()
        return loss, figures, collapsed

    def _collect_gradients(self, branches: Sequence[torch.Tensor], loss: torch.Tensor) -> torch.Tensor:
        """Returns the same loss, linear in the embeddings, with the same gradient there."""
        parameters = [*self.parameters()]
        gradients = torch.autograd.grad(loss, [*branches, *parameters])
        self.collect(parameters, gradients[len(branches) :])
        linear = torch.stack(
            [(embeddings * each).sum() for embeddings, each in zip(branches, gradients, strict=False)]
        ).sum()
        return loss.detach() + linear - linear.detach()

    def _weights(self) -> dict[str, Any]:
        return {"heads": self.state_dict()}

    def _set_weights(self, content: dict[str, Any], folder: str | PathLike[str]) -> None:
        try:
            self.load_state_dict(content["heads"])
        except RuntimeError as error:
            raise ValueError(f"{folder} was made with other identities or another model: {error}") from error


class ReidentificationLoss(Loss):
    """The loss of images with an identity.

    A batch contains `pixel_values` and `labels` (batch,), ids of identities. All processes compute the loss of their
    joined batch.

    Args:
        heads: for the training identities.
        classes: the id of an identity -> its class.
        branches: computes the embeddings.
    """

    class_of: torch.Tensor

    def __init__(self, heads: IdentityHeads, classes: Mapping[int, int], branches: Branches = one_branch) -> None:
        super().__init__()
        self.heads = heads
        self.branches = branches
        class_of = torch.full((max(classes) + 1,), -1)
        class_of[list(classes)] = torch.tensor([*classes.values()])
        self.register_buffer("class_of", class_of)

    def forward(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> LossOutput:
        labels = self.class_of[batch["labels"]]
        embeddings = self.branches(model, batch["pixel_values"], labels)
        loss, figures, collapsed = self.heads(
            [gather_with_gradient(each) for each in embeddings], gather_with_gradient(labels)
        )
        return LossOutput(loss, figures, collapsed)
