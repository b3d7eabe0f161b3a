"""From embeddings and labels to an EvaluationResult: the maths under every attribute, without a model or its data.

`RetrievalEvaluator` embeds a split and calls it, and so does the Trainer with what it gathered.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cca_hf.data.schema import AttributeDataset

from .candidates import to_numpy
from .metrics import AttributeRetrieval, retrieval_metrics
from .result import AttributeResult, EvaluationResult

logger = logging.getLogger(__name__)

_RESERVED = ("weighted", "macro", "ignore_maybe", "multi_label")


class Gallery(NamedTuple):
    """The images that answer, where the queries are a set of their own."""

    embeddings: NDArray | torch.Tensor  # (G, A, D), or (G, D) where all attributes share one embedding
    labels: NDArray | torch.Tensor  # (G, A), -1 = not labelled
    groups: ArrayLike | None = None  # (G,), -1 = none
    all_values: Mapping[str, NDArray] = MappingProxyType({})  # attribute -> (G, values) bool: what each image shows
    maybe_values: Mapping[str, NDArray] = MappingProxyType({})  # attribute -> (G, values) bool: what each may show

    @classmethod
    def of_split(
        cls, data: AttributeDataset, split: str, embeddings: NDArray | torch.Tensor, labels: NDArray | torch.Tensor
    ) -> "Gallery":
        """With the groups and the sets of values that the data set has of the split."""
        sets = {"all_values": data.value_sets(split, "all"), "maybe_values": data.value_sets(split, "maybe")}
        return cls(embeddings, labels, data.groups(split), **sets)


def evaluate_embeddings(
    embeddings: NDArray | torch.Tensor,
    labels: NDArray | torch.Tensor,
    attributes: Mapping[str, Sequence[str]],
    *,
    groups: ArrayLike | None = None,
    all_values: Mapping[str, NDArray] = MappingProxyType({}),
    maybe_values: Mapping[str, NDArray] = MappingProxyType({}),
    gallery: Gallery | None = None,
    ks: Sequence[int] = (1, 5, 10),
    device: torch.device | str | None = None,
) -> EvaluationResult:
    """Retrieval under every attribute: leave-one-out, or against a gallery.

    Where sets of values are given, `map_multi_label` (a candidate that shares any value is relevant) and
    `map_ignore_maybe` (a candidate that may show the query's label is taken out) stand beside the protocol's `map`.
    An attribute without sets of its own has in them what it has in `map`.

    Args:
        embeddings: (N, A, D), one for each attribute in the order of `attributes`; or (N, D), the same for all.
        labels: (N, A) value ids, -1 = not labelled.
        attributes: attribute name -> value names in id order.
        groups: (N,) ids of near copies, which are no answer to each other; -1 = none.
        all_values, maybe_values: attribute -> (N, values) booleans, the values that an image shows (its label is one
            in any case) and those that it may show, as `AttributeDataset.value_sets` reads them. Of the second only
            the candidates' count: with a gallery, its own.
        gallery: the candidates, in the same shapes.
        device: of an accelerator that ranks them; see [`retrieval_metrics`].

    Raises:
        ValueError: shapes that do not fit each other, labels outside the values, attribute names that would give two
            metrics one name ("weighted", "macro", "macro_...", ...), or no labelled query under any attribute.
    """
    _check_names(attributes)
    queries = _checked("", Gallery(embeddings, labels, groups, all_values, maybe_values), attributes)
    answers = None if gallery is None else _checked("gallery ", Gallery(*gallery), attributes)
    candidates = queries if answers is None else answers
    maybe, several = {*candidates.maybe_values}, {*queries.all_values, *candidates.all_values}
    results, unlabelled = [], []
    for column, (name, values) in enumerate(attributes.items()):
        if not (queries.labels[:, column] >= 0).any():
            unlabelled.append(name)
            continue
        retrieve = partial(_retrieve, queries, answers, column, name, ks, device)
        protocol = retrieve()
        refined = {}
        if maybe:
            own = retrieve(ignore_maybe=True) if name in maybe else protocol
            refined["map_ignore_maybe"] = own
        if several:
            own = retrieve(multi_label=True) if name in several else protocol
            refined["map_multi_label"] = own
        results.append(AttributeResult.from_retrieval(name, values, protocol, refined))
    if not results:
        raise ValueError(
            f"nothing to evaluate: none of the {len(labels)} queries has a label of {', '.join(attributes)}"
        )
    if unlabelled:
        logger.warning("No query is labelled with %s: left out of the evaluation", ", ".join(unlabelled))
    return EvaluationResult(tuple(results), tuple(unlabelled))


def evaluate_splits(
    data: AttributeDataset,
    queries: Gallery,
    gallery: Gallery | None,
    splits: Sequence[str],
    device: torch.device,
) -> EvaluationResult:
    """[`evaluate_embeddings`] of what `Gallery.of_split` made, with the coverage of the `splits` it was made of.

    The embeddings were made on `device`: where that is an accelerator, it ranks them as well.
    """
    result = evaluate_embeddings(
        queries.embeddings,
        queries.labels,
        data.attributes,
        groups=queries.groups,
        all_values=queries.all_values,
        maybe_values=queries.maybe_values,
        gallery=gallery,
        device=None if device.type == "cpu" else device,
    )
    return replace(result, coverage=data.coverage_of(*splits))


def _retrieve(
    queries: Gallery,
    answers: Gallery | None,
    column: int,
    name: str,
    ks: Sequence[int],
    device: torch.device | str | None,
    *,
    ignore_maybe: bool = False,
    multi_label: bool = False,
) -> AttributeRetrieval:
    """Under the attribute of one column."""
    maybe_values = queries.maybe_values if answers is None else answers.maybe_values
    return retrieval_metrics(
        _of_attribute(queries.embeddings, column),
        queries.labels[:, column],
        None if answers is None else _of_attribute(answers.embeddings, column),
        None if answers is None else answers.labels[:, column],
        query_groups=queries.groups,
        gallery_groups=None if answers is None else answers.groups,
        query_values=queries.all_values.get(name) if multi_label else None,
        gallery_values=answers.all_values.get(name) if multi_label and answers is not None else None,
        maybe_values=maybe_values.get(name) if ignore_maybe else None,
        ks=ks,
        device=device,
    )


def _of_attribute(embeddings: NDArray | torch.Tensor, column: int) -> NDArray | torch.Tensor:
    return embeddings if embeddings.ndim == 2 else embeddings[:, column]


def _checked(side: str, images: Gallery, attributes: Mapping[str, Sequence[str]]) -> Gallery:
    """The same with numpy labels, after a look at every shape and label."""
    embeddings, labels = images.embeddings, to_numpy(images.labels)
    if embeddings.ndim not in (2, 3) or embeddings.ndim == 3 and embeddings.shape[1] != len(attributes):
        raise ValueError(
            f"{side}embeddings must have shape (images, {len(attributes)}, dim), the attributes being "
            f"{', '.join(attributes)}, or (images, dim) for one space; got {tuple(embeddings.shape)}"
        )
    expected = (len(embeddings), len(attributes))
    if labels.shape != expected:
        raise ValueError(f"{side}labels must have shape (images, attributes) = {expected}, got {labels.shape}")
    for column, (name, values) in enumerate(attributes.items()):
        highest = labels[:, column].max(initial=-1)
        if highest >= len(values):
            raise ValueError(f"{side}labels of {name!r} go up to {highest}, but it has {len(values)} values (from 0)")
    for kind, sets in (("all_values", images.all_values), ("maybe_values", images.maybe_values)):
        for name, shown in sets.items():
            if name not in attributes:
                raise ValueError(f"{side}{kind} of {name!r}, which is none of {', '.join(attributes)}")
            if np.shape(shown) != (len(labels), len(attributes[name])):
                raise ValueError(
                    f"{side}{kind} of {name!r} must have shape (images, values) = "
                    f"{(len(labels), len(attributes[name]))}, got {np.shape(shown)}"
                )
    return images._replace(labels=labels)


def _check_names(attributes: Mapping[str, Sequence[str]]) -> None:
    if not attributes:
        raise ValueError("no attributes given: there is nothing to evaluate")
    taken = [name for name in attributes if any(name == word or name.startswith(f"{word}_") for word in _RESERVED)]
    if taken:
        raise ValueError(
            f"attributes must not be named {', '.join(map(repr, taken))}: map_{', map_'.join(_RESERVED)} and those "
            "of each attribute are metrics of their own; rename the column"
        )
