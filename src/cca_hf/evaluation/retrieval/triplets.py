"""Triplet accuracy: the share of triplets whose anchor is nearer to the close image than to the far image.

Protocol of CSN and its successors on Zappos50K: a triplet is correct if sim(anchor, close) > sim(anchor, far), where
sim is the cosine similarity of embeddings conditioned on the triplet's condition. A tie is wrong, so that an embedding
that is the same for every image scores 0, and a random one 1/2. The main metric is the micro average over all
triplets; the plain mean over the conditions is reported too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray

from cca_hf.data.columns import ColumnPlace, integers, missing_message
from cca_hf.data.schema import IMAGE_COLUMN
from cca_hf.data.triplets import CONDITION_COLUMN, TRIPLET_COLUMNS, distinct_images, to_triplet_dataset
from cca_hf.evaluation.arrays import (
    IntArray,
    check_finite,
    check_positive,
    normalised,
    to_embeddings,
    to_numbers,
    to_numpy,
)
from cca_hf.evaluation.results import Result, ResultCard
from cca_hf.evaluation.text_table import Table, markdown_table, percent
from cca_hf.models.modeling_cca import CCAModel

_CHUNK_BYTES = 64 * 2**20  # of embeddings at a time


@dataclass(frozen=True)
class ConditionAccuracy:
    """Counts of one condition."""

    name: str
    triplets: int
    correct: int
    ties: int  # included in the wrong ones

    @property
    def accuracy(self) -> float:
        return self.correct / self.triplets


@dataclass(frozen=True, repr=False)
class TripletResult(Result):
    """Triplet accuracy under each condition and over all of them."""

    conditions: tuple[ConditionAccuracy, ...]  # only those that have triplets
    left_out: int = 0  # triplets with a missing image

    primary_metric: ClassVar[str] = "triplet_accuracy"

    def __getitem__(self, name: str) -> ConditionAccuracy:
        for condition in self.conditions:
            if condition.name == name:
                return condition
        raise KeyError(f"no condition {name!r} in this result, it has {[each.name for each in self.conditions]}")

    @property
    def total(self) -> ConditionAccuracy:
        """All triplets together; its accuracy is the micro average, the metric of the protocol."""
        counts = [(each.triplets, each.correct, each.ties) for each in self.conditions]
        return ConditionAccuracy("all triplets", *(sum(column) for column in zip(*counts, strict=True)))

    def metrics(self) -> dict[str, float]:
        """All figures by name, as fractions in [0, 1]: `triplet_accuracy` over all triplets, `triplet_accuracy_macro`
        (the mean over the conditions), `triplet_accuracy_<condition>`, `triplet_ties`, and `coverage` of a subset."""
        metrics = {
            "triplet_accuracy": self.total.accuracy,
            "triplet_accuracy_macro": float(np.mean([each.accuracy for each in self.conditions])),
            "triplet_ties": self.total.ties / self.total.triplets,
            **{f"triplet_accuracy_{each.name}": each.accuracy for each in self.conditions},
        }
        if self.left_out:
            metrics["coverage"] = self.total.triplets / (self.total.triplets + self.left_out)
        return metrics

    def as_table(self, decimals: int) -> Table:
        """Accuracies in percent."""
        conditions, total = (
            [[each.name, f"{each.triplets:,}", percent(each.accuracy, decimals), f"{each.ties:,}"] for each in part]
            for part in (self.conditions, [self.total])
        )
        mean = ["mean", "", percent(self.metrics()["triplet_accuracy_macro"], decimals), ""]
        header = ["condition", "triplets", "accuracy in % (chance 50)", "ties (wrong)"]
        listed = self.total.triplets + self.left_out
        note = f"A subset: {self.left_out:,} of {listed:,} triplets were left out because an image is missing."
        return Table(header, [conditions, [*total, mean]], [note] if self.left_out else [])

    def card(self) -> ResultCard:
        table = self.as_table(decimals=1)
        rows = [table.header, *(row for section in table.sections for row in section)]
        markdown = (
            f"The model was evaluated once on {self.total.triplets:,} test triplets, which were not used for model "
            "selection. The accuracy is the share of triplets whose anchor is nearer to the close image than to the "
            "far image.\n\n"
            f"{markdown_table(rows)}\n"
        )
        markdown = "\n".join([markdown, *(f"**{note}**\n" for note in table.notes)])
        titles = {"triplet_accuracy": "triplet accuracy, all triplets"}
        titles |= {f"triplet_accuracy_{each.name}": f"triplet accuracy, {each.name}" for each in self.conditions}
        figures = self.percentages(titles)
        return ResultCard("Triplet accuracy", "attribute-conditioned triplet prediction", markdown, figures)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"metrics": self.metrics()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TripletResult":
        return cls(tuple(ConditionAccuracy(**each) for each in content["conditions"]), content["left_out"])


def triplet_accuracy(
    embeddings: NDArray | torch.Tensor,
    triplets: ArrayLike | torch.Tensor,
    conditions: ArrayLike | torch.Tensor,
    names: Sequence[str],
    *,
    chunk_size: int | None = None,
) -> TripletResult:
    """Score triplets of embedded images.

    Args:
        embeddings: (N, C, D), one for each condition in the order of `names`; or (N, D), the same for all. Normalised
            here, so similarity is the cosine.
        triplets: (T, 3) rows of `embeddings`: anchor, close, far.
        conditions: (T,) ids of `names`.
        chunk_size: triplets at a time; by default as many as fit into 64 MiB of embeddings.

    Raises:
        ValueError: if shapes do not fit, rows or conditions do not exist, embeddings are not finite, a condition is
            called "macro", or there are no triplets.
    """
    vectors = to_embeddings("embeddings", to_numbers("embeddings", embeddings), names, "conditions")
    rows, condition_ids = to_numpy(triplets), to_numpy(conditions)
    _check(vectors, rows, condition_ids, names)
    if chunk_size is not None:
        check_positive("chunk_size", chunk_size)
    chunk_size = chunk_size or max(1, _CHUNK_BYTES // (3 * 8 * max(vectors.shape[-1], 1)))
    chunks = [slice(start, start + chunk_size) for start in range(0, len(rows), chunk_size)]
    margins = np.concatenate([_margins(vectors, rows[chunk], condition_ids[chunk]) for chunk in chunks])
    counts, correct, ties = (
        np.bincount(condition_ids[which], minlength=len(names)).tolist()
        for which in (margins > -np.inf, margins > 0, margins == 0)
    )
    figures = map(ConditionAccuracy, names, counts, correct, ties)
    return TripletResult(tuple(condition for condition in figures if condition.triplets))


def _margins(vectors: NDArray, rows: IntArray, condition_ids: IntArray) -> NDArray[np.float64]:
    """(T,) sim(anchor, close) - sim(anchor, far), exactly 0 where close and far are copies."""
    anchor, close, far = (
        normalised(vectors[column] if vectors.ndim == 2 else vectors[column, condition_ids], np.float64)
        for column in rows.T
    )
    # Subtract first: two sums may round differently, a difference of copies cannot.
    return np.einsum("td,td->t", anchor, close - far)


def _check(vectors: NDArray, rows: NDArray, condition_ids: NDArray, names: Sequence[str]) -> None:
    if "macro" in names:
        raise ValueError("a condition must not be named 'macro': triplet_accuracy_macro is a separate metric")
    if rows.ndim != 2 or rows.shape[1] != 3 or not len(rows):
        raise ValueError(f"triplets must have shape (triplets, 3): anchor, close, far; got {rows.shape}")
    if condition_ids.shape != (len(rows),):
        raise ValueError(f"conditions must have shape ({len(rows)},), one for each triplet; got {condition_ids.shape}")
    for what, ids, allowed in (("triplets", rows, len(vectors)), ("conditions", condition_ids, len(names))):
        is_integer = np.issubdtype(ids.dtype, np.integer)
        if not is_integer or not 0 <= ids.min() <= ids.max() < allowed:
            limits = f" from {ids.min()} to {ids.max()}" if is_integer else ""
            raise ValueError(f"{what} must be integers from 0 to {allowed - 1}; got {ids.dtype}{limits}")
    check_finite("embeddings", vectors)


class TripletEvaluator:
    """Embeds each image of a triplet data set once, under all conditions, and measures the triplet accuracy.

    Args:
        triplets: with the columns `condition`, `anchor`, `positive` (close) and `negative` (far).
        conditions: use only triplets of these conditions. Default: all.
        pictures: if the triplets contain file names instead of images, a data set with the columns `image` and
            `file_name`. Triplets with an image that is missing there are left out and counted.

    Example:

    ```python
    >>> result = TripletEvaluator(load_dataset("me/shoe-triplets", split="test"))(model)
    >>> print(result.table())
    ```
    """

    primary_metric = "triplet_accuracy"

    def __init__(
        self,
        triplets: Dataset,
        conditions: Sequence[str] | None = None,
        *,
        pictures: Dataset | None = None,
        batch_size: int = 64,
        show_progress: bool | None = None,
        num_workers: int | None = None,
    ) -> None:
        """
        Raises:
            ValueError: if a column, a condition or an image is missing, or no triplet is left.
        """
        triplets = to_triplet_dataset(triplets)
        names = triplets.features[CONDITION_COLUMN].names
        ids = integers(ColumnPlace(CONDITION_COLUMN).read(triplets))
        present = [name for place, name in enumerate(names) if (ids == place).any()]
        if conditions is not None:
            if unknown := [name for name in conditions if name not in present]:
                raise ValueError(missing_message("triplets of the condition", unknown, present))
            selected = np.isin(ids, [names.index(name) for name in conditions])
            triplets, ids = triplets.select(np.flatnonzero(selected)), ids[selected]
        self.conditions = present if conditions is None else list(conditions)
        places = {names.index(name): place for place, name in enumerate(self.conditions)}
        self.condition_ids = np.array([places[condition] for condition in ids.tolist()])
        self.images, self.rows = distinct_images(triplets, pictures)
        whole = np.flatnonzero(self.rows.min(axis=1) >= 0)
        self.left_out = len(self.rows) - len(whole)
        if not len(whole):
            raise ValueError(
                f"none of the {self.left_out:,} triplets has its three images; the anchor of the first is "
                f"{triplets[0][TRIPLET_COLUMNS[0]]['path']!r}"
            )
        self.condition_ids, self.rows = self.condition_ids[whole], self.rows[whole]
        self.batch_size, self.show_progress, self.num_workers = batch_size, show_progress, num_workers

    def __call__(self, model: CCAModel) -> TripletResult:
        """
        Raises:
            ValueError: if the model does not know a condition; the message names the closest attribute.
            UnreadableImageError: if an image cannot be read; the message names it.
        """
        embeddings = model.encode(
            self.images[IMAGE_COLUMN],
            self.conditions,
            batch_size=self.batch_size,
            show_progress=self.show_progress,
            num_workers=self.num_workers,
        )
        result = triplet_accuracy(embeddings, self.rows, self.condition_ids, self.conditions)
        return replace(result, left_out=self.left_out)
