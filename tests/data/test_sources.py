"""The same labelled pictures, written as every kind of source, come out as the same data set."""

import io
import json
import os
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Image
from packaging.version import Version

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.sources import load_source
from cca_hf.models.images import load_image

ATTRIBUTES = ["colour", "size", "buttons"]
VALUES = {"colour": ["blue", "green", "red"], "size": ["large", "small"], "buttons": ["0", "5", "10", "15"]}


@pytest.fixture
def splits(writers):
    return {"train": writers["rows"](30), "validation": writers["rows"](12, 30), "test": writers["rows"](14, 42)}


def check_all(data, splits, encode, exact=True):
    assert data.attributes == VALUES
    assert list(data.splits) == list(splits)
    for split, rows in splits.items():
        dataset = data.splits[split]
        assert dataset.features["image"] == Image(decode=False)
        assert dataset.column_names[:4] == ["image", *ATTRIBUTES]
        for attribute in ATTRIBUTES:
            assert dataset.features[attribute] == ClassLabel(names=VALUES[attribute])
        expected = [
            [-1 if row[name] is None else VALUES[name].index(str(row[name])) for name in ATTRIBUTES] for row in rows
        ]
        labels = data.labels(split)
        assert labels.dtype == np.int64
        assert labels.tolist() == expected
        assert list(dataset["item"]) == [row["item"] for row in rows]
        for index in (0, len(rows) - 1):
            expected_picture = load_image(encode(index, rows[index]["colour"]))
            assert np.array_equal(load_image(dataset[index]["image"]), expected_picture)


def test_parquet_folder(tmp_path, writers, splits, built, encode):
    folder = writers["parquet"](tmp_path / "shoes", splits, built)
    check_all(load_attribute_dataset(folder, ATTRIBUTES), splits, encode)
    check_all(load_attribute_dataset(str(folder), tuple(ATTRIBUTES)), splits, encode)


# pandas 3 reads strings as `large_string`, in which datasets finds file names since 4.8
CSV = pytest.mark.skipif(
    Version(pandas.__version__) >= Version("3") and Version(datasets.__version__) < Version("4.8"),
    reason="datasets before 4.8 cannot read metadata.csv together with pandas 3",
)


@pytest.mark.parametrize("kind", [pytest.param("csv", marks=CSV), "jsonl", "parquet"])
def test_image_folder_with_metadata(tmp_path, writers, splits, encode, kind):
    folder = writers["images"](tmp_path / "shoes", splits, kind)
    check_all(load_attribute_dataset(folder, ATTRIBUTES), splits, encode)


def test_image_folder_of_one_folder_a_value(tmp_path, encode):
    for row, colour in enumerate(["red", "blue"] * 10):
        (tmp_path / "shoes" / colour).mkdir(parents=True, exist_ok=True)
        (tmp_path / "shoes" / colour / f"{row}.jpg").write_bytes(encode(row, colour))
    data = load_attribute_dataset(tmp_path / "shoes")
    assert data.attributes == {"label": ["blue", "red"]}
    assert sum(len(data[split]) for split in data.splits) == 20


def test_webdataset_tars_with_attributes_in_json(tmp_path, writers, splits, encode):
    for split, rows in splits.items():
        middle = len(rows) // 2
        writers["tar"](tmp_path / "shoes" / f"{split}-0.tar", rows[:middle])
        writers["tar"](tmp_path / "shoes" / f"{split}-1.tar", rows[middle:], first=middle)
    data = load_attribute_dataset(tmp_path / "shoes", ATTRIBUTES, group_column="item")
    check_all(data, splits, encode)
    assert data.groups("train").tolist() == [row // 2 for row in range(30)]


def test_webdataset_class_member_is_an_attribute(tmp_path, writers, rows):
    writers["tar"](tmp_path / "shoes" / "train.tar", rows)
    data = load_attribute_dataset(tmp_path / "shoes", ["cls", "colour"], make_splits=False)
    assert data.attributes["cls"] == ["0", "1"]
    assert data.labels("train")[:, 0].tolist() == [row % 2 for row in range(30)]


def test_webdataset_attributes_that_the_first_samples_lack(tmp_path, writers, rows):
    """`datasets` looks at five samples: it fails on the nulls, and drops the late attribute."""
    for index, row in enumerate(rows):
        row["size"] = None if index < 8 else ("small", "large")[index % 2]
        if index >= 20:
            row["late"] = index % 2
    samples = [None if index in (2, 25) else row for index, row in enumerate(rows)]
    writers["tar"](tmp_path / "shoes" / "train.tar", samples)
    data = load_attribute_dataset(tmp_path / "shoes", ["colour", "size", "late"], make_splits=False)
    labels = data.labels("train")
    assert data.attributes["late"] == ["0", "1"]
    assert (labels[:8, 1] == -1).all() and (labels[8:25, 1] >= 0).all()
    assert (labels[:20, 2] == -1).all() and (labels[[25], :] == -1).all() and labels[26, 2] == 0
    assert (labels[2] == -1).all()


def test_webdataset_numbers_and_words_in_one_field(tmp_path, writers, rows):
    for index, row in enumerate(rows):
        row["buttons"] = "none" if index % 2 else index % 4
    writers["tar"](tmp_path / "shoes" / "train.tar", rows)
    data = load_attribute_dataset(tmp_path / "shoes", ["buttons"], make_splits=False)
    assert data.attributes["buttons"] == ["0", "2", "none"]


def test_saved_to_disk(tmp_path, splits, built, encode):
    DatasetDict({split: built(rows) for split, rows in splits.items()}).save_to_disk(tmp_path / "shoes")
    check_all(load_attribute_dataset(tmp_path / "shoes", ATTRIBUTES), splits, encode)


def test_saved_to_disk_without_splits(tmp_path, rows, built):
    built(rows).save_to_disk(tmp_path / "shoes")
    data = load_attribute_dataset(tmp_path / "shoes", ATTRIBUTES)
    assert {split: len(data[split]) for split in data.splits} == {"train": 24, "validation": 3, "test": 3}


def test_built_dataset_dict(splits, built, encode):
    source = DatasetDict({split: built(rows) for split, rows in splits.items()})
    check_all(load_attribute_dataset(source, ATTRIBUTES), splits, encode)
    assert source["train"].column_names[0] == "image" and source["train"].features["image"] == Image()


def test_built_dataset_that_is_a_selection(rows, built):
    """Labels follow the order of a shuffled selection, and its pictures stay with them."""
    order = [7, 3, 29, 0, 12, 21, 5, 18]
    data = load_attribute_dataset(built(rows).select(order), ["colour"], make_splits=False)
    assert [VALUES["colour"][label] for label in data.labels("train")[:, 0]] == [rows[row]["colour"] for row in order]
    whole = built(rows)
    for index, row in enumerate(order):
        assert np.array_equal(load_image(data["train"][index]["image"]), np.asarray(whole[row]["image"]))


def test_a_dataset_keeps_the_name_of_its_split(tmp_path, rows, built):
    built(rows).to_parquet(tmp_path / "test.parquet")
    test = Dataset.from_parquet(str(tmp_path / "test.parquet"), split="test", cache_dir=str(tmp_path / "cache"))
    assert list(load_attribute_dataset(test, ATTRIBUTES).splits) == ["test"]


def test_folders_of_one_name_with_equal_cards(tmp_path, writers, built):
    """`datasets` has one place in its cache for them, and gave the second one the rows of the first."""
    for place, first in (("a", 0), ("b", 100)):
        folder = writers["parquet"](tmp_path / place / "shoes", {"train": writers["rows"](8, first)}, built)
        card = "---\nconfigs: [{config_name: default, data_files: data/*.parquet}]\n---\n"
        (folder / "README.md").write_text(card)
        assert load_source(folder, None, None)["train"]["item"][0] == f"item-{first // 2}"
    writers["parquet"](folder, {"train": writers["rows"](8, 200)}, built)
    assert load_source(folder, None, None)["train"]["item"][0] == "item-100"


def test_from_the_hub(tmp_path, writers, splits, built, repository, warm_torch):
    """Against a server that speaks the Hub's protocol, in a process that is online."""
    writers["parquet"](tmp_path / "repo", splits, built)
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(repository / "src")}
    script = Path(__file__).with_name("load_from_fake_hub.py")
    result = warm_torch.run(script, tmp_path / "repo", *VALUES, env=environment, check=True)
    lines = result.stdout.splitlines()
    assert lines[0] == "train 30, validation 12, test 14"
    assert lines[1] == str(VALUES)
    assert lines[2].startswith("FileNotFoundError: 'me/boots' is no local folder")
    assert lines[3] == "revision v2 asked for"


# ---- WebDataset ----


def write_members(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path.parent


def test_webdataset_images_of_several_suffixes_are_one_column(tmp_path, encode):
    """Every suffix became a column, of which one was used: 20 of 60 images."""
    members = {}
    for row in range(60):
        members[f"{row:03d}.{('jpg', 'JPG', 'jpeg')[row % 3]}"] = encode(row, "red")
        members[f"{row:03d}.{('json', 'JSON')[row % 2]}"] = json.dumps({"colour": "c" + str(row % 2)}).encode()
    data = load_attribute_dataset(write_members(tmp_path / "shoes" / "train.tar", members), ["colour"])
    assert {split: len(data[split]) for split in data.splits} == {"train": 48, "validation": 6, "test": 6}
    whole = load_source(tmp_path / "shoes", None, None)["train"]
    assert whole.column_names == ["image", "json", "__key__", "__url__"]
    assert [row["colour"] for row in whole["json"]] == ["c0", "c1"] * 30
    for row in (0, 1, 2, 59):
        assert np.array_equal(np.asarray(whole[row]["image"]), load_image(encode(row, "red")))


def test_webdataset_column_keeps_the_name_of_its_suffix(tmp_path, encode):
    members = {f"{row}.{suffix}": encode(row, "red") for row in range(4) for suffix in ("jpg", "seg.png")}
    splits = load_source(write_members(tmp_path / "shoes" / "train.tar", members), None, None)
    assert splits["train"].column_names == ["jpg", "seg.png", "__key__", "__url__"]  # two images in a sample


@pytest.mark.parametrize("name", ["IMG.{:04d}", "shoe-{:d}.5", "a/v1.0/x{:d}.final", "Dr. Martens {:d}"])
def test_webdataset_names_with_dots(name, tmp_path, encode):
    """Names with dots became a hundred columns."""
    members = {}
    for row in range(20):
        members[name.format(row) + ".jpg"] = encode(row, "red")
        members[name.format(row) + ".json"] = json.dumps({"row": row}).encode()
    train = load_source(write_members(tmp_path / "shoes" / "train.tar", members), None, None)["train"]
    image, labels, *_ = train.column_names
    assert train.num_rows == 20 and len(train.column_names) == 4
    assert [row["row"] for row in train[labels]] == list(range(20))
    assert np.array_equal(np.asarray(train[7][image]), load_image(encode(7, "red")))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.jpg": b"", "1.txt": "grün".encode("latin-1")}, "train.tar: the member '1.txt' is not encoded in UTF-8"),
        ({"1.jpg": b"", "1.json": b'{"colour": '}, "train.tar: the member '1.json' contains no JSON"),
        ({"1.jpg": b"", "1.json": b"[1]"}, r"train.tar: the member '1.json' must be a JSON object .*; got \[1\]"),
        ({"1.jpg": b"", "1.cls": b"red"}, "train.tar: the member '1.cls' contains no integer"),
    ],
)
def test_webdataset_members_that_cannot_be_read_are_named(members, message, tmp_path):
    folder = write_members(tmp_path / "shoes" / "train.tar", members)
    with pytest.raises(ValueError, match=message) as caught:
        load_source(folder, None, None)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("kept", [0.3, 0.7])
def test_webdataset_that_is_cut_off(kept, tmp_path, encode):
    members = {f"{row}.jpg": encode(row, "red") for row in range(8)}
    folder = write_members(tmp_path / "shoes" / "train.tar", members)
    tar = folder / "train.tar"
    tar.write_bytes(tar.read_bytes()[: int(kept * 8 * 1536)])
    with pytest.raises(ValueError, match=r"train.tar is damaged or cut off after the member '\d.jpg': unexpected end"):
        load_source(folder, None, None)


def test_webdataset_whose_names_are_not_utf8(tmp_path, encode):
    name = os.fsdecode(b"caf\xe9")
    path = tmp_path / "shoes" / "train.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w", encoding="utf-8", errors="surrogateescape") as tar:
        for suffix, content in {"jpg": encode(0, "red"), "cls": b"1"}.items():
            info = tarfile.TarInfo(f"{name}.{suffix}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    train = load_source(tmp_path / "shoes", None, None)["train"]
    assert train["__key__"][:] == ["caf\\xe9"] and train["cls"][:] == [1]
