"""Does an attribute look where it is? The share of its attention that falls on the part of the picture that shows it.

For pictures whose parts are known (the drawn shapes; any data set with masks). Attention lies on a grid of cells, so
the share of a map w on a region r is

    share = sum_cell w(cell) cover(cell) / sum_cell w(cell)

with cover the part of the cell's area that the region covers. Beside it stands chance, the share of even attention:
the region's part of the picture's area. A cell of a deep map has seen its neighbours, too (its receptive field is
larger than the cell), so that looking beside a small region is not yet looking elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cca_hf.evaluation.text_table import format_table, percent


@dataclass(frozen=True)
class AttentionShare:
    """Of one attribute, as means over the pictures; fractions."""

    name: str
    share: float
    chance: float
    spread: float  # standard deviation of `share` over the pictures
    above_chance: float  # share of the pictures whose attention is on the region more than chance


def attention_shares(
    maps: NDArray[np.float32], regions: Mapping[str, NDArray], attributes: list[str]
) -> list[AttentionShare]:
    """One for each attribute.

    Args:
        maps: (N, A, heads, h, w) as `CCAModel.attention_maps` gives them, in the order of `attributes`.
        regions: attribute -> (N, H, W) where the attribute is, 0 or False where not; any resolution. H and W are the
            whole picture. An attribute without regions is left out.

    Raises:
        ValueError: shapes that do not belong together, an empty region, or an attribute that has no map.
    """
    strangers = [name for name in regions if name not in attributes]
    if strangers:
        raise ValueError(f"there are no attention maps of {strangers}, only of {attributes}")
    if maps.ndim != 5 or maps.shape[1] != len(attributes):
        raise ValueError(f"maps must have shape (images, {len(attributes)}, heads, h, w), got {maps.shape}")
    shares = []
    for name, region in regions.items():
        if region.ndim != 3 or len(region) != len(maps):
            raise ValueError(f"regions of {name!r} must have shape ({len(maps)}, H, W), got {region.shape}")
        weights = maps[:, attributes.index(name)].mean(axis=1)  # (N, h, w)
        cover = cell_cover(region, weights.shape[1:])
        chance = cover.mean(axis=(1, 2))
        if not chance.all():
            raise ValueError(f"{name!r} is nowhere in picture {int(np.argmin(chance))}: its region is empty")
        share = (weights * cover).sum(axis=(1, 2)) / weights.sum(axis=(1, 2))
        shares.append(
            AttentionShare(
                name, float(share.mean()), float(chance.mean()), float(share.std()), float((share > chance).mean())
            )
        )
    return shares


def cell_cover(region: NDArray, grid: tuple[int, int]) -> NDArray[np.float64]:
    """(N, H, W) -> (N, h, w): the part of each cell's area that is covered; cells may cut through pixels."""
    height, width = region.shape[1:]
    rows, columns = _overlaps(height, grid[0]), _overlaps(width, grid[1])  # (h, H), (w, W), in pixels
    covered = np.einsum("hy,nyx,wx->nhw", rows, region.astype(np.float64), columns, optimize=True)
    return covered / (height / grid[0] * width / grid[1])


def shares_table(shares: list[AttentionShare]) -> str:
    """A table for terminals, in percent."""
    rows = [
        [
            each.name,
            percent(each.share),
            percent(each.chance),
            f"{each.share / each.chance:.2f}",
            percent(each.above_chance),
        ]
        for each in shares
    ]
    header = ["attention in % of", "on its region", "chance", "ratio", "pictures above chance"]
    return format_table(header, [rows])


def _overlaps(pixels: int, cells: int) -> NDArray[np.float64]:
    """(cells, pixels) how much of each pixel, by length, lies in each cell of a row of `cells` equal ones."""
    edges = np.linspace(0, pixels, cells + 1)
    start, end = np.arange(pixels), np.arange(pixels) + 1
    return np.clip(np.minimum(edges[1:, None], end) - np.maximum(edges[:-1, None], start), 0, None)
