"""Figures of ranked images for changes of values, their chance levels, and what else changed.

`evaluate_manipulation` of `manipulation.py` explains the figures.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cca_hf.data.value_changes import Changes

from .arrays import BoolArray, IntArray
from .change_search import ChangeSearch
from .manipulation_result import Leakage

NDCG_DEPTH = 30
LEAKAGE_DEPTH = 10


def score_changes(
    changes: Changes, nearest: IntArray, gallery_labels: IntArray, ks: Sequence[int], device: torch.device | str | None
) -> tuple[NDArray, NDArray]:
    """(Q, len(ks) + 3) figures of each change and their chance levels: top-k accuracies, and three times NDCG.

    Args:
        nearest: (Q, depth) rows of the gallery, -1 = none.
    """
    sets = (changes.compared, changes.changed, changes.compared & ~changes.changed)
    found = nearest >= 0
    equal = gallery_labels[nearest] == changes.target_labels[:, None]  # (Q, depth, A)
    counts = [_match_counts(changes, of_set, gallery_labels, device) for of_set in sets]
    exact = (equal | ~changes.compared[:, None]).all(axis=2) & found
    candidates = counts[0].sum(axis=1)
    targets = counts[0][np.arange(len(changes)), changes.compared.sum(axis=1)]
    if not targets.all():
        lacking = int((targets == 0).sum())
        raise ValueError(
            f"{lacking} of {len(changes)} changes have no image with exactly their target labels in the gallery, such "
            f"as that of image {changes.reference[targets.argmin()]}"
        )
    columns = [exact[:, :k].any(axis=1).astype(np.float64) for k in ks]
    chances = [_chance_of_a_hit(candidates, targets, k) for k in ks]
    for of_set, of_gallery in zip(sets, counts, strict=True):
        size = of_set.sum(axis=1)
        relevance = (equal & of_set[:, None] & found[..., None]).sum(axis=2) / np.maximum(size, 1)[:, None]
        figure, chance = _ndcg(relevance[:, :NDCG_DEPTH], of_gallery, size)
        columns.append(np.where(size > 0, figure, np.nan))  # no other attribute is labelled
        chances.append(np.where(size > 0, chance, np.nan))
    return np.stack(columns, axis=1), np.stack(chances, axis=1)


def _match_counts(
    changes: Changes, of_set: BoolArray, gallery_labels: IntArray, device: torch.device | str | None
) -> IntArray:
    """(Q, A + 1) the number of candidates that match 0, 1, ... of the attributes `of_set` (Q, A)."""
    targets = changes.target_labels
    attributes = targets.shape[1]
    starts = np.cumsum([0, *(1 + gallery_labels.max(axis=0, initial=0))])
    # a value is a column; products of one-hot vectors count matches, exactly in float32
    one_hot = torch.zeros(len(gallery_labels), int(starts[-1]), device=device)
    row, place = (gallery_labels >= 0).nonzero()
    one_hot[row, starts[place] + gallery_labels[row, place]] = 1
    wanted = torch.zeros(len(targets), int(starts[-1]), device=device)
    row, place = (of_set & (targets <= gallery_labels.max(axis=0, initial=0))).nonzero()
    wanted[row, starts[place] + targets[row, place]] = 1
    matches = (wanted @ one_hot.T).long()
    missing = torch.as_tensor(gallery_labels < 0, dtype=torch.float32, device=device)
    if missing.any():
        lacks = torch.as_tensor(changes.compared, dtype=torch.float32, device=device) @ missing.T > 0
        matches.masked_fill_(lacks, attributes + 1)
    rows = torch.arange(len(targets), device=device)[:, None] * (attributes + 2)
    counts = torch.bincount((rows + matches).flatten(), minlength=len(targets) * (attributes + 2))
    return counts.view(len(targets), attributes + 2)[:, :-1].cpu().numpy()


def _ndcg(relevance: NDArray, counts: IntArray, size: IntArray) -> tuple[NDArray, NDArray]:
    """NDCG of ranked images, and its expectation over all orders of the gallery.

    Args:
        relevance: (Q, depth) of the ranked images, 0 where there are none.
        counts: (Q, A + 1) the number of images in the gallery that match 0, 1, ... of `size` (Q,) attributes.
    """
    discounts = 1 / np.log2(np.arange(2, relevance.shape[1] + 2))
    summed = np.concatenate([[0], np.cumsum(discounts)])
    levels = np.arange(counts.shape[1]) / np.maximum(size, 1)[:, None]
    ends = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]  # (Q, A + 1): images with at least so many matches
    depth = len(discounts)
    shares = summed[np.minimum(ends, depth)] - summed[np.minimum(ends - counts, depth)]
    ideal = np.maximum((levels * shares).sum(axis=1), np.finfo(float).tiny)
    candidates = counts.sum(axis=1)
    mean = (levels * counts).sum(axis=1) / candidates
    return relevance @ discounts / ideal, mean * summed[np.minimum(candidates, depth)] / ideal


def _chance_of_a_hit(candidates: IntArray, targets: IntArray, k: int) -> NDArray:
    """The probability that k random candidates contain a target: 1 - C(n - m, k) / C(n, k)."""
    misses = np.ones(len(candidates))
    for drawn in range(k):
        rest = np.maximum(candidates - drawn, 1)
        misses *= np.maximum(candidates - targets - drawn, 0) / rest
    return 1 - misses


def measure_leakage(search: ChangeSearch, changes: Changes, nearest: IntArray, attributes: tuple[str, ...]) -> Leakage:
    """What the ten nearest images of changes of one attribute show, without the reference.

    Args:
        nearest: (Q, 11) rows of the gallery.
    """
    references, place_of = np.unique(changes.reference, return_index=True)
    unchanged = changes.select(place_of)
    parts = [
        search.nearest(unchanged.select(part), LEAKAGE_DEPTH + 1, changed=False)
        for part in search.chunks(len(unchanged))
    ]
    before = np.concatenate(parts)[np.searchsorted(references, changes.reference)]
    own = changes.reference if search.holds_references else np.full(len(changes), -1)
    compared, labels = changes.compared, search.labels[changes.reference]
    differs_before, differs_after = (
        _share(search.gallery_labels, _without(each, own), labels, differs=True) for each in (before, nearest)
    )
    shows = _share(search.gallery_labels, _without(nearest, own), changes.target_labels, differs=False)
    count = len(attributes)
    added, shows_new = np.full((count, count), np.nan), np.full(count, np.nan)
    for place in range(count):
        rows = changes.changed[:, place]
        if not rows.any():
            continue
        shows_new[place] = shows[rows, place].mean()
        for other in set(range(count)) - {place}:
            both = rows & compared[:, other]
            if both.any():
                added[place, other] = (differs_after - differs_before)[both, other].mean()
    return Leakage(attributes, added, shows_new)


def _without(nearest: IntArray, own: IntArray) -> IntArray:
    """(Q, 10) the nearest images other than the reference `own` (Q,)."""
    last = np.argsort(nearest == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(nearest, last, axis=1)[:, :LEAKAGE_DEPTH]


def _share(gallery_labels: IntArray, nearest: IntArray, labels: IntArray, *, differs: bool) -> NDArray:
    """(Q, A) the share of the nearest images that have the labels (Q, A), or differ from them."""
    found = nearest >= 0
    equal = gallery_labels[nearest] == labels[:, None]
    counted = ((equal != differs) & found[..., None]).sum(axis=1)
    return counted / np.maximum(found.sum(axis=1), 1)[:, None]
