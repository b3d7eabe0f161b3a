"""Triplet accuracy: of ready triplets, how many anchors lie nearer to the close picture than to the far one.

Protocol of CSN and its successors on Zappos50K: a triplet counts if sim(anchor, close) > sim(anchor, far), the cosine
similarity of embeddings conditioned on the triplet's condition. A tie is wrong, so an embedding that is the same for
every picture scores 0, and a random one 1/2. Overall is the micro average, over all triplets; beside it the plain mean
over the conditions.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cca_hf.evaluation.text_table import format_table, percent
from cca_hf.models.whole_files import write_json

from .candidates import to_numpy
from .ranking import IntArray

_CHUNK_BYTES = 64 * 2**20  # of embeddings at a time


@dataclass(frozen=True)
class ConditionAccuracy:
    """The triplets of one condition."""

    name: str
    triplets: int
    correct: int
    ties: int  # among the wrong ones

    @property
    def accuracy(self) -> float:
        return self.correct / self.triplets


@dataclass(frozen=True)
class TripletResult:
    """Triplet accuracy under each condition and over all of them."""

    conditions: tuple[ConditionAccuracy, ...]  # those that any triplet is of
    left_out: int = 0  # triplets of which a picture is missing

    def __getitem__(self, name: str) -> ConditionAccuracy:
        for condition in self.conditions:
            if condition.name == name:
                return condition
        raise KeyError(f"no condition {name!r} in this result, it has {[each.name for each in self.conditions]}")

    @property
    def total(self) -> ConditionAccuracy:
        """All triplets together; its accuracy is the micro average, the figure of the protocol."""
        return ConditionAccuracy(
            "all triplets",
            sum(each.triplets for each in self.conditions),
            sum(each.correct for each in self.conditions),
            sum(each.ties for each in self.conditions),
        )

    def metrics(self) -> dict[str, float]:
        """`triplet_accuracy` over all triplets, `triplet_accuracy_macro` (the plain mean over the conditions),
        `triplet_accuracy_<condition>`, and `triplet_ties`, the share of ties. Fractions in [0, 1]. `coverage` is there
        if triplets were left out.
        """
        metrics = {
            "triplet_accuracy": self.total.accuracy,
            "triplet_accuracy_macro": float(np.mean([each.accuracy for each in self.conditions])),
            "triplet_ties": self.total.ties / self.total.triplets,
            **{f"triplet_accuracy_{each.name}": each.accuracy for each in self.conditions},
        }
        if self.left_out:
            metrics["coverage"] = self.total.triplets / (self.total.triplets + self.left_out)
        return metrics

    def table(self, decimals: int = 1) -> str:
        """A table for terminals, in percent."""

        def row(each: ConditionAccuracy) -> list[str]:
            return [each.name, f"{each.triplets:,}", percent(each.accuracy, decimals), f"{each.ties:,}"]

        mean = percent(self.metrics()["triplet_accuracy_macro"], decimals)
        table = format_table(
            ["condition", "triplets", "accuracy in % (chance 50)", "ties (wrong)"],
            [[row(each) for each in self.conditions], [row(self.total), ["mean", "", mean, ""]]],
        )
        if not self.left_out:
            return table
        listed = self.total.triplets + self.left_out
        return f"{table}\nA subset: {self.left_out:,} of {listed:,} triplets were left out, they lack a picture."

    def to_dict(self) -> dict:
        """Everything as plain Python values, for JSON; `from_dict` reads it back."""
        return asdict(self) | {"metrics": self.metrics()}

    @classmethod
    def from_dict(cls, content: dict) -> "TripletResult":
        """The inverse of `to_dict`."""
        return cls(tuple(ConditionAccuracy(**each) for each in content["conditions"]), content["left_out"])

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict()` to `path`, whole or not at all; missing folders are made."""
        return write_json(self.to_dict(), path)

    @classmethod
    def load_json(cls, path: str | Path) -> "TripletResult":
        """The inverse of `save_json`."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


def triplet_accuracy(
    embeddings: NDArray | torch.Tensor,
    triplets: ArrayLike | torch.Tensor,
    conditions: ArrayLike | torch.Tensor,
    names: Sequence[str],
    *,
    chunk_size: int | None = None,
) -> TripletResult:
    """Scores triplets of pictures that are embedded already, each picture once.

    Args:
        embeddings: (N, C, D), one for each condition in the order of `names`; or (N, D), the same for all. Normalised
            here, so similarity is the cosine.
        triplets: (T, 3) rows of `embeddings`: anchor, close, far.
        conditions: (T,) ids of `names`.
        chunk_size: triplets at a time; by default as many as fit 64 MiB of embeddings.

    Raises:
        ValueError: on shapes that do not fit, rows or conditions that do not exist, embeddings that are not finite,
            a condition called "macro", or without triplets.
    """
    vectors, rows, asked = to_numpy(embeddings), to_numpy(triplets), to_numpy(conditions)
    _check(vectors, rows, asked, names)
    chunk_size = chunk_size or max(1, _CHUNK_BYTES // (3 * 8 * max(vectors.shape[-1], 1)))
    margins = np.concatenate(
        [
            _margins(vectors, rows[start : start + chunk_size], asked[start : start + chunk_size])
            for start in range(0, len(rows), chunk_size)
        ]
    )
    counts, correct, ties = (
        np.bincount(asked[which], minlength=len(names)).tolist()
        for which in (margins > -np.inf, margins > 0, margins == 0)
    )
    return TripletResult(
        tuple(
            ConditionAccuracy(name, counts[place], correct[place], ties[place])
            for place, name in enumerate(names)
            if counts[place]
        )
    )


def _margins(vectors: NDArray, rows: IntArray, asked: IntArray) -> NDArray[np.float64]:
    """(T,) sim(anchor, close) - sim(anchor, far), exactly 0 where close and far are copies."""
    anchor, close, far = (
        _normalised(vectors[column] if vectors.ndim == 2 else vectors[column, asked]) for column in rows.T
    )
    # The difference first: two sums may round differently, a difference of copies cannot.
    return np.einsum("td,td->t", anchor, close - far)


def _normalised(vectors: NDArray) -> NDArray[np.float64]:
    """In double precision; zero vectors stay zero: similar to nothing, tied with everything."""
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def _check(vectors: NDArray, rows: NDArray, asked: NDArray, names: Sequence[str]) -> None:
    if "macro" in names:
        raise ValueError("a condition must not be named 'macro': triplet_accuracy_macro is a metric of its own")
    if vectors.ndim not in (2, 3) or vectors.ndim == 3 and vectors.shape[1] != len(names):
        raise ValueError(
            f"embeddings must have shape (pictures, {len(names)}, dim), the conditions being {', '.join(names)}, "
            f"or (pictures, dim) for one space; got {vectors.shape}"
        )
    if rows.ndim != 2 or rows.shape[1] != 3 or not len(rows):
        raise ValueError(f"triplets must have shape (triplets, 3): anchor, close, far; got {rows.shape}")
    if asked.shape != (len(rows),):
        raise ValueError(f"conditions must have shape ({len(rows)},), one for each triplet; got {asked.shape}")
    for what, ids, allowed in (("triplets", rows, len(vectors)), ("conditions", asked, len(names))):
        if not np.issubdtype(ids.dtype, np.integer) or not 0 <= ids.min() <= ids.max() < allowed:
            raise ValueError(
                f"{what} must be integers from 0 to {allowed - 1}; got {ids.dtype} from {ids.min()} to {ids.max()}"
            )
    if not np.isfinite(vectors).all():
        broken = ~np.isfinite(vectors.reshape(len(vectors), -1)).all(axis=1)
        raise ValueError(f"{broken.sum()} of {len(vectors)} embeddings are not finite, the first is {broken.argmax()}")
