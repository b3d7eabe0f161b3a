"""What counts as a label, what is refused, and what is said about it."""

import logging
import re

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature

from cca_hf.data.loading import load_attribute_dataset


def dataset_of(encode, features=None, **columns):
    number = len(next(iter(columns.values())))
    pictures = [{"bytes": encode(row, "red"), "path": None} for row in range(number)]
    found = Dataset.from_dict(columns).features
    kinds = Features({"image": ImageFeature(), **found, **(features or {})})
    return Dataset.from_dict({"image": pictures, **columns}, features=kinds)


def labels_of(encode, values, feature=None, name="colour"):
    """The labels and value names that one column gives, in a single split."""
    source = dataset_of(encode, {} if feature is None else {name: feature}, **{name: values})
    data = load_attribute_dataset(source, [name], make_splits=False)
    return data.labels("train")[:, 0].tolist(), data.attributes[name]


# ---- Labels ----


@pytest.mark.parametrize(
    ("values", "feature", "labels", "names"),
    [
        (["b", "a", "b", None], None, [1, 0, 1, -1], ["a", "b"]),
        (["b", "", "a", "a", "  "], None, [1, -1, 0, 0, -1], ["a", "b"]),
        (["b", "a", "a"], Value("large_string"), [1, 0, 0], ["a", "b"]),
        ([10, 9, -1, 9, None], None, [1, 0, -1, 0, -1], ["9", "10"]),
        ([10, 9, 9], Value("int8"), [1, 0, 0], ["9", "10"]),
        ([3.0, None, 1.0, 3.0, float("nan"), -1.0], None, [1, -1, 0, 1, -1, -1], ["1", "3"]),
        ([True, False, None, True], None, [1, 0, -1, 1], ["false", "true"]),
        ([2, 0, None, 2], ClassLabel(names=["z", "y", "x"]), [2, 0, -1, 2], ["z", "y", "x"]),
        ([2, 0, -1, 2], ClassLabel(names=["z", "y", "x"]), [2, 0, -1, 2], ["z", "y", "x"]),
    ],
)
def test_columns_that_hold_labels(encode, values, feature, labels, names):
    assert labels_of(encode, values, feature) == (labels, names)


def test_values_are_united_over_the_splits(encode):
    source = DatasetDict(
        train=dataset_of(encode, colour=["red", "blue", "red"]),
        validation=dataset_of(encode, colour=["green", "green"]),
        test=dataset_of(encode, colour=["azure", "red", None]),
    )
    data = load_attribute_dataset(source, ["colour"])
    assert data.attributes == {"colour": ["azure", "blue", "green", "red"]}
    assert [data.labels(split)[:, 0].tolist() for split in data.splits] == [[3, 1, 3], [2, 2], [0, 3, -1]]


def test_class_labels_that_differ_between_splits_are_united_by_name(encode):
    source = DatasetDict(
        train=dataset_of(encode, {"colour": ClassLabel(names=["red", "blue"])}, colour=[0, 1, 0]),
        validation=dataset_of(encode, {"colour": ClassLabel(names=["blue", "green"])}, colour=[0, 1, -1]),
        test=dataset_of(encode, colour=["red", "blue", "red"]),
    )
    data = load_attribute_dataset(source, ["colour"])
    assert data.attributes == {"colour": ["blue", "green", "red"]}
    assert [data.labels(split)[:, 0].tolist() for split in data.splits] == [[2, 0, 2], [0, 1, -1], [2, 0, 2]]


def test_a_mapping_fixes_the_values_and_their_order(encode):
    source = dataset_of(encode, colour=["red", "blue", "red"])
    values = {"colour": ["yellow", "red", "blue"]}
    data = load_attribute_dataset(source, values, make_splits=False)
    assert data.attributes == values
    assert data.labels("train")[:, 0].tolist() == [1, 2, 1]
    with pytest.raises(
        ValueError, match=r"split 'train' contains 1 unexpected value.*'blue' \(did you mean 'blu'\?\)"
    ):
        load_attribute_dataset(source, {"colour": ["red", "blu"]}, make_splits=False)


def test_without_names_every_class_label_is_an_attribute(encode):
    kinds = {"shape": ClassLabel(names=["round", "flat"]), "colour": ClassLabel(names=["red", "blue"])}
    source = dataset_of(encode, kinds, shape=[0, 1, 0], name=["x", "y", "z"], colour=[1, 1, 0])
    data = load_attribute_dataset(source, make_splits=False)
    assert data.attributes == {"shape": ["round", "flat"], "colour": ["red", "blue"]}
    assert data["train"].column_names == ["image", "shape", "colour", "name"]
    assert list(data["train"]["name"]) == ["x", "y", "z"]


def test_labels_are_read_without_the_pictures(encode):
    """Neither loading nor `labels` may open a picture: here none can be opened."""
    source = dataset_of(encode, colour=["red", "blue"] * 10)
    broken = source.map(lambda row: {"image": {"bytes": b"no picture", "path": None}}, features=source.features)
    data = load_attribute_dataset(broken, ["colour"])
    assert sum(len(data.labels(split)) for split in data.splits) == 20
    assert data.summary().splits["train"].images == 16


def test_another_image_column_is_renamed(encode):
    source = dataset_of(encode, colour=["red", "blue"] * 5).rename_column("image", "photo")
    data = load_attribute_dataset(source, ["colour"], make_splits=False)  # the only column of pictures
    assert data["train"].column_names == ["image", "colour"]
    encoded = source.cast_column("photo", ImageFeature(decode=False))["photo"]
    two = source.add_column("image", list(encoded), feature=ImageFeature())
    with pytest.raises(ValueError, match="image_column is 'photo', but the source also has a column 'image'"):
        load_attribute_dataset(two, ["colour"], image_column="photo")
    three = two.rename_column("image", "back")
    with pytest.raises(ValueError, match=r"several image columns \(photo, back\); choose one with image_column"):
        load_attribute_dataset(three, ["colour"])
    data = load_attribute_dataset(three, ["colour"], image_column="back", make_splits=False)
    assert data["train"].column_names == ["image", "colour", "photo"]


# ---- One reading of a value ----


def labels_of_splits(encode, train, test, **features):
    """Value names, and the labels of both splits."""
    source = DatasetDict(
        train=dataset_of(encode, {"size": features["train"]} if "train" in features else {}, size=train),
        test=dataset_of(encode, {"size": features["test"]} if "test" in features else {}, size=test),
    )
    data = load_attribute_dataset(source, ["size"], make_splits=False)
    return data.attributes["size"], data.labels("train")[:, 0].tolist(), data.labels("test")[:, 0].tolist()


@pytest.mark.parametrize(
    ("train", "test", "names", "train_labels", "test_labels"),
    [
        ([38, 9, 38], ["38", "9", "40"], ["9", "38", "40"], [1, 0, 1], [1, 0, 2]),
        ([38, 9, 38], [38.0, None, 9.0], ["9", "38"], [1, 0, 1], [1, -1, 0]),
        (["38", "9", "38"], [38.0, 9.0, None], ["9", "38"], [1, 0, 1], [1, 0, -1]),
        (["38.0", "9", "9"], ["38", "9", "-1"], ["38", "9"], [0, 1, 1], [0, 1, -1]),
        ([True, False, True], ["True", "false", "TRUE"], ["false", "true"], [1, 0, 1], [1, 0, 1]),
        (["True", "False", "True"], ["True", "False", "?"], ["?", "False", "True"], [2, 1, 2], [2, 1, 0]),
        (["007", "7", "7"], [7, 7, 7], ["007", "7"], [0, 1, 1], [1, 1, 1]),
        (["10", "9", "9"], ["10", "9", "9"], ["10", "9"], [0, 1, 1], [0, 1, 1]),
        (["1.50", "1.5", "1.5"], ["1.5", "1.50", None], ["1.5", "1.50"], [1, 0, 0], [0, 1, -1]),
        ([2**53 + 1, 5, 5], [str(2**53 + 1), "5", "5"], ["5", str(2**53 + 1)], [1, 0, 0], [1, 0, 0]),
    ],
)
def test_a_value_is_the_same_in_all_types(encode, train, test, names, train_labels, test_labels):
    assert labels_of_splits(encode, train, test) == (names, train_labels, test_labels)


def test_values_of_a_trained_model_are_found_in_other_types(encode):
    source = dataset_of(encode, size=[38.0, 9.0, None, 9.0])
    data = load_attribute_dataset(source, {"size": ["38", "9", "37"]}, make_splits=False)
    assert data.labels("train")[:, 0].tolist() == [0, 1, -1, 1]
    source = dataset_of(encode, new=["true", "False", "True", "true"])
    data = load_attribute_dataset(source, {"new": ["True", "False", "true"]}, make_splits=False)  # names of 0.1
    assert data.labels("train")[:, 0].tolist() == [2, 1, 0, 2]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 1e300])
def test_infinite_values_are_refused(encode, value):
    with pytest.raises(ValueError, match="the column 'size' contains infinite or huge numbers"):
        labels_of(encode, [1.0, 1.0, value, None], Value("float64"), "size")


def test_similar_values_are_named(encode, caplog):
    values = ["red", "red ", "Red", "dark  red", "dark red", "7", "007", "blue", "cafe\u0301", "caf\u00e9"]
    with caplog.at_level(logging.WARNING):
        _, names = labels_of(encode, values * 2)
    assert len(names) == 10
    (text,) = [message for message in caplog.messages if "differ only" in message]
    assert text == (
        "the attribute 'colour' has values that differ only in spaces, case or zeros; they stay different values: "
        "'007', '7'; 'Red', 'red', 'red '; 'cafe\u0301', 'caf\u00e9'; 'dark  red', 'dark red'"
    )


def test_values_that_differ_in_more_are_not_named(encode, caplog):
    labels_of(encode, ["red", "reddish", "1.5", "1.50", "10", "1"] * 2)
    assert "differ only" not in caplog.text


def test_groups_are_the_same_in_all_types(encode):
    source = DatasetDict(
        train=dataset_of(encode, colour=["a", "b"] * 2, item=[7, 8, 7, 9]),
        test=dataset_of(encode, colour=["a", "b"] * 2, item=["7", "007", None, "9"]),
        validation=dataset_of(encode, colour=["a", "b"] * 2, item=[None, 8.0, 1.5, 7.0]),
    )
    data = load_attribute_dataset(source, ["colour"], group_column="item", make_splits=False)
    assert data.groups("train").tolist() == [0, 1, 0, 2]
    assert data.groups("test").tolist() == [0, 3, -1, 2]
    assert data.groups("validation").tolist() == [-1, 1, 4, 0]


# ---- Splits and groups ----


def test_missing_splits_are_made_and_said(encode, caplog):
    source = dataset_of(encode, colour=["red", "blue"] * 50, row=list(range(100)))
    with caplog.at_level(logging.WARNING):
        data = load_attribute_dataset(source, ["colour"])
    assert "no validation or test split" in caplog.text
    assert "made train (80 images), validation (10 images), test (10 images)" in caplog.text
    rows = {split: list(data[split]["row"]) for split in data.splits}
    assert list(rows) == ["train", "validation", "test"]
    assert sorted(sum(rows.values(), [])) == list(range(100))
    again = load_attribute_dataset(source, ["colour"])
    assert rows == {split: list(again[split]["row"]) for split in again.splits}
    other = load_attribute_dataset(source, ["colour"], split_seed=1)
    assert rows["test"] != list(other["test"]["row"])


def test_made_splits_keep_groups_together(encode, caplog):
    items = [f"item-{row // 7}" for row in range(200)]
    items[20] = items[90] = None  # of no group
    source = dataset_of(encode, colour=["red", "blue"] * 100, item=items)
    with caplog.at_level(logging.WARNING):
        data = load_attribute_dataset(source, ["colour"], group_column="item")
    groups = {split: set(data[split]["item"]) - {None} for split in data.splits}
    assert not groups["train"] & groups["validation"]
    assert not groups["train"] & groups["test"] and not groups["validation"] & groups["test"]
    assert all(13 <= len(data[split]) <= 20 for split in ("validation", "test"))
    assert "share their" not in caplog.text


def test_one_huge_group_stays_in_training(encode):
    source = dataset_of(encode, colour=["red", "blue"] * 50, item=["huge"] * 98 + ["a", "b"])
    for seed in range(6):
        data = load_attribute_dataset(source, ["colour"], group_column="item", split_seed=seed)
        assert {split: len(data[split]) for split in data.splits} == {"train": 98, "validation": 1, "test": 1}


def test_a_large_group_does_not_keep_others_out(encode):
    source = dataset_of(
        encode, colour=["red", "blue"] * 50, item=["large"] * 50 + [f"item-{row}" for row in range(50)]
    )
    for seed in range(6):
        data = load_attribute_dataset(source, ["colour"], group_column="item", split_seed=seed)
        assert {split: len(data[split]) for split in data.splits} == {"train": 80, "validation": 10, "test": 10}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["train", "test"], {"train": 36, "validation": 4, "test": 40}),
        (["train", "validation"], {"train": 36, "validation": 40, "test": 4}),
        (["train", "valid", "test"], {"train": 40, "validation": 40, "test": 40}),
        (["all"], {"train": 32, "validation": 4, "test": 4}),
        (["test"], {"test": 40}),
        (
            ["train", "validation_query", "validation_gallery", "test_query", "test_gallery"],
            {split: 40 for split in ("train", "validation_query", "validation_gallery", "test_query", "test_gallery")},
        ),
        (
            ["train", "test_query", "test_gallery"],
            {"train": 36, "validation": 4, "test_query": 40, "test_gallery": 40},
        ),
        (["test_query", "test_gallery"], {"test_query": 40, "test_gallery": 40}),
    ],
)
def test_splits_that_are_there_are_kept(encode, given, expected):
    source = DatasetDict({split: dataset_of(encode, colour=["red", "blue"] * 20) for split in given})
    data = load_attribute_dataset(source, ["colour"])
    assert {split: len(data[split]) for split in data.splits} == expected


def test_splits_are_made_only_if_wanted(encode):
    source = dataset_of(encode, colour=["red", "blue"] * 20)
    assert list(load_attribute_dataset(source, ["colour"], make_splits=False).splits) == ["train"]
    with pytest.raises(ValueError, match=r"2 image\(s\) in 2 group\(s\) cannot be cut into 3 splits"):
        load_attribute_dataset(source.select([0, 1]), ["colour"])


def test_groups_are_the_same_in_every_split(encode, caplog):
    source = DatasetDict(
        train=dataset_of(encode, colour=["red", "blue"] * 2, item=["a", "b", None, "a"]),
        validation=dataset_of(encode, colour=["red", "blue"], item=["c", None]),
        test=dataset_of(encode, colour=["red", "blue", "red"], item=["c", "a", "d"]),
    )
    with caplog.at_level(logging.WARNING):
        data = load_attribute_dataset(source, ["colour"], group_column="item")
    assert data.groups("train").tolist() == [0, 1, -1, 0]
    assert data.groups("validation").tolist() == [2, -1]
    assert data.groups("test").tolist() == [2, 0, 3] and data.groups("test").dtype == np.int64
    assert "1 of 3 images of the split 'test' share their 'item' with training images" in caplog.text
    assert load_attribute_dataset(source, ["colour"]).groups("test") is None


# ---- Summary ----


def test_summary_counts_values_gaps_and_single_images(encode, caplog):
    source = DatasetDict(
        train=dataset_of(encode, colour=["red", "blue", "red", None], size=["s", "s", "m", "m"], item=list("aabc")),
        validation=dataset_of(encode, colour=["red", "red", "blue"], size=["s", None, ""], item=list("def")),
        test=dataset_of(encode, colour=["red", "red"], size=["m", "m"], item=list("gg")),
    )
    with caplog.at_level(logging.WARNING):
        data = load_attribute_dataset(source, ["colour", "size"], group_column="item")
    summary = data.summary()
    train, validation = summary.splits["train"], summary.splits["validation"]
    assert (train.images, train.groups) == (4, 3)
    colour = train.attributes["colour"]
    assert (colour.values, colour.labelled, colour.unlabelled) == (2, 3, 1)
    assert colour.single_image_values == ("blue",)
    assert validation.attributes["size"].single_image_values == ("s",)
    assert validation.attributes["size"].unlabelled == 2
    assert summary.to_dict()["splits"]["train"]["attributes"]["colour"]["single_image_values"] == ("blue",)
    assert [line.split("  ") for line in re.sub(" {3,}", "  ", str(summary)).splitlines()] == [
        [
            "attribute",
            "values",
            "train: 4 images, 3 groups",
            "validation: 3 images, 3 groups",
            "test: 2 images, 1 groups",
        ],
        ["colour", "2", "2, 1 with one image, 1 unlabelled", "2, 1 with one image", "1"],
        ["size", "2", "2", "1, 1 with one image, 2 unlabelled", "1"],
    ]
    assert "have one image in their split" in caplog.text
    assert "train, colour: 1 of 2 (blue)" in caplog.text and "validation, size: 1 of 1 (s)" in caplog.text
    assert "train, size" not in caplog.text


# ---- What is refused ----


def test_unknown_names_say_the_closest_and_all_there_are(encode):
    source = dataset_of(encode, colour=["red", "blue"], sleeve_length=["s", "l"])
    with pytest.raises(ValueError) as error:
        load_attribute_dataset(source, ["color", "sleeve_lenght", "weight"])
    unknown = "'color' (did you mean 'colour'?), 'sleeve_lenght' (did you mean 'sleeve_length'?), 'weight'"
    assert f"{unknown}; there are: colour, image, sleeve_length" in str(error.value)
    with pytest.raises(ValueError, match=r"no group column 'colours' \(did you mean 'colour'\?\)"):
        load_attribute_dataset(source, ["colour"], group_column="colours")
    with pytest.raises(ValueError, match=r"no image column 'imge' \(did you mean 'image'\?\)"):
        load_attribute_dataset(source, ["colour"], image_column="imge")


def test_a_column_that_one_split_lacks(encode):
    source = DatasetDict(
        train=dataset_of(encode, colour=["red", "blue"]), test=dataset_of(encode, color=["red", "blue"])
    )
    with pytest.raises(ValueError, match=r"in the split 'test': no attribute column 'colour' \(did you mean 'color'"):
        load_attribute_dataset(source, ["colour"])


@pytest.mark.parametrize(
    ("columns", "features", "message"),
    [
        (
            {"colour": [["red"], ["blue"]]},
            {"colour": List(Value("string"))},
            "the column 'colour' contains lists. An attribute has one value",
        ),
        ({"colour": [0.5, 1.0]}, {}, "contains fractions, such as 0.5; convert it to a few named ranges"),
        (
            {"colour": ["red", "red"]},
            {},
            r"needs at least two values; in the training images it has 'red'. Choose .*attributes=\[...\] or --attr",
        ),
        ({"colour": [None, ""]}, {"colour": Value("string")}, "in the training images it has no value at all"),
        ({"colour": ["red", "blue"]}, {}, "all 2 values .* have one image .* Is it an identifier"),
    ],
)
def test_columns_that_cannot_be_attributes(encode, columns, features, message):
    with pytest.raises(ValueError, match=message):
        load_attribute_dataset(dataset_of(encode, features, **columns), ["colour"], make_splits=False)


def test_labels_outside_of_their_names(encode):
    """`datasets` lets an integer column be declared a ClassLabel whatever it holds."""
    source = dataset_of(encode, colour=[0, 1, 5])
    source.info.features["colour"] = ClassLabel(names=["red", "blue"])
    with pytest.raises(ValueError, match=r"has 2 named values, so its labels must be -1 .* to 1; got 0 to 5"):
        load_attribute_dataset(source, ["colour"], make_splits=False)


def test_empty_splits_and_half_a_benchmark(encode):
    whole = dataset_of(encode, colour=["red", "blue"] * 3)
    with pytest.raises(ValueError, match="the split 'test' is empty"):
        load_attribute_dataset(DatasetDict(train=whole, test=whole.select([])), ["colour"])
    with pytest.raises(ValueError, match="the split 'test_query' needs a split 'test_gallery'"):
        load_attribute_dataset(DatasetDict(train=whole, test_query=whole), ["colour"])


def test_attributes_that_are_named_wrongly(encode):
    source = dataset_of(encode, colour=["red", "blue"], shape=["a", "b"])
    with pytest.raises(TypeError, match=r"got the string 'colour', write \['colour'\]"):
        load_attribute_dataset(source, "colour")
    with pytest.raises(ValueError, match="attributes contains more than once: colour"):
        load_attribute_dataset(source, ["colour", "shape", "colour"])
    with pytest.raises(ValueError, match="'image' is the image column"):
        load_attribute_dataset(source, ["image"])
    with pytest.raises(ValueError, match="attributes is empty; these columns could be attributes: colour, shape"):
        load_attribute_dataset(source, [])
    with pytest.raises(ValueError, match="no column is a ClassLabel.*could be attributes: colour, shape"):
        load_attribute_dataset(source)


def test_sources_that_are_none(tmp_path, encode):
    (tmp_path / "shoes.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="shoes.parquet is not a parquet file"):
        load_attribute_dataset(tmp_path / "shoes.parquet", ["colour"])
    with pytest.raises(FileNotFoundError, match="'no/such-folder' is no local folder, and could not be"):
        load_attribute_dataset("no/such-folder", ["colour"])
    with pytest.raises(TypeError, match=r"\(not a streamed one\); got IterableDataset"):
        load_attribute_dataset(dataset_of(encode, colour=["red"]).to_iterable_dataset(), ["colour"])
    with pytest.raises(ValueError, match="found no image column; choose one with image_column. Columns: colour"):
        load_attribute_dataset(Dataset.from_dict({"colour": ["red"]}), ["colour"])


def test_a_split_that_is_not_there(encode):
    data = load_attribute_dataset(dataset_of(encode, colour=["red", "blue"] * 10), ["colour"])
    for ask in (data.__getitem__, data.labels, data.groups):
        with pytest.raises(KeyError, match=r"no split 'tests' \(did you mean 'test'\?\); there are: test, train, val"):
            ask("tests")
    assert "test" in data and "tests" not in data
