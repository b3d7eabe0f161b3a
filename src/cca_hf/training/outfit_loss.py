"""The outfit ranking loss of CSA-Net (CVPR 2020, https://arxiv.org/abs/1912.08967), for outfits of any size.

D(O, s) is the mean squared distance of a candidate s from the items of an outfit O, with both embedded under their
pair of categories, see `models/modeling_outfit.py`. With p the item that was left out of the outfit, and N its
negatives,

    loss = max(0, D(O, p) - min over n in N of D(O, n) + margin)

averaged over the outfits that have a negative.
"""

from typing import NamedTuple

import torch
from torch import nn

from .distributed import average_over_processes
from .task import Loss, LossOutput

_EQUAL = 1e-6  # distances below, of positives and negatives: all items have the same embedding


class OutfitLossOutput(NamedTuple):
    """
    Args:
        loss: (outfits,), 0 for an outfit without a negative.
        positive: (outfits,) D(O, p).
        negative: (outfits,) that of the hardest negative; infinite without one.
        has_negative: (outfits,) bool.
    """

    loss: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor
    has_negative: torch.Tensor


def outfit_distances(
    features: torch.Tensor,
    pair_weights: torch.Tensor,
    categories: torch.Tensor,
    outfits: torch.Tensor,
    candidates: torch.Tensor,
) -> torch.Tensor:
    """D(O, s) of each candidate of each outfit, (outfits, candidates); infinite where there is no candidate.

    Args:
        features: (images, dim), x of the images of a batch.
        pair_weights: (categories, categories, dim), v(a, b) for a category a of an item and b of a candidate.
        categories: (images,) ids.
        outfits: (outfits, most items) rows of `features`; -1 behind the items of a smaller outfit.
        candidates: (outfits, most candidates) rows of `features`; -1 where there are fewer.
    """
    is_item, is_candidate = outfits >= 0, candidates >= 0
    items, others = outfits.clamp(min=0), candidates.clamp(min=0)
    pairs = categories[items][:, :, None] * len(pair_weights) + categories[others][:, None]
    # index_select, whose gradient is several times as fast as that of indexing
    weights = pair_weights.flatten(0, 1).index_select(0, pairs.flatten()).unflatten(0, pairs.shape)
    of_items, of_candidates = (
        features.index_select(0, rows.flatten()).unflatten(0, rows.shape) for rows in (items, others)
    )
    differences = of_items[:, :, None] - of_candidates[:, None]  # (O, items, candidates, dim)
    distances = (weights * differences).square().sum(dim=-1)
    total = distances.masked_fill(~is_item[:, :, None], 0).sum(dim=1)
    mean = total / is_item.sum(dim=1, keepdim=True).clamp(min=1)
    return mean.masked_fill(~is_candidate, torch.inf)


def outfit_ranking_loss(distances: torch.Tensor, margin: float = 0.3) -> OutfitLossOutput:
    """The loss from the result of [`outfit_distances`], where the first candidate is the item that was left out."""
    positive, negative = distances[:, 0], distances[:, 1:]
    has_negative = negative.isfinite().any(dim=1)
    hardest = nn.functional.pad(negative, (0, 1), value=torch.inf).amin(dim=1)  # infinite without a negative
    loss = (positive - hardest.where(has_negative, positive.detach()) + margin).clamp(min=0)
    return OutfitLossOutput(loss.where(has_negative, 0), positive, hardest, has_negative)


class OutfitRankingLoss(Loss):
    """The outfit ranking loss of a batch of outfits.

    A batch contains the model's input (`pixel_values` or `backbone_features`) of its images, `categories` (images,),
    `outfits` and `candidates`, as in [`outfit_distances`]. Several processes compute the mean over all their outfits.
    """

    def __init__(self, margin: float = 0.3) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> LossOutput:
        inputs = {name: batch[name] for name in ("pixel_values", "backbone_features") if name in batch}
        output = model(**inputs)
        with torch.autocast(output.features.device.type, enabled=False):
            distances = outfit_distances(
                output.features.float(),
                output.pair_weights.float(),
                *(batch[name] for name in ("categories", "outfits", "candidates")),
            )
            result = outfit_ranking_loss(distances, self.margin)
        # the gradients of the processes are averaged: divided by the same number, they are those of the joined batch
        count = result.has_negative.sum().to(distances.dtype)
        average_over_processes([count])
        loss = result.loss.sum() / count.clamp(min=torch.finfo(count.dtype).tiny)
        return LossOutput(loss, *_figures(result))


@torch.no_grad()
def _figures(result: OutfitLossOutput) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Figures of the outfits with a negative, and whether all embeddings are equal; NaN without such an outfit."""
    compared = result.has_negative
    positive, negative = result.positive[compared], result.negative[compared]
    logs = {
        "first": (positive < negative).float().mean(),  # share of outfits whose item is the nearest candidate
        "active": (result.loss[compared] > 0).float().mean(),
        "positive_distance": positive.mean(),
        "negative_distance": negative.mean(),
    }
    equal = torch.maximum(positive, negative) < _EQUAL
    return logs, equal.all().float().where(compared.any(), torch.nan)
