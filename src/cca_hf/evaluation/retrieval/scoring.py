"""From similarities to exact scores: sorted on any device, or counted in compiled loops if numba is installed.

A ranking is scored by two counts for each relevant candidate: how many candidates are above it, and how many are not
below it. Sorting the similarities of a query gives both.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cca_hf.evaluation.arrays import FloatArray, IntArray

from .ranking import score_ranks

_FEW = 2048  # candidates: up to this number, sorting is as fast as the compiled loops


def score_queries(
    similarities: NDArray[np.float32] | torch.Tensor, columns: Sequence[slice | IntArray], harmonic: FloatArray
) -> FloatArray:
    """The fields of `QueryScores` for each query, shape (Q, 6).

    Args:
        similarities: (Q, N), a tensor if an accelerator computed them; -inf = the candidate is left out. An array is
            sorted in place.
        columns: the columns of the relevant candidates of each query, including those that are left out.
        harmonic: H_0 ... H_N at least.
    """
    relevant: list[Any] = [row[which] for row, which in zip(similarities, columns, strict=True)]
    relevant = [values[values > -np.inf] for values in relevant]
    if isinstance(similarities, np.ndarray):
        score_rows = _compiled() if similarities.shape[1] > _FEW else None
        if score_rows is not None:
            stops = np.cumsum([len(values) for values in relevant])
            return score_rows(similarities, np.concatenate(relevant), stops, harmonic)
        search: Callable[..., Any] = np.searchsorted
        similarities.sort(axis=1)
        for values in relevant:
            values.sort()
    else:
        search = torch.searchsorted
        similarities = similarities.sort(dim=1).values
        relevant = [values.sort().values for values in relevant]
    below = [search(row, values, side="left") for row, values in zip(similarities, relevant, strict=True)]
    not_above = [search(row, values, side="right") for row, values in zip(similarities, relevant, strict=True)]
    count = similarities.shape[1]
    counts = zip(*map(_on_cpu, (relevant, not_above, below)), strict=True)
    return np.array([score_ranks(values, count - last, count - first, harmonic) for values, last, first in counts])


def _compiled() -> Callable[[NDArray, NDArray, IntArray, FloatArray], FloatArray] | None:
    try:
        from .compiled_counting import score_rows
    except (ImportError, RuntimeError):  # numba is an extra, and it needs a folder where it can cache compiled code
        return None
    return score_rows


def _on_cpu(rows: list[Any]) -> Sequence[NDArray]:
    """Tensors of any device as arrays, with a single copy; arrays unchanged."""
    if isinstance(rows[0], np.ndarray):
        return rows
    return [part.numpy() for part in torch.cat(rows).cpu().split([len(row) for row in rows])]
