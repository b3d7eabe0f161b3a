"""Protocols for other data than the training's: later images, and values that are left out."""

from dataclasses import replace
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from cca_hf.data.coverage import Coverage
from cca_hf.data.schema import AttributeDataset
from cca_hf.data.shifts import leave_values_out, split_by_threshold

KINDS = ["boot", "clog", "mule", "pump", "shoe"]
ROWS = {  # image, year, kind, item
    "train": [
        (b"a", 2010, "boot", "1"),
        (b"b", 2011, "clog", "2"),
        (b"c", 2012, "mule", "3"),
        (b"a", 2013, "boot", "4"),
        (b"d", None, "pump", "5"),
        (b"e", 2011, "pump", None),
    ],
    "validation": [(b"f", 2009, "clog", "6"), (b"g", 2012, "pump", "2"), (b"q", 2010, "pump", None)],
    "test": [
        (b"h", 2008, "boot", "7"),
        (b"i", 2014, "clog", None),
        (b"j", 2012, "pump", "8"),
        (b"k", 2015, "shoe", "6"),
    ],
}


def as_data(year="int64", **fields) -> AttributeDataset:
    features = Features(
        image=Image(decode=False), year=Value(year), kind=ClassLabel(names=KINDS), item=Value("string")
    )
    splits = DatasetDict()
    for split, rows in ROWS.items():
        images, years, kinds, items = zip(*rows, strict=True)
        if year == "string":
            years = [None if each is None else str(each) for each in years]
        images = [{"bytes": image, "path": None} for image in images]
        splits[split] = Dataset.from_dict(dict(image=images, year=years, kind=kinds, item=items), features=features)
    return AttributeDataset(splits, {"kind": KINDS}, **fields)


def images_of(data: AttributeDataset, split: str) -> str:
    return b"".join(image["bytes"] for image in data.splits[split]["image"]).decode()


@pytest.mark.parametrize("kind", ["int64", "float64", "string"])
@pytest.mark.parametrize("last", [2011, "2011"])
def test_later_images_are_the_test_split(kind, last):
    later = split_by_threshold(as_data(kind), "year", last)
    assert list(later.splits) == ["train", "validation", "test"]
    assert images_of(later, "train") == "abe" and images_of(later, "validation") == "fq"
    # of all splits, without the copy of the training image "a" and without the image of no year
    assert images_of(later, "test") == "cgijk"
    assert later.values_in("test") == {"kind": ["clog", "mule", "pump", "shoe"]}


def test_groups_of_the_training_are_not_tested():
    later = split_by_threshold(as_data(group_column="item"), "year", 2011)
    # item 2 was trained on; images without a group are groups of their own, and item 6 is in validation only
    assert images_of(later, "train") == "abe" and images_of(later, "test") == "cijk"


def test_an_attribute_can_be_the_column():
    later = split_by_threshold(as_data(), "kind", "clog")
    assert images_of(later, "train") == "aba" and images_of(later, "test") == "cdegqjk"


def test_images_may_be_files_and_some_may_be_missing(tmp_path):
    data = as_data(coverage={"test": Coverage(4, 10)})
    for split, dataset in data.splits.items():
        paths = [tmp_path / f"{split}-{row}" for row in range(len(dataset))]
        for path, (content, *_) in zip(paths, ROWS[split], strict=True):
            path.write_bytes(content)
        cells = [{"bytes": None, "path": str(path)} for path in paths]
        data.splits[split] = dataset.remove_columns("image").add_column("image", cells, feature=Image(decode=False))
    later = split_by_threshold(data, "year", 2012)
    assert [Path(image["path"]).name for image in later.splits["test"]["image"]] == [
        "test-1",
        "test-3",
    ]  # train-3 is a copy
    assert later.coverage_of("test") == Coverage(4 + 6 + 3, 10 + 6 + 3)


def test_some_values_are_left_out_of_the_training():
    data = as_data()
    part = leave_values_out(data, "kind", 1 / 3, seed=0)
    (left_out,) = set(data.values_in("train")["kind"]) - set(part.values_in("train")["kind"])
    assert left_out in ("boot", "clog", "pump")  # training and test have them
    for split in ("train", "validation"):
        expected = [row[0].decode() for row in ROWS[split] if row[2] != left_out]
        assert images_of(part, split) == "".join(expected)
    assert part["test"] is data["test"] and part.attributes == data.attributes
    assert images_of(leave_values_out(data, "kind", 0.1, seed=0), "train") == images_of(part, "train")
    chosen = {images_of(leave_values_out(data, "kind", 0.1, seed=seed), "train") for seed in range(8)}
    assert len(chosen) > 1


@pytest.mark.parametrize(
    ("protocol", "arguments", "message"),
    [
        (split_by_threshold, ("yaer", 2011), r"in the split 'train': no column 'yaer' \(did you mean 'year'"),
        (split_by_threshold, ("year", "early"), "'year' contains numbers, and 'early' is none"),
        (split_by_threshold, ("image", 1), "'image' of the split 'train' must contain numbers or strings"),
        (split_by_threshold, ("year", 2020), "with year up to 2020 in training, .* 'test' is empty"),
        (split_by_threshold, ("year", 1999), "with year up to 1999 in training, .* 'train' is empty"),
        (leave_values_out, ("kinds", 0.2), r"no attribute 'kinds' \(did you mean 'kind'"),
        (leave_values_out, ("kind", 20), r"share must be in \(0, 1\).* got 20"),
        (leave_values_out, ("kind", 0.5), "2 of the 3 values of 'kind' .* at least two must stay"),
    ],
)
def test_what_is_refused(protocol, arguments, message):
    with pytest.raises(ValueError, match=message):
        protocol(as_data(), *arguments)


def test_queries_and_galleries_are_refused():
    data = as_data()
    splits = DatasetDict(train=data["train"], test_query=data["test"], test_gallery=data["test"])
    with pytest.raises(ValueError, match="needs the splits train, validation, test; got train, test_query"):
        leave_values_out(replace(data, splits=splits), "kind", 0.2)
