"""How many candidates stand above each relevant one, on an accelerator: by sorting, which is what it does fast."""

from collections.abc import Sequence

import numpy as np
import torch

from .ranking import FloatArray, IntArray, score_ranks


def score_by_sorting(
    similarities: torch.Tensor, columns: Sequence[slice | IntArray], harmonic: FloatArray
) -> FloatArray:
    """As `score_by_counting`, for similarities on any device: one sort and one copy to the CPU for all the queries."""
    in_order = similarities.sort(dim=1).values  # (Q, N)
    asked = [row[_on(similarities.device, which)] for row, which in zip(similarities, columns, strict=True)]
    relevant = [values[values > -torch.inf].sort().values for values in asked]
    below = [torch.searchsorted(row, values) for row, values in zip(in_order, relevant, strict=True)]
    not_above = [torch.searchsorted(row, values, right=True) for row, values in zip(in_order, relevant, strict=True)]

    lengths = [len(values) for values in relevant]
    values = torch.cat(relevant).cpu().split(lengths)
    firsts, lasts = torch.cat(below).cpu().split(lengths), torch.cat(not_above).cpu().split(lengths)
    count = similarities.shape[1]
    scores = [
        score_ranks(row.numpy(), count - last.numpy(), count - first.numpy(), harmonic)
        for row, first, last in zip(values, firsts, lasts, strict=True)
    ]
    return np.array(scores)


def _on(device: torch.device, columns: slice | IntArray) -> slice | torch.Tensor:
    return columns if isinstance(columns, slice) else torch.from_numpy(columns).to(device)
