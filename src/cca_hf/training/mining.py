"""Counts the active triplets of a batch for every pair, by sorting and without a list of triplets.

A triplet (anchor i, positive p, negative n) of one attribute is active if s(i, p) - margin < s(i, n). For each
similarity these functions count the active triplets that contain it, in O(B^2 log B) time and O(B^2) memory for each
attribute; a batch of B images has O(B^3) triplets.
"""

from functools import partial
from typing import NamedTuple

import torch

_count = partial(torch.searchsorted, out_int32=True)  # in each sorted row (last dimension)


class TripletCounts(NamedTuple):
    """Active triplets of each pair (as positive and as negative of the row's anchor) and of each attribute."""

    of_positive: torch.Tensor  # (attributes, batch, batch) integers
    of_negative: torch.Tensor  # (attributes, batch, batch) integers
    active: torch.Tensor  # (attributes,) int64: the sum of either
    looked_at: torch.Tensor  # (attributes,) int64


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
