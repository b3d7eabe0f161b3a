"""The share of attention on a region: by a loop over pixels, and on maps whose share is known."""

import numpy as np
import pytest

from cca_hf.data.shapes import generate_shapes_dataset, shape_regions
from cca_hf.evaluation.entanglement.attention_truth import attention_shares, cell_cover, shares_table


def test_cover_by_a_loop():
    """Every pixel as 6 x 6 points, each of which lies in one cell."""
    region = np.random.default_rng(0).random((2, 5, 4)) > 0.5
    cover = cell_cover(region, (3, 3))
    counted, inside = np.zeros((2, 3, 3)), np.zeros((2, 3, 3))
    for picture in range(2):
        for y in range(30):
            for x in range(24):
                cell = (picture, y // 10, x // 8)
                counted[cell] += 1
                inside[cell] += region[picture, y // 6, x // 6]
    assert cover == pytest.approx(inside / counted, abs=1e-12)


def test_shares_of_known_maps():
    regions = {"left": np.zeros((2, 8, 8), dtype=bool), "top": np.zeros((2, 8, 8), dtype=bool)}
    regions["left"][:, :, :2] = True
    regions["top"][:, :4] = True
    maps = np.zeros((2, 2, 3, 4, 4), dtype=np.float32)  # pictures, attributes, heads, grid
    maps[:, 0, :, 1, 0] = 0.5  # wholly on the left, and half of the attention rests on CLS
    maps[0, 1] = 1 / 16  # even
    maps[1, 1, :, 3, 3] = 1.0  # wholly off the top
    left, top = attention_shares(maps, regions, ["left", "top"])
    assert (left.share, left.chance, left.above_chance) == (1.0, 0.25, 1.0)
    assert (top.share, top.chance, top.above_chance) == (0.25, 0.5, 0.0)
    assert top.spread == pytest.approx(0.25)
    table = shares_table([left, top])
    assert "left" in table and "100.0" in table and "4.00" in table


def test_heads_count_alike():
    region = {"left": np.tile([True, False], (1, 2, 1))}
    maps = np.zeros((1, 1, 2, 2, 2), dtype=np.float32)
    maps[0, 0, 0, :, 0] = 0.5
    maps[0, 0, 1, :, 1] = 0.5
    assert attention_shares(maps, region, ["left"])[0].share == 0.5


def test_drawn_regions_are_where_the_attributes_are():
    shapes = generate_shapes_dataset(100, image_size=48, seed=3)["train"]
    masks = np.stack([np.asarray(mask) for mask in shapes["mask"]])
    pictures = np.stack([np.asarray(image, dtype=float) for image in shapes["image"]])
    regions = shape_regions(masks)
    assert list(regions) == ["colour", "shape", "pattern", "size", "background"]
    assert all(region.shape == masks.shape and region.any(axis=(1, 2)).all() for region in regions.values())
    assert not (regions["background"] & regions["shape"]).any()
    assert (regions["background"] | regions["size"]).all()
    rim = regions["shape"] & ~regions["colour"]
    assert not (rim & (masks > 0)).any() and rim.any(axis=(1, 2)).all()
    dark = np.array(shapes["background"]) == shapes.features["background"].str2int("night")
    rims, behind = pictures[dark][rim[dark]].mean(), pictures[dark][regions["background"][dark]].mean()
    assert rims > behind + 60  # the rim is light, the night is not


@pytest.mark.parametrize(
    ("regions", "maps", "message"),
    [
        ({"size": np.ones((2, 4, 4))}, (2, 1, 1, 2, 2), r"no attention maps of \['size'\]"),
        ({"colour": np.ones((2, 4, 4))}, (2, 2, 1, 2, 2), r"maps must have shape \(images, 1, heads, h, w\)"),
        ({"colour": np.ones((3, 4, 4))}, (2, 1, 1, 2, 2), r"regions of 'colour' must have shape \(2, H, W\)"),
        ({"colour": np.zeros((2, 4, 4))}, (2, 1, 1, 2, 2), "'colour' has an empty region in image 0"),
    ],
)
def test_wrong_arguments_are_refused(regions, maps, message):
    with pytest.raises(ValueError, match=message):
        attention_shares(np.ones(maps, dtype=np.float32), regions, ["colour"])


@pytest.mark.parametrize(
    ("weight", "message"), [(np.nan, "2 of 2 attention maps are not finite"), (0, "is 0 everywhere")]
)
def test_maps_without_attention_are_refused(weight, message):
    maps = np.full((2, 1, 1, 2, 2), weight, dtype=np.float32)
    with pytest.raises(ValueError, match=message):
        attention_shares(maps, {"colour": np.ones((2, 4, 4))}, ["colour"])
