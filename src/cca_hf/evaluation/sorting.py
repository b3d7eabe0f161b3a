"""How many candidates stand above each relevant one, on an accelerator: by sorting, which is what it does fast."""

from collections.abc import Iterator, Sequence

import torch

from .counting import RankedQuery
from .ranking import IntArray


def rank_by_sorting(similarities: torch.Tensor, columns: Sequence[slice | IntArray]) -> Iterator[RankedQuery]:
    """As `rank_by_counting`, for similarities on any device: one sort and one copy to the CPU for all the queries."""
    in_order = similarities.sort(dim=1).values  # (Q, N)
    asked = [row[_on(similarities.device, which)] for row, which in zip(similarities, columns, strict=True)]
    relevant = [values[values > -torch.inf].sort().values for values in asked]
    below = [torch.searchsorted(row, values) for row, values in zip(in_order, relevant, strict=True)]
    not_above = [torch.searchsorted(row, values, right=True) for row, values in zip(in_order, relevant, strict=True)]
    taken_out = torch.searchsorted(in_order, in_order.new_full((len(in_order), 1), -torch.inf), right=True)[:, 0]

    lengths = [len(values) for values in relevant]
    values = torch.cat(relevant).cpu().split(lengths)
    firsts, lasts = torch.cat(below).cpu().split(lengths), torch.cat(not_above).cpu().split(lengths)
    count = similarities.shape[1]
    for row, first, last, out in zip(values, firsts, lasts, taken_out.tolist(), strict=True):
        yield RankedQuery(count - out, row.numpy(), count - last.numpy(), count - first.numpy())


def _on(device: torch.device, columns: slice | IntArray) -> slice | torch.Tensor:
    return columns if isinstance(columns, slice) else torch.from_numpy(columns).to(device)
