"""How well a distance between an outfit and an item completes outfits: three measures, baselines and intervals.

- Fill in the blank: the share of questions whose right choice has the smallest distance. Equal distances share the
  point: m choices at the smallest distance count 1/m.
- Compatibility AUC: the probability that an outfit of a person has a smaller distance than a random one, equal
  distances counted as 1/2. The distance of an outfit is the mean, over its items, of the distance of the item from the
  other items.
- Recall at k: the share of questions whose right item is among the k nearest of its category, of all items in the
  outfits of the split but the given ones. Equal distances count with the probability that a random order has it there.

Protocol: Vasileva et al., "Learning Type-Aware Embeddings for Fashion Compatibility", ECCV 2018; recall: Lin et al.,
CVPR 2020 (CSA-Net). Intervals: the bootstrap over outfits, drawn whole: questions about one outfit are alike.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cca_hf.data.columns import ColumnPlace, check_names
from cca_hf.data.outfits import OutfitDataset, Question
from cca_hf.models.encoding import pixel_batches
from cca_hf.models.images import ImageInput
from cca_hf.models.modeling_outfit import OutfitModel, pair_distances

from .arrays import FloatArray, IntArray, check_finite, check_positive, normalised
from .outfit_result import Figure, OutfitResult

# rows (n,) of the items of an outfit, rows (m,) of candidates -> (m,) distances; smaller is better
Distance = Callable[[IntArray, IntArray], NDArray]
_DRAWS = 1000
_ENDS = (2.5, 97.5)  # percentiles


def evaluate_outfits(
    data: OutfitDataset,
    split: str,
    distance: Distance,
    *,
    within: str | None = None,
    tops: Sequence[int] = (10, 30, 50),
    seed: int = 0,
) -> OutfitResult:
    """Answers the questions of a split, and ranks its outfits and items.

    Args:
        distance: a baseline of this file, or any function of the rows of `data.items`.
        within: column of the items whose value the candidates of recall share. Default: the category.
        tops: the k of recall at k.
        seed: of the draws for the intervals.

    Raises:
        ValueError: for an unknown split or column, a split without questions, or a distance that is not finite.
    """
    data.split_outfits(split)  # raises for an unknown split
    kinds = data.questions_of(split)
    if not kinds:
        raise ValueError(f"the split {split!r} has no fill-in-the-blank questions")
    for k in tops:
        check_positive("tops", k)
    figures = {}
    for kind, questions in kinds.items():
        figures[f"fill_in_the_blank_{kind}"] = _fill_in_the_blank(data, questions, distance, seed)
    if labelled := data.compatibility_of(split):
        outfits = [data.rows(outfit.items) for outfit in labelled]
        scores = -np.array([outfit_distance(outfit, distance) for outfit in outfits])
        labels = np.array([outfit.compatible for outfit in labelled])
        figures["compatibility_auc"] = _compatibility(scores, labels, seed)
    figures |= _recall(data, split, _blanks(kinds), distance, within, tops, seed)
    return OutfitResult(split, figures)


def auc(scores: NDArray, labels: NDArray, weights: NDArray | None = None) -> float:
    """The area under the ROC curve: the share of pairs in which the positive one has the higher score; ties: 1/2.

    Args:
        scores, labels, weights: (n,); labels are true or false.

    Raises:
        ValueError: unless there are both labels.
    """
    _, places = np.unique(scores, return_inverse=True)
    return _auc_of_places(places, labels, np.ones(len(labels)) if weights is None else weights)


def outfit_distance(outfit: IntArray, distance: Distance) -> float:
    """The mean over the items of an outfit of the distance from the other items; `outfit` has their rows (n,).

    Raises:
        ValueError: for an outfit of one item.
    """
    if len(outfit) < 2:
        raise ValueError(f"an outfit of {len(outfit)} item(s) has no distance: it needs two items")
    parts = [_checked(distance, np.delete(outfit, place), outfit[[place]])[0] for place in range(len(outfit))]
    return float(np.mean(parts))


# ---- Distances ----


def chance(outfit: IntArray, candidates: IntArray) -> FloatArray:
    """A distance that knows nothing: all candidates are equal."""
    return np.zeros(len(candidates))


def category_frequency(data: OutfitDataset, split: str = "train") -> Distance:
    """The baseline that looks at categories only: how often a category stands with those of the given items.

    The distance of a candidate is minus the mean over the given items of the share of outfits of the split with the
    category of the item that also have the category of the candidate.
    """
    ids = data.category_ids
    together = np.zeros((len(data.categories), len(data.categories)))
    alone = np.zeros(len(data.categories))
    for outfit in data.split_outfits(split):
        counts = np.bincount(ids[data.rows(outfit)], minlength=len(alone))
        present = counts > 0
        alone += present
        together += np.outer(present, present) & ~np.diag(counts < 2)
    share = together / np.maximum(alone, 1)[:, None]

    def distance(outfit: IntArray, candidates: IntArray) -> FloatArray:
        return -share[ids[outfit][:, None], ids[candidates]].mean(axis=0)

    return distance


def similarity(features: NDArray) -> Distance:
    """The baseline that looks for similar items: 1 minus the mean cosine of a candidate with the given items.

    Args:
        features: (items, dim), such as the pooled output of a frozen backbone.
    """
    vectors = normalised(np.asarray(features), np.float32)

    def distance(outfit: IntArray, candidates: IntArray) -> FloatArray:
        return 1 - vectors[candidates] @ vectors[outfit].mean(axis=0)

    return distance


@torch.inference_mode()
def pooled_features(model: OutfitModel, images: Sequence[ImageInput], *, batch_size: int = 32) -> NDArray:
    """(images, channels) float32: the output of the backbone of a model, for `similarity`.

    A model that was just made by `OutfitModel.from_backbone` has the frozen backbone.
    """
    batches = pixel_batches(model.in_eval_mode(), images, batch_size)
    return np.concatenate(
        [model.get_backbone_features(batch.values)[: len(batch.rows)].float().cpu().numpy() for batch in batches]
    )


def pair_distance(features: NDArray, category_ids: IntArray, pair_weights: NDArray) -> Distance:
    """The distance of an `OutfitModel`: the mean of |v x_item - v x_candidate|^2 over the items.

    Args:
        features: (items, dim), x of each item.
        category_ids: (items,)
        pair_weights: (categories, categories, dim), v of the category of an item and of a candidate.
    """

    def distance(outfit: IntArray, candidates: IntArray) -> NDArray:
        ids = category_ids[outfit], category_ids[candidates]
        return pair_distances(features[outfit], ids[0], features[candidates], ids[1], pair_weights)

    return distance


# ---- The three measures ----


def _fill_in_the_blank(data: OutfitDataset, questions: Sequence[Question], distance: Distance, seed: int) -> Figure:
    points = np.zeros(len(questions))
    for row, question in enumerate(questions):
        distances = _checked(distance, data.rows(question.items), data.rows(question.choices))
        best = distances == distances.min()
        points[row] = best[question.answer] / best.sum()
    expected = float(np.mean([1 / len(question.choices) for question in questions]))
    return _mean_figure(points, _outfits_of(questions), expected, seed)


def _compatibility(scores: FloatArray, labels: NDArray, seed: int) -> Figure:
    _, places = np.unique(scores, return_inverse=True)
    value = _auc_of_places(places, labels, np.ones(len(labels)))
    draws = []
    for counts in _draws(len(labels), seed):
        if counts[labels].any() and counts[~labels].any():
            draws.append(_auc_of_places(places, labels, counts))
    low, high = np.percentile(draws, _ENDS)
    return Figure(value, float(low), float(high), 0.5, len(labels))


def _recall(
    data: OutfitDataset,
    split: str,
    questions: Sequence[Question],
    distance: Distance,
    within: str | None,
    tops: Sequence[int],
    seed: int,
) -> dict[str, Figure]:
    kinds = _codes(data, within)
    candidates = data.item_rows(split)
    found, expected = (np.zeros((len(questions), len(tops))) for _ in range(2))
    for row, question in enumerate(questions):
        given = data.rows(question.items)
        (answer,) = data.rows([question.choices[question.answer]])
        pool = candidates[(kinds[candidates] == kinds[answer]) & ~np.isin(candidates, given) & (candidates != answer)]
        distances = _checked(distance, given, np.append(pool, answer))
        nearer, equal = (distances[:-1] < distances[-1]).sum(), (distances == distances[-1]).sum()
        found[row] = ((np.asarray(tops) - nearer) / equal).clip(0, 1)
        expected[row] = (np.asarray(tops) / len(distances)).clip(max=1)
    outfits = _outfits_of(questions)
    return {
        f"recall_at_{k}": _mean_figure(found[:, place], outfits, float(expected[:, place].mean()), seed)
        for place, k in enumerate(tops)
    }


def _codes(data: OutfitDataset, column: str | None) -> IntArray:
    """(items,) equal numbers for equal values of a column."""
    if column is None:
        return data.category_ids
    check_names("column", [column], data.items.column_names, "the items: ")
    values = ColumnPlace(column).read(data.items).combine_chunks().dictionary_encode()
    return values.indices.fill_null(-1).to_numpy(zero_copy_only=False)


def _checked(distance: Distance, outfit: IntArray, candidates: IntArray) -> NDArray:
    distances = np.asarray(distance(outfit, candidates))
    if distances.shape != candidates.shape:
        raise ValueError(
            f"a distance is a number for each of {len(candidates)} candidates; got the shape {distances.shape}"
        )
    check_finite("distances", distances[:, None])
    return distances


def _blanks(kinds: Mapping[str, Sequence[Question]]) -> list[Question]:
    """The questions without those that differ in their wrong choices only."""
    questions = [question for of_kind in kinds.values() for question in of_kind]
    return list({(question.items, question.choices[question.answer]): question for question in questions}.values())


# ---- Intervals ----


def _outfits_of(questions: Sequence[Question]) -> IntArray:
    """(questions,) the number of the outfit that a question is about: its items and the right answer."""
    numbers: dict[frozenset[str], int] = {}
    whole = [frozenset((*question.items, question.choices[question.answer])) for question in questions]
    return np.array([numbers.setdefault(outfit, len(numbers)) for outfit in whole])


def _mean_figure(points: FloatArray, outfits: IntArray, expected: float, seed: int) -> Figure:
    sums, sizes = np.bincount(outfits, points), np.bincount(outfits)
    draws = [counts @ sums / (counts @ sizes) for counts in _draws(len(sizes), seed)]
    low, high = np.percentile(draws, _ENDS)
    return Figure(float(points.mean()), float(low), float(high), expected, len(points))


def _draws(count: int, seed: int) -> Iterator[IntArray]:
    """How often each of `count` outfits is in each of the draws with replacement."""
    random = np.random.default_rng(seed)
    for _ in range(_DRAWS):
        yield np.bincount(random.integers(count, size=count), minlength=count)


def _auc_of_places(places: IntArray, labels: NDArray, weights: NDArray) -> float:
    """The AUC of scores that are given by their places in the order of the distinct scores."""
    labels = np.asarray(labels, dtype=bool)
    positive = np.bincount(places, weights * labels)
    negative = np.bincount(places, weights * ~labels)
    pairs = positive.sum() * negative.sum()
    if not pairs:
        raise ValueError("the AUC needs compatible and incompatible outfits; got only one of them")
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs)
