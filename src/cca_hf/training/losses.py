"""Conditional losses over all labels of the images of a batch, in O(B^2) memory for each attribute.

CSN, ASEN and CCA use the cosine triplet loss with *conditional* negatives: images with another value of the same
attribute. An image without a label for an attribute (-1) is ignored there. With cosine similarities s,

    loss(i, p, n) = max(0, s(i, n) - s(i, p) + margin)                          anchor i, positive p, negative n

No triplet is formed: the loss is piecewise linear in the similarities, so that

    sum of the active triplets = sum_n c(i, n) s(i, n) - sum_p c(i, p) s(i, p) + margin * triplets

where c counts the active triplets (loss above 0) that contain a similarity. Sorting gives c in O(B^2 log B) time. The
counts are constant wherever the loss is differentiable, so the gradient is exactly that of a loop over all triplets.

The smooth form compares each positive pair with all negatives of its anchor at once, and learns more in the same time.
Without conditions it is NT-Xent with labels, also known as SINCERE (Feeney and Hughes 2023,
https://arxiv.org/abs/2309.14277).
"""

from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn

Mining = Literal["all", "semihard", "hardest"]
_count = partial(torch.searchsorted, out_int32=True)  # in each sorted row (last dimension)


class ConditionalLossOutput(NamedTuple):
    """The loss and figures of each attribute (detached, `(attributes,)` each).

    If an attribute has no triplet in the batch, `has_triplets` is False and its other figures are 0.
    """

    loss: torch.Tensor
    attribute_loss: torch.Tensor
    active_share: torch.Tensor  # active triplets / all triplets considered, in [0, 1]
    positive_similarity: torch.Tensor  # mean cosine over all positive pairs
    negative_similarity: torch.Tensor  # mean cosine over all negative pairs
    has_triplets: torch.Tensor  # bool


class TripletCounts(NamedTuple):
    """Active triplets of each pair (as positive and as negative of the row's anchor) and of each attribute."""

    of_positive: torch.Tensor  # (attributes, batch, batch) integers
    of_negative: torch.Tensor  # (attributes, batch, batch) integers
    active: torch.Tensor  # (attributes,) int64: the sum of either
    looked_at: torch.Tensor  # (attributes,) int64


class ConditionalTripletLoss(nn.Module):
    """Triplet loss of all attributes of a batch at once: mean over active triplets, then over attributes.

    Args:
        margin: by how much the cosine similarity of the positive must exceed that of the negative.
        mining: `"all"` uses every triplet with a non-zero loss; `"semihard"` uses those of them whose negative is
            farther than the positive (Schroff et al. 2015); `"hardest"` uses the farthest positive and the nearest
            negative of each anchor (Hermans et al. 2017).
    """

    def __init__(self, margin: float = 0.2, mining: Mining = "all") -> None:
        super().__init__()
        _check_above_zero("margin", margin)
        if mining not in get_args(Mining):
            raise ValueError(f"mining must be one of {', '.join(get_args(Mining))}, got {mining!r}")
        self.margin = margin
        self.mining = mining

    def extra_repr(self) -> str:
        return f"margin={self.margin}, mining={self.mining!r}"

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> ConditionalLossOutput:
        """Computes the loss in at least float32, for embeddings of any dtype and under autocast.

        Args:
            embeddings: `(batch, attributes, dim)`, L2-normalised.
            labels: `(batch, attributes)`, value ids; -1 = not labelled.

        Raises:
            ValueError: if the shapes do not match.
        """
        similarities = cosine_similarities(embeddings, labels)  # (A, B, B)
        positives, negatives = pair_masks(labels)  # (A, B, B) each
        attribute_loss, counts = triplet_losses(similarities, positives, negatives, self.margin, self.mining)
        return with_figures(attribute_loss, similarities, positives, negatives, counts)


class ConditionalSoftTripletLoss(nn.Module):
    """Smooth triplet loss of all attributes of a batch at once: mean over anchors, then over attributes.

    For an anchor i of an attribute, with its positives p and negatives n there,

        loss(i) = mean_p log(1 + sum_n exp((s(i, n) - s(i, p)) / t))

    For small t, the loss of a pair is by how much the hardest negative is nearer than the positive, in units of t.
    Unlike the supervised contrastive loss of Khosla et al. (2020), it does not push an anchor's positives apart.

    Args:
        temperature: t, in units of cosine similarity.
        margin: for the triplets that `active_share` counts, so that it can be compared with the triplet loss.
    """

    def __init__(self, temperature: float = 0.1, margin: float = 0.2) -> None:
        super().__init__()
        _check_above_zero("temperature", temperature)
        _check_above_zero("margin", margin)
        self.temperature = temperature
        self.margin = margin

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, margin={self.margin}"

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> ConditionalLossOutput:
        """As `ConditionalTripletLoss.forward`."""
        similarities = cosine_similarities(embeddings, labels)
        positives, negatives = pair_masks(labels)
        logits = similarities / self.temperature
        anchors = positives.any(2) & negatives.any(2)  # (A, B)
        # without a negative logsumexp would be -inf, and its gradient NaN
        of_negatives = torch.where(anchors[:, :, None], torch.where(negatives, logits, -torch.inf), 0.0).logsumexp(2)
        of_pairs = torch.where(positives, torch.logaddexp(of_negatives[:, :, None], logits) - logits, 0.0)
        losses = torch.where(anchors, of_pairs.sum(2) / positives.sum(2).clamp(min=1), 0.0)  # (A, B)
        attribute_loss = losses.sum(1) / anchors.sum(1).clamp(min=1)
        counts = count_active(similarities, positives, negatives, self.margin)
        return with_figures(attribute_loss, similarities, positives, negatives, counts)


def triplet_losses(
    similarities: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, margin: float, mining: Mining
) -> tuple[torch.Tensor, TripletCounts]:
    """The mean loss of the active triplets of each attribute, (attributes,), and their counts.

    Args:
        similarities, positives, negatives: `(attributes, anchors, images)`.
    """
    if mining == "hardest":
        counts = count_hardest(similarities, positives, negatives, margin)
    else:
        counts = count_active(similarities, positives, negatives, margin, semihard=mining == "semihard")
    active = counts.active.clamp(min=1).to(similarities.dtype)
    weights = (counts.of_negative - counts.of_positive) / active[:, None, None]  # (A, anchors, images)
    margins = margin * (counts.active > 0).to(similarities.dtype)
    return (weights * similarities).sum((1, 2)) + margins, counts


def explicit_triplet_loss(
    anchor: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor,
    margin: float = 0.2,
    *,
    attribute_ids: torch.Tensor | None = None,
    num_attributes: int = 1,
) -> ConditionalLossOutput:
    """Triplet loss of given triplets (Zappos50K): the mean over all active triplets.

    Args:
        anchor, positive, negative: `(triplets, dim)` each, L2-normalised, conditioned on the attribute of the triplet.
        margin: as in `ConditionalTripletLoss`.
        attribute_ids: `(triplets,)`, for the figures of each of `num_attributes`; they do not change the loss.

    Raises:
        ValueError: if the shapes do not match.
    """
    if not anchor.shape == positive.shape == negative.shape or anchor.dim() != 2:
        raise ValueError(
            "expected anchor, positive and negative of one shape (triplets, dim), "
            f"got {tuple(anchor.shape)}, {tuple(positive.shape)} and {tuple(negative.shape)}"
        )
    with torch.autocast(anchor.device.type, enabled=False):
        anchor, positive, negative = (at_least_fp32(x) for x in (anchor, positive, negative))
        nearer, farther = (anchor * positive).sum(1), (anchor * negative).sum(1)
        losses = torch.relu(farther - nearer + margin)  # (triplets,); NaN stays NaN
    active = losses.detach() > 0
    if attribute_ids is None:
        attribute_ids = torch.zeros(len(losses), dtype=torch.long, device=losses.device)

    def per_attribute(values: torch.Tensor) -> torch.Tensor:
        return losses.new_zeros(num_attributes).index_add(0, attribute_ids, values.detach().to(losses.dtype))

    triplets = per_attribute(torch.ones_like(losses))
    at_least_one = triplets.clamp(min=1)
    return ConditionalLossOutput(
        loss=losses.sum() / active.sum().clamp(min=1),
        attribute_loss=per_attribute(losses) / per_attribute(active).clamp(min=1),
        active_share=per_attribute(active) / at_least_one,
        positive_similarity=per_attribute(nearer) / at_least_one,
        negative_similarity=per_attribute(farther) / at_least_one,
        has_triplets=triplets > 0,
    )


def cosine_similarities(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`(batch, attributes, dim)` L2-normalised -> `(attributes, batch, batch)`, in at least fp32."""
    if embeddings.dim() != 3 or labels.shape != embeddings.shape[:2]:
        raise ValueError(
            "expected embeddings (batch, attributes, dim) and labels (batch, attributes), "
            f"got {tuple(embeddings.shape)} and {tuple(labels.shape)}"
        )
    with torch.autocast(embeddings.device.type, enabled=False):
        per_attribute = at_least_fp32(embeddings).transpose(0, 1)  # (A, B, D)
        return per_attribute @ per_attribute.transpose(1, 2)


def with_figures(
    attribute_loss: torch.Tensor,
    similarities: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    counts: TripletCounts,
) -> ConditionalLossOutput:
    """The mean over the attributes that have triplets, with the figures of each attribute."""
    has_triplets = counts.looked_at > 0
    similarities = similarities.detach()
    return ConditionalLossOutput(
        loss=attribute_loss.sum() / has_triplets.sum().clamp(min=1),
        attribute_loss=attribute_loss.detach(),
        active_share=counts.active.to(similarities.dtype) / counts.looked_at.clamp(min=1),
        positive_similarity=_masked_mean(similarities, positives),
        negative_similarity=_masked_mean(similarities, negatives),
        has_triplets=has_triplets,
    )


def _masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, values, 0).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """Converts to float32, except for float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_above_zero(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def pair_masks(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels `(batch, attributes)`, -1 = not labelled -> positive and negative pairs, `(attributes, batch, batch)`."""
    labels = labels.t().contiguous()  # (A, B)
    labelled = labels >= 0
    both = labelled[:, :, None] & labelled[:, None, :]
    same = labels[:, :, None] == labels[:, None, :]
    itself = torch.eye(labels.shape[1], dtype=torch.bool, device=labels.device)
    return both & same & ~itself, both & ~same


@torch.no_grad()
def count_active(
    similarities: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    margin: float,
    *,
    semihard: bool = False,
) -> TripletCounts:
    """Counts over all triplets; `semihard` excludes triplets whose negative is at least as near as the positive.

    Args:
        similarities, positives, negatives: `(attributes, batch, batch)`, a row for each anchor.
        margin: in units of the similarities.
    """
    # Both sides use the same rounded "positive minus margin", so the two counts always agree.
    threshold = similarities - margin
    sorted_negatives = torch.where(negatives, similarities, -torch.inf).sort(dim=-1).values
    sorted_thresholds = torch.where(positives, threshold, torch.inf).sort(dim=-1).values
    # The infinite padding of a sorted row is on the side that is not counted.
    size = similarities.shape[-1]
    of_positive = size - _count(sorted_negatives, threshold, right=True)  # above the threshold
    of_negative = _count(sorted_thresholds, similarities)  # below the similarity
    if semihard:
        sorted_positives = torch.where(positives, similarities, torch.inf).sort(dim=-1).values
        of_positive -= size - _count(sorted_negatives, similarities)  # at or above
        of_negative -= _count(sorted_positives, similarities, right=True)  # at or below
    of_positive *= positives
    of_negative *= negatives
    looked_at = (positives.sum(2) * negatives.sum(2)).sum(1)
    return TripletCounts(of_positive, of_negative, of_positive.sum((1, 2)), looked_at)


@torch.no_grad()
def count_hardest(
    similarities: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, margin: float
) -> TripletCounts:
    """Counts over one triplet per anchor: its farthest positive and its nearest negative (Hermans et al. 2017)."""
    positive, positive_index = torch.where(positives, similarities, torch.inf).min(dim=2)  # (A, B)
    negative, negative_index = torch.where(negatives, similarities, -torch.inf).max(dim=2)
    anchors = positives.any(2) & negatives.any(2)
    hard = (anchors & (positive - margin < negative)).int()
    zeros = torch.zeros_like(similarities, dtype=torch.int32)
    of_positive = zeros.scatter(2, positive_index[:, :, None], hard[:, :, None])
    of_negative = zeros.scatter(2, negative_index[:, :, None], hard[:, :, None])
    return TripletCounts(of_positive, of_negative, hard.sum(1), anchors.sum(1))
