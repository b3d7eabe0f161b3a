"""Checks of arrays (numpy, torch, lists): every fault is a ValueError that says what was given."""

from collections.abc import Collection
from numbers import Integral

import numpy as np
import torch
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def to_numpy(array: object) -> NDArray:
    """`array` on the CPU as numpy; half-precision tensors as float32, because numpy has no bfloat16."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        is_half = array.is_floating_point() and array.element_size() < 4
        return (array.float() if is_half else array).numpy()
    return np.asarray(array)


def to_numbers(name: str, array: object) -> NDArray:
    """As [`to_numpy`], for real numbers; see `check_finite` for infinite ones and NaN."""
    numbers = to_numpy(array)
    if numbers.dtype.kind not in "buif":
        raise ValueError(f"{name} must be real numbers, got {numbers.dtype}")
    return numbers


def to_embeddings(name: str, embeddings: object, attributes: Collection[str], kind: str = "attributes") -> NDArray:
    """Embeddings (N, A, D), one for each of the `attributes`, or (N, D), the same for all."""
    vectors = to_numpy(embeddings)
    if vectors.ndim not in (2, 3) or vectors.ndim == 3 and vectors.shape[1] != len(attributes):
        raise ValueError(
            f"{name} must have shape (images, {len(attributes)}, dim), the {kind} being {', '.join(attributes)}, "
            f"or (images, dim) for one space; got {vectors.shape}"
        )
    return to_numbers(name, vectors)


def check_finite(name: str, vectors: NDArray) -> None:
    """Raise if one of the (n, ...) vectors is infinite or NaN."""
    broken = ~np.isfinite(vectors).all(axis=tuple(range(1, vectors.ndim)))
    if broken.any():
        raise ValueError(f"{broken.sum()} of {len(vectors)} {name} are not finite, the first is {broken.argmax()}")


def scaled(vectors: NDArray, dtype: type[np.floating], axis: int | None = None) -> NDArray:
    """Finite numbers times a power of two, which rounds nothing: the largest lies between 0.5 and 1, or all are 0.

    Without it, squares in float32 are infinite for numbers beyond 1e19, and 0 for numbers below 1e-23.

    Args:
        dtype: of the result.
        axis: give every vector along this axis its power of two. Default: one for the whole array.
    """
    kind = np.result_type(vectors.dtype, dtype)
    top, bottom = (limit(axis=axis, keepdims=True, initial=0).astype(kind) for limit in (vectors.max, vectors.min))
    exponents = np.frexp(np.maximum(top, -bottom))[1]
    limit = -np.finfo(kind).minexp  # so that the factor is a normal number; subnormal numbers become 2^-23 at most
    factors = np.ldexp(kind.type(1), -exponents.clip(-limit, limit))
    return (vectors * factors).astype(dtype, copy=False)


def normalised(vectors: NDArray, dtype: type[np.floating]) -> NDArray:
    """Finite (..., D) vectors at length 1; zero vectors stay zero."""
    rows = scaled(vectors, dtype, axis=-1)
    rows /= np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.finfo(dtype).tiny)
    return rows


def to_ids(name: str, array: object, shape: tuple[int, ...], explanation: str = "") -> IntArray:
    """Ids of labels or groups, where -1 means none."""
    ids = to_numpy(array)
    if ids.shape != shape:
        raise ValueError(f"{name} must have shape {shape}{explanation}, got {ids.shape}")
    if ids.size and not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} must be integers (-1 = none), got {ids.dtype}")
    if ids.min(initial=0) < -1:
        raise ValueError(f"{name} must be -1 (none) or at least 0, got {ids.min()}")
    return ids.astype(np.int64)


def to_group_ids(groups: object | None, count: int) -> IntArray:
    """(count,) ids of near copies; all are -1 without groups."""
    return np.full(count, -1) if groups is None else to_ids("groups", groups, (count,))


def members(groups: IntArray) -> tuple[IntArray, IntArray]:
    """(N,) the index of each image's group, and the sizes of the groups; -1 = a group of its own."""
    own = np.where(groups < 0, groups.max(initial=-1) + 1 + np.arange(len(groups)), groups)
    _, member, sizes = np.unique(own, return_inverse=True, return_counts=True)
    return member, sizes


def check_positive(name: str, number: object) -> None:
    if not isinstance(number, Integral) or number < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {number!r}")
