"""Retrieval under every attribute, and the values that are confused, from embeddings and labels alone."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cca_hf.data.schema import AttributeDataset
from cca_hf.data.values import same_value
from cca_hf.evaluation.arrays import to_embeddings, to_group_ids, to_ids

from .candidates import Exclusions, Side
from .intervals import FEW_QUERIES, map_intervals
from .metrics import AttributeRetrieval, retrieve
from .result import AttributeResult, EvaluationResult

logger = logging.getLogger(__name__)

_RESERVED = ("weighted", "macro", "ignore_maybe", "multi_label")
_CHUNK = 1024  # queries whose nearest images are searched at once


class Gallery(NamedTuple):
    """Images on either side of a retrieval, under all attributes: the candidates, or the queries themselves."""

    embeddings: NDArray | torch.Tensor  # (G, A, D), or (G, D) where all attributes share one embedding
    labels: NDArray | torch.Tensor  # (G, A), -1 = not labelled
    groups: ArrayLike | None = None  # (G,), -1 = none
    all_values: Mapping[str, NDArray] = MappingProxyType({})  # attribute -> (G, values) bool: what each image shows
    maybe_values: Mapping[str, NDArray] = MappingProxyType({})  # attribute -> (G, values) bool: what each may show

    @classmethod
    def of_split(
        cls, data: AttributeDataset, split: str, embeddings: NDArray | torch.Tensor, labels: NDArray | torch.Tensor
    ) -> "Gallery":
        """With the groups and the sets of values of the split in the data set."""
        sets = {"all_values": data.value_sets(split, "all"), "maybe_values": data.value_sets(split, "maybe")}
        return cls(embeddings, labels, data.groups(split), **sets)

    def rows(self, index: NDArray[np.int64]) -> "Gallery":
        """Some of the images."""
        sets = ({name: shown[index] for name, shown in each.items()} for each in (self.all_values, self.maybe_values))
        groups = None if self.groups is None else np.asarray(self.groups)[index]
        return Gallery(self.embeddings[index], self.labels[index], groups, *sets)

    def checked(self, side: str, attributes: Mapping[str, Sequence[str]]) -> "Gallery":
        """The same in numpy, with every shape and label checked; `side` goes before the names in messages."""
        embeddings = to_embeddings(f"{side}embeddings", self.embeddings, attributes)
        labels = to_ids(f"{side}labels", self.labels, (len(embeddings), len(attributes)), " = (images, attributes)")
        for column, (name, values) in enumerate(attributes.items()):
            highest = labels[:, column].max(initial=-1)
            if highest >= len(values):
                known = f"it has {len(values)} values (from 0)"
                raise ValueError(f"{side}labels of {name!r} go up to {highest}, but {known}")
        for kind, sets in (("all_values", self.all_values), ("maybe_values", self.maybe_values)):
            for name, shown in sets.items():
                if name not in attributes:
                    raise ValueError(f"{side}{kind} of {name!r}, which is none of {', '.join(attributes)}")
                expected, given = (len(labels), len(attributes[name])), np.shape(shown)
                if given != expected:
                    shape = f"shape (images, values) = {expected}"
                    raise ValueError(f"{side}{kind} of {name!r} must have {shape}, got {given}")
        return self._replace(embeddings=embeddings, labels=labels)

    def under(self, side: str, column: int, name: str) -> Side:
        """The images under one attribute, ready to be ranked."""
        embeddings = self.embeddings if self.embeddings.ndim == 2 else self.embeddings[:, column]
        sets = (self.all_values.get(name), self.maybe_values.get(name))
        return Side.of(side, embeddings, self.labels[:, column], self.groups, *sets)


def evaluate_embeddings(
    embeddings: NDArray | torch.Tensor,
    labels: NDArray | torch.Tensor,
    attributes: Mapping[str, Sequence[str]],
    *,
    groups: ArrayLike | None = None,
    all_values: Mapping[str, NDArray] = MappingProxyType({}),
    maybe_values: Mapping[str, NDArray] = MappingProxyType({}),
    gallery: Gallery | None = None,
    known_values: Mapping[str, Sequence[str]] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    device: torch.device | str | None = None,
) -> EvaluationResult:
    """Retrieval under every attribute: leave-one-out, or against a gallery.

    With sets of values, the result also has `map_multi_label` (a candidate that shares any value is relevant) and
    `map_ignore_maybe` (a candidate that may show the query's label is left out). For an attribute without sets, both
    equal `map`.

    With fewer than `FEW_QUERIES` images on the side of the queries, the result has intervals of the mAP; see
    `intervals.py`.

    Args:
        embeddings: (N, A, D), one for each attribute in the order of `attributes`; or (N, D), the same for all.
        labels: (N, A) value ids, -1 = not labelled.
        attributes: attribute name -> value names in id order.
        groups: (N,) ids of near copies, which are not candidates for each other; -1 = none.
        all_values, maybe_values: attribute -> (N, values) booleans, the values that an image shows (always including
            its label) and those that it may show, from `AttributeDataset.value_sets`. Only the `maybe_values` of the
            candidates are used.
        gallery: the candidates, in the same shapes.
        known_values: attribute -> names of the values that training images had, `config.known_values` of a model. If
            queries have other values, the result also has `map_known` and `map_new`: the means of the average
            precision over the queries whose value is known, and over the others. The candidates are those of `map`.
        device: an accelerator that ranks them; see [`retrieval_metrics`].

    Raises:
        ValueError: if shapes do not fit, labels are no values, an attribute has a name that is reserved for metrics
            ("weighted", "macro", "macro_...", ...), or no query is labelled under any attribute.
    """
    if not attributes:
        raise ValueError("no attributes given: there is nothing to evaluate")
    taken = [name for name in attributes if any(name == word or name.startswith(f"{word}_") for word in _RESERVED)]
    if taken:
        raise ValueError(
            f"attributes must not be named {', '.join(map(repr, taken))}: map_{', map_'.join(_RESERVED)} and those "
            "of each attribute are separate metrics; rename the column"
        )
    queries = Gallery(embeddings, labels, groups, all_values, maybe_values).checked("", attributes)
    candidates = queries if gallery is None else Gallery(*gallery).checked("gallery ", attributes)
    maybe, several = {*candidates.maybe_values}, {*queries.all_values, *candidates.all_values}
    results, retrievals, unlabelled = [], [], []
    for column, (name, values) in enumerate(attributes.items()):
        if not (queries.labels[:, column] >= 0).any():
            unlabelled.append(name)
            continue
        sides = [queries.under("query", column, name)]
        if gallery is not None:
            sides.append(candidates.under("gallery", column, name))
        rank = partial(_retrieve, sides, ks, device)
        protocol = rank()
        refined = {}
        if maybe:
            refined["map_ignore_maybe"] = rank("maybe") if name in maybe else protocol
        if several:
            refined["map_multi_label"] = rank("shown") if name in several else protocol
        new = () if known_values is None else unknown_values(values, known_values.get(name, ()))
        results.append(AttributeResult.from_retrieval(name, values, protocol, refined, new))
        retrievals.append(protocol)
    if not results:
        names = ", ".join(attributes)
        raise ValueError(f"nothing to evaluate: none of the {len(labels)} queries has a label of {names}")
    if unlabelled:
        logger.warning("No query is labelled with %s: left out of the evaluation", ", ".join(unlabelled))
    result = EvaluationResult(tuple(results), tuple(unlabelled))
    few = len(queries.labels) < FEW_QUERIES
    return _with_intervals(result, retrievals, to_group_ids(groups, len(queries.labels))) if few else result


def evaluate_splits(
    data: AttributeDataset,
    queries: Gallery,
    gallery: Gallery | None,
    splits: Sequence[str],
    *,
    device: torch.device,
    known_values: Mapping[str, Sequence[str]] | None,
) -> EvaluationResult:
    """[`evaluate_embeddings`] with the coverage of the `splits`, on the `device` that computed the embeddings."""
    ranks = None if device.type == "cpu" else device
    result = evaluate_embeddings(
        **queries._asdict(), attributes=data.attributes, gallery=gallery, known_values=known_values, device=ranks
    )
    return replace(result, coverage=data.coverage_of(*splits))


def unknown_values(values: Sequence[str], known: Sequence[str]) -> list[str]:
    """The `values` that are not `known`, where 1, 1.0 and "1" are one value."""
    keys = {same_value(value) for value in known}
    return [value for value in values if same_value(value) not in keys]


@dataclass(frozen=True)
class Confusion:
    """For a share of the `queries` images of `value`, the nearest other image shows `taken_for`."""

    value: str
    taken_for: str
    queries: int
    share: float


def nearest_confusions(
    embeddings: NDArray | torch.Tensor,
    labels: NDArray | torch.Tensor,
    attributes: Mapping[str, Sequence[str]],
    *,
    groups: ArrayLike | None = None,
    gallery: Gallery | None = None,
    most: int = 3,
) -> dict[str, list[Confusion]]:
    """The `most` frequent confusions of each attribute, in descending order.

    The arguments are as in [`evaluate_embeddings`]. An image and its near copies are no candidates for itself; images
    without a label are left out.
    """
    queries = Gallery(embeddings, labels, groups).checked("", attributes)
    candidates = queries if gallery is None else Gallery(*gallery).checked("gallery ", attributes)
    confusions = {}
    for column, (name, values) in enumerate(attributes.items()):
        sides = [images.under("query", column, name) for images in (queries, candidates)]
        if gallery is None:
            sides = [side.with_every_row_grouped() for side in sides]
        query, candidate = (side.rows(np.flatnonzero(side.labels >= 0)) for side in sides)
        excluded = Exclusions(query, candidate)
        pairs: Counter[tuple[int, int]] = Counter()
        for start in range(0, len(query.labels) if len(candidate.labels) else 0, _CHUNK):
            rows = query.embeddings[start : start + _CHUNK]
            similarities = rows @ candidate.embeddings.T
            similarities[excluded.pairs(start, start + len(rows))] = -np.inf
            ranked = np.flatnonzero(similarities.max(axis=1) > -np.inf)  # queries with a candidate
            nearest = candidate.labels[similarities.argmax(axis=1)[ranked]]
            pairs.update(zip(query.labels[start + ranked].tolist(), nearest.tolist(), strict=True))
        counts = np.bincount(query.labels, minlength=len(values)).tolist()
        wrong = sorted(((pair, count) for pair, count in pairs.items() if pair[0] != pair[1]), key=lambda x: -x[1])
        confusions[name] = [
            Confusion(values[value], values[taken], counts[value], count / counts[value])
            for (value, taken), count in wrong[:most]
        ]
    return confusions


def _retrieve(
    sides: Sequence[Side], ks: Sequence[int], device: torch.device | str | None, sets: str | None = None
) -> AttributeRetrieval:
    """Retrieval under one attribute, by the labels alone or with one kind of `sets` of values."""
    unused: dict[str, Any] = {kind: None for kind in ("shown", "maybe") if kind != sets}
    return retrieve(*(side._replace(**unused) for side in sides), ks=ks, device=device)


def _with_intervals(
    result: EvaluationResult, retrievals: Sequence[AttributeRetrieval], groups: NDArray[np.int64]
) -> EvaluationResult:
    """`groups` (N,) are those of all images on the side of the queries."""
    precisions = np.full((len(groups), len(retrievals)), np.nan)
    for column, retrieval in enumerate(retrievals):
        precisions[retrieval.queries, column] = retrieval.scores.average_precision
    of_each, overall = map_intervals(precisions, groups)
    attributes = zip(result.attributes, of_each, strict=True)
    return replace(
        result,
        attributes=tuple(replace(attribute, map_interval=interval) for attribute, interval in attributes),
        map_interval=overall,
    )
