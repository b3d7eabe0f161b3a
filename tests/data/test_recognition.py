"""Data sets for recognition: kinds of attributes, targets, missing labels and bad input."""

import re

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from PIL import Image

from cca_hf.data.recognition import (
    check_learnable,
    is_labelled,
    load_recognition_dataset,
    with_indicator_columns,
)
from cca_hf.data.recognition_images import PadAndCrop, RecognitionImages
from cca_hf.models.attribute_recognition import encode_labels
from cca_hf.models.modeling_clear import CLEARConfig

NAMES = ["colour", "bag", "items", "age", "hat"]


def rows_of(count: int, **changed) -> list[dict]:
    image = Image.new("RGB", (4, 8))
    colours, bags, ages = ["red", "blue", None], [True, False, None, False], [0, 1, -1]
    items = [["scarf", "belt"], [], None, ["belt"]]
    rows = [
        {
            "image": image,
            "colour": colours[row % 3],
            "bag": bags[row % 4],
            "items": items[row % 4],
            "age": ages[row % 3],
            "hat": ["no", "yes"][row % 2],
        }
        for row in range(count)
    ]
    return [{**row, **changed} for row in rows]


@pytest.fixture(scope="module")
def splits() -> DatasetDict:
    return DatasetDict({name: Dataset.from_list(rows_of(12)) for name in ("train", "validation", "test")})


@pytest.fixture(scope="module")
def data(splits):
    return load_recognition_dataset(splits, NAMES)


def test_kinds_follow_from_the_columns(data):
    assert data.kinds == {
        "colour": "exclusive",
        "bag": "binary",
        "items": "multiple",
        "age": "binary",
        "hat": "binary",
    }
    assert data.attributes["items"] == ["belt", "scarf"] and data.attributes["bag"] == ["false", "true"]
    check_learnable(data)


def test_targets_are_those_of_the_model(data):
    config = CLEARConfig(attributes=NAMES, attribute_values=data.attributes, attribute_kinds=data.kinds)
    labels = {name: [row[name] for row in rows_of(12)] for name in NAMES}
    labels["bag"] = [None if bag is None else str(bag).lower() for bag in labels["bag"]]
    assert data.slices == config.logit_slices
    assert np.array_equal(data.targets("train"), encode_labels(config, labels).numpy())
    assert data.count_values("train")["items"] == {"belt": 6, "scarf": 3}
    assert data.count_values("train")["bag"] == {"false": 6, "true": 3}


def test_the_order_of_a_model_is_kept(splits):
    values = {"items": ["scarf", "belt"], "hat": ["no", "yes"]}
    data = load_recognition_dataset(splits, values, kinds={"items": "multiple", "hat": "exclusive"})
    assert data.targets("test")[:4].tolist() == [[1, 1, 1, 0], [0, 0, 0, 1], [-1, -1, 1, 0], [0, 1, 0, 1]]


def test_training_images_have_their_targets(data):
    images = RecognitionImages(data, "train")
    assert images[0]["labels"].tolist() == data.targets("train")[0].tolist()
    assert images[0]["image"].shape == (8, 4, 3)


def test_an_attribute_without_a_training_label(splits):
    unlabelled = DatasetDict(splits, train=Dataset.from_list(rows_of(12, colour=None)))
    message = "the attribute 'colour' cannot be learned: in the training images it has no label. Label some images, or"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        check_learnable(load_recognition_dataset(unlabelled, ["colour"]))


def test_an_attribute_with_one_value(splits):
    same = DatasetDict(splits, train=Dataset.from_list(rows_of(12, bag=True)))
    with pytest.raises(ValueError, match="'bag' cannot be learned: in the training images it has only 'true'"):
        check_learnable(load_recognition_dataset(same, ["bag"]))


def test_a_test_split_with_a_value_that_is_unknown(splits):
    new = DatasetDict(splits, test=Dataset.from_list(rows_of(3, colour="teal")))
    message = "3 labels of 'colour' in the split 'test' are values that no training image has: 'teal'. Move"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        check_learnable(load_recognition_dataset(new, ["colour"]))
    with pytest.raises(ValueError, match=r"split 'test' contains 1 unexpected value\(s\): .*'teal'"):
        load_recognition_dataset(new, {"colour": ["blue", "red"]}, kinds={"colour": "exclusive"})


def test_an_unknown_attribute_has_the_closest_name(splits):
    with pytest.raises(ValueError, match="no attribute column 'color' \\(did you mean 'colour'\\?\\)"):
        load_recognition_dataset(splits, ["color", "bag"])


def test_a_model_of_several_values_needs_lists(splits):
    with pytest.raises(ValueError, match="any number of values of 'colour': the column must contain lists"):
        load_recognition_dataset(splits, {"colour": ["blue", "red"]}, kinds={"colour": "multiple"})


def test_labelled_rows(splits):
    rows = splits["train"].select(range(4))
    assert is_labelled(rows, "colour").tolist() == [True, True, False, True]
    assert is_labelled(rows, "items").tolist() == [True, True, False, True]
    assert is_labelled(rows, "age").tolist() == [True, True, False, True]
    assert not is_labelled(rows, "sleeve").any()


def test_indicators_become_columns():
    features = Features({"labels": List(Value("int8"), length=2)})
    rows = Dataset.from_dict({"labels": [[0, 1], [1, 1], [0, 0]]}, features=features)
    wide = with_indicator_columns(rows, "labels", ["hat", "bag"])
    assert wide.column_names == ["hat", "bag"] and wide.features["hat"] == ClassLabel(names=["no", "yes"])
    assert wide["hat"][:] == [0, 1, 0] and wide["bag"][:] == [1, 1, 0]
    with pytest.raises(ValueError, match="each list in 'labels' must be 3 numbers, 0 or 1: one for each name"):
        with_indicator_columns(rows, "labels", ["hat", "bag", "coat"])


def test_pad_and_crop_moves_the_image():
    levels = np.arange(1, 10 * 6 * 3 + 1, dtype=np.uint8).reshape(10, 6, 3)
    rng = np.random.default_rng(0)
    assert np.array_equal(PadAndCrop((0, 0), horizontal_flip=0)(levels, rng), levels)
    assert np.array_equal(PadAndCrop((0, 0), horizontal_flip=1)(levels, rng), levels[:, ::-1])
    transform, places = PadAndCrop((0.2, 0.2), horizontal_flip=0), set()
    for _ in range(60):
        changed = transform(levels, rng)
        assert changed.shape == levels.shape
        for top in range(-2, 3):
            for left in range(-1, 2):
                expected = np.zeros((14, 8, 3), np.uint8)
                expected[2:12, 1:7] = levels
                if np.array_equal(changed, expected[2 + top : 12 + top, 1 + left : 7 + left]):
                    places.add((top, left))
    assert len(places) > 10
