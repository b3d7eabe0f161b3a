"""What a model confuses, across the whole data set: values that lie together, and images that lie with another value.

In-batch mining finds the hard negatives among the images that happen to be drawn together; these are for drawing them
together. Batches of confusable values are as in Hierarchical Triplet Loss (Ge et al., 2018, arXiv 1810.06951), with
the distances of the values' centroids in the place of its tree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

FILE = "hard_negatives.npz"


@dataclass(frozen=True)
class HardNegatives:
    """For each attribute, in the order of its ids.

    Args:
        epoch: for whose batches they were looked for.
        values: (values, values) float32, the cosine of two values' centroids; -inf where one has no image. None:
            batches take values as they come.
        images: (values, most) int64, rows of the data set with another value, the nearest to the value's centroid
            first; -1 where there are no more. None: batches take none of them.
    """

    epoch: int
    values: tuple[np.ndarray, ...] | None
    images: tuple[np.ndarray, ...] | None

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes one file into a folder that exists."""
        kinds = ("values", "images")
        named = {f"{kind}_{a}": each for kind in kinds for a, each in enumerate(vars(self)[kind] or ())}
        np.savez(Path(folder) / FILE, epoch=self.epoch, **named)

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> "HardNegatives | None":
        """What `save` wrote, or None if it did not."""
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        with np.load(path) as arrays:
            return cls(int(arrays["epoch"]), _numbered(arrays, "values"), _numbered(arrays, "images"))


def _numbered(arrays: Mapping[str, np.ndarray], kind: str) -> tuple[np.ndarray, ...] | None:
    names = sorted((name for name in arrays if name.startswith(f"{kind}_")), key=lambda name: int(name.split("_")[1]))
    return tuple(arrays[name] for name in names) or None


def find_hard_negatives(
    embeddings: np.ndarray, labels: np.ndarray, rows: np.ndarray, *, num_values: Sequence[int], most: int, epoch: int
) -> HardNegatives:
    """
    Args:
        embeddings: (images, attributes, dim), L2-normalised.
        labels: (images, attributes) integers, -1 where not labelled.
        rows: (images,) where they stand in the data set.
        num_values: of each attribute.
        most: images to name for each value.
        epoch: for whose batches.
    """
    values, images = [], []
    for attribute, count in enumerate(num_values):
        known = np.flatnonzero(labels[:, attribute] >= 0)
        vectors, of_value = embeddings[known, attribute].astype(np.float32), labels[known, attribute]  # (n, D), (n,)
        centroids = np.zeros((count, vectors.shape[1]), dtype=np.float32)
        np.add.at(centroids, of_value, vectors)
        present = np.bincount(of_value, minlength=count) > 0
        centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
        values.append(np.where(present[:, None] & present, centroids @ centroids.T, -np.inf).astype(np.float32))
        likeness = np.where(of_value == np.arange(count)[:, None], -np.inf, centroids @ vectors.T)  # (values, n)
        nearest = np.argsort(-likeness, axis=1, kind="stable")[:, :most]
        found = np.take_along_axis(likeness, nearest, axis=1) > -np.inf
        padded = np.full((count, most), -1, dtype=np.int64)
        padded[:, : nearest.shape[1]] = np.where(found & present[:, None], rows[known[nearest]], -1)
        images.append(padded)
    return HardNegatives(epoch, tuple(values), tuple(images))
