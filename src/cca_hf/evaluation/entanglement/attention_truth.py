"""The share of an attribute's attention on the part of the image that shows the attribute.

The parts of the images must be known, as for the drawn shapes or a data set with masks. Attention is on a grid of
cells, so the share of a map w on a region r is

    share = sum_cell w(cell) cover(cell) / sum_cell w(cell)

with cover the fraction of the cell's area that the region covers. Chance is the share of uniform attention: the
region's fraction of the image area. The receptive field of a cell of a deep map is larger than the cell, so attention
beside a small region may still be caused by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cca_hf.evaluation.arrays import check_finite
from cca_hf.evaluation.text_table import format_table, percent


@dataclass(frozen=True)
class AttentionShare:
    """Means over the images for one attribute; fractions."""

    name: str
    share: float
    chance: float
    spread: float  # standard deviation of `share` over the images
    above_chance: float  # share of the images with more attention on the region than chance


def attention_shares(
    maps: NDArray[np.float32], regions: Mapping[str, NDArray], attributes: list[str]
) -> list[AttentionShare]:
    """The share of each attribute that has regions.

    Args:
        maps: (N, A, heads, h, w) from `CCAModel.attention_maps`, in the order of `attributes`.
        regions: attribute -> (N, H, W), True or 1 where the attribute is, for the whole image in any resolution. An
            attribute without regions is left out.

    Raises:
        ValueError: if shapes do not fit, a region or a map is empty, a map is not finite, or an attribute has no map.
    """
    unknown = [name for name in regions if name not in attributes]
    if unknown:
        raise ValueError(f"no attention maps of {unknown}, only of {attributes}")
    if maps.ndim != 5 or maps.shape[1] != len(attributes):
        raise ValueError(f"maps must have shape (images, {len(attributes)}, heads, h, w), got {maps.shape}")
    check_finite("attention maps", maps)
    shares = []
    for name, region in regions.items():
        if region.ndim != 3 or len(region) != len(maps):
            raise ValueError(f"regions of {name!r} must have shape ({len(maps)}, H, W), got {region.shape}")
        weights = maps[:, attributes.index(name)].mean(axis=1)  # (N, h, w)
        cover = cell_cover(region, weights.shape[1:])
        chance = cover.mean(axis=(1, 2))
        if not chance.all():
            raise ValueError(f"{name!r} has an empty region in image {int(np.argmin(chance))}")
        total = weights.sum(axis=(1, 2))
        if not total.all():
            raise ValueError(f"the attention map of {name!r} in image {int(np.argmin(total))} is 0 everywhere")
        share = (weights * cover).sum(axis=(1, 2)) / total
        figures = share.mean(), chance.mean(), share.std(), (share > chance).mean()
        shares.append(AttentionShare(name, *map(float, figures)))
    return shares


def cell_cover(region: NDArray, grid: tuple[int, int]) -> NDArray[np.float64]:
    """(N, H, W) -> (N, h, w): the covered fraction of each cell's area; a cell may contain parts of pixels."""
    height, width = region.shape[1:]
    rows, columns = _overlaps(height, grid[0]), _overlaps(width, grid[1])  # (h, H), (w, W), in pixels
    covered = np.einsum("hy,nyx,wx->nhw", rows, region.astype(np.float64), columns, optimize=True)
    return covered / (height / grid[0] * width / grid[1])


def shares_table(shares: list[AttentionShare]) -> str:
    """A table for terminals, in percent."""
    rows = [
        [row.name, *map(percent, (row.share, row.chance)), f"{row.share / row.chance:.2f}", percent(row.above_chance)]
        for row in shares
    ]
    header = ["attention in % of", "on its region", "chance", "ratio", "images above chance"]
    return format_table(header, [rows])


def _overlaps(pixels: int, cells: int) -> NDArray[np.float64]:
    """(cells, pixels): the length of a pixel inside a cell, for a row of equal cells."""
    edges = np.linspace(0, pixels, cells + 1)
    start, end = np.arange(pixels), np.arange(pixels) + 1
    return np.clip(np.minimum(edges[1:, None], end) - np.maximum(edges[:-1, None], start), 0, None)
