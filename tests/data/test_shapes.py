"""The generated data set: balanced, independent, reproducible, and every picture another."""

import io
import itertools

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
from datasets import ClassLabel, Image

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.shapes import SHAPE_ATTRIBUTES, draw_shape, generate_shapes_dataset


@pytest.fixture(scope="module")
def shapes():
    return generate_shapes_dataset(600, image_size=48, seed=0)


def labels_of(dataset):
    return np.stack([np.array(dataset[attribute]) for attribute in SHAPE_ATTRIBUTES], axis=1)


def test_columns_and_sizes(shapes):
    assert {split: len(shapes[split]) for split in shapes} == {"train": 420, "validation": 60, "test": 120}
    assert list(SHAPE_ATTRIBUTES) == ["colour", "shape", "pattern", "size", "background"]
    for attribute, values in SHAPE_ATTRIBUTES.items():
        assert len(values) >= 4
        assert shapes["train"].features[attribute] == ClassLabel(names=values)
    assert shapes["train"][0]["image"].size == shapes["train"][0]["mask"].size == (48, 48)
    assert shapes["train"][0]["image"].mode == "RGB"


def test_every_value_is_equally_frequent_in_every_split(shapes):
    for split in shapes.values():
        for column, values in zip(labels_of(split).T, SHAPE_ATTRIBUTES.values(), strict=True):
            counts = np.bincount(column, minlength=len(values))
            assert counts.max() - counts.min() <= 1


def test_attributes_are_independent(shapes):
    """Chi-squared over its degrees of freedom is 1 on average for independent columns."""
    labels = labels_of(shapes["train"])
    ratios = []
    for first, second in itertools.combinations(range(labels.shape[1]), 2):
        table = np.zeros((labels[:, first].max() + 1, labels[:, second].max() + 1))
        np.add.at(table, (labels[:, first], labels[:, second]), 1)
        expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        ratios.append(((table - expected) ** 2 / expected).sum() / freedom)
    assert max(ratios) < 2.2 and np.mean(ratios) < 1.4


def test_the_same_seed_draws_the_same():
    shapes, again, other = (generate_shapes_dataset(120, image_size=32, seed=seed) for seed in (0, 0, 1))
    for split in shapes:
        encoded, repeated, different = (
            [row["bytes"] for row in source[split].cast_column("image", Image(decode=False))["image"]]
            for source in (shapes, again, other)
        )
        assert encoded == repeated
        assert not set(encoded) & set(different)


def test_every_picture_is_another(shapes):
    encoded = [
        row["bytes"] for split in shapes.values() for row in split.cast_column("image", Image(decode=False))["image"]
    ]
    assert len(set(encoded)) == 600


def test_box_and_mask_tell_where_the_shape_is(shapes):
    radii = {size: [] for size in SHAPE_ATTRIBUTES["size"]}
    for row in shapes["validation"]:
        mask = np.asarray(row["mask"]) > 0
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        left, top, right, bottom = row["bbox"]
        assert 0 <= left < right <= 48 and 0 <= top < bottom <= 48
        assert abs(columns[0] - left) <= 2.5 and abs(columns[-1] + 1 - right) <= 2.5
        assert abs(rows[0] - top) <= 2.5 and abs(rows[-1] + 1 - bottom) <= 2.5
        radii[SHAPE_ATTRIBUTES["size"][row["size"]]].append(mask.sum() ** 0.5)
    for smaller, larger in itertools.pairwise(radii.values()):
        assert max(smaller) < np.mean(larger) and np.mean(smaller) < 0.85 * np.mean(larger)


def test_the_grade_tells_the_size_as_a_number(shapes):
    """Against the drawn area, and in a range of its own for each value of `size`."""
    rows = shapes["train"]
    grades, areas = np.array(rows["size_grade"]), [(np.asarray(mask) > 0).sum() for mask in rows["mask"]]
    smallest, largest = 0.95 * 0.125, 1.05 * 0.325
    for value, radius in enumerate((0.125, 0.18, 0.245, 0.325)):
        of_value = grades[np.array(rows["size"]) == value]
        low, high = ((radius * factor - smallest) / (largest - smallest) for factor in (0.95, 1.05))
        assert low - 1e-6 <= of_value.min() < of_value.max() <= high + 1e-6
        assert np.ptp(of_value) > 0.9 * (high - low)
    circles = np.array(rows["shape"]) == SHAPE_ATTRIBUTES["shape"].index("circle")
    drawn = np.sqrt(np.array(areas)[circles] / np.pi) / 48  # radius as a share of the side
    np.testing.assert_allclose(grades[circles], (drawn - smallest) / (largest - smallest), atol=0.03)


def test_the_shape_has_its_colour_and_the_rest_has_not(shapes):
    """The mean colour inside the mask is nearest to its own value's mean for nearly all plain shapes."""
    means, labels = [], []
    for row in shapes["train"]:
        if SHAPE_ATTRIBUTES["pattern"][row["pattern"]] == "plain":
            means.append(np.asarray(row["image"], dtype=float)[np.asarray(row["mask"]) > 0].mean(axis=0))
            labels.append(row["colour"])
    means, labels = np.array(means), np.array(labels)
    centres = np.stack([means[labels == value].mean(axis=0) for value in range(len(SHAPE_ATTRIBUTES["colour"]))])
    nearest = np.linalg.norm(means[:, None] - centres[None], axis=2).argmin(axis=1)
    assert (nearest == labels).mean() > 0.97


@pytest.mark.parametrize("shape", SHAPE_ATTRIBUTES["shape"])
def test_a_light_rim_sets_every_shape_off_the_background(shape):
    image, _, mask = draw_shape(
        colour="blue",
        shape=shape,
        pattern="plain",
        size="large",
        background="night",
        image_size=96,
        random=np.random.default_rng(0),
    )
    picture = np.asarray(PIL.Image.open(io.BytesIO(image)), dtype=float).min(axis=2)
    mask = PIL.Image.open(io.BytesIO(mask))
    near, nearer = (np.asarray(mask.filter(PIL.ImageFilter.MaxFilter(width))) > 0 for width in (5, 3))
    assert np.median(picture[nearer & (np.asarray(mask) == 0)]) > 150
    assert np.median(picture[near & ~nearer]) > 100
    assert np.median(picture[~near]) < 60


def test_it_loads_as_any_data_set(shapes, tmp_path):
    data = load_attribute_dataset(shapes)
    assert data.attributes == SHAPE_ATTRIBUTES
    assert np.array_equal(data.labels("test"), labels_of(shapes["test"]))
    assert {"bbox", "mask", "size_grade"} <= set(data["test"].column_names)
    shapes.save_to_disk(tmp_path / "shapes")
    assert load_attribute_dataset(tmp_path / "shapes").attributes == SHAPE_ATTRIBUTES


def test_what_is_refused():
    with pytest.raises(ValueError, match="num_images must be at least 100.*got 20"):
        generate_shapes_dataset(20)
    with pytest.raises(ValueError, match="image_size must be at least 32.*got 16"):
        generate_shapes_dataset(100, image_size=16)
