"""Zappos50K: metadata and triplets in the form of the original downloads, with few shoes and pictures of our own."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cca_hf import CCAModel
from cca_hf.cli.main import main
from cca_hf.data.benchmarks import zappos50k
from cca_hf.data.benchmarks.zappos50k import heel_inches, load_zappos50k
from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.sources import load_source

HEADER = ["CID", "Category", "SubCategory", "HeelHeight", "Insole", "Closure", "Gender", "Material", "ToeStyle"]
HEELS = ["Flat", "Under 1in", "1in - 1 3/4in", "2in - 2 3/4in", "5in & over", "High heel"]
CONDITIONS = ["category", "closure", "gender", "heel_height"]
TRIPLET_FILES = {"category": "class", "closure": "closure", "gender": "gender", "heel_height": "heel"}


def shoe(number: int) -> dict[str, str]:
    return {
        "CID": f"{100000 + number}-{number % 7}",
        "Category": ["Shoes", "Boots"][number % 2],
        "SubCategory": ["Oxfords", "Mid-Calf", "Clogs and Mules"][number % 3],
        "HeelHeight": HEELS[number % 6],
        "Insole": ["", "Padded"][number % 5 == 0],
        "Closure": "Lace up;Zipper" if number % 10 == 9 else ["Lace up", "Zipper"][number % 3 == 0],
        "Gender": ["Women", "Men"][number // 2 % 2],
        "Material": "Leather;Suede" if number % 4 == 0 else ["Rubber", "Suede"][number % 3 == 1],
        "ToeStyle": ["Round Toe", "Capped Toe", ""][number % 3],
    }


def file_name(row: dict[str, str]) -> str:
    return f"{row['Category']}/{row['SubCategory']}/Dr. Brand & Co./{row['CID'].replace('-', '.')}.jpg"


SHOES = [shoe(number) for number in range(60)]
NAMES = [file_name(row) for row in SHOES]
PART_OF = ["train"] * 36 + ["val"] * 12 + ["test"] * 12


@pytest.fixture
def root(tmp_path, add_pictures) -> Path:
    folder = tmp_path / "zappos"
    (folder / "ut-zap50k-data").mkdir(parents=True)
    with (folder / "ut-zap50k-data" / "meta-data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(SHOES)
    add_pictures(folder / "ut-zap50k-images", NAMES)
    return folder


def close(attribute: str, row: int, other: int) -> bool:
    """Whether CSN would call two shoes close: of the same value."""
    column = zappos50k.COLUMNS[attribute]
    return SHOES[row][column] == SHOES[other][column]


@pytest.fixture
def lists(root) -> Path:
    """CSN's files: for each condition and part, an anchor, a far one and a close one a line."""
    (root / "filenames.json").write_text("\r\n".join(NAMES))
    (root / "tripletlists").mkdir()
    for attribute, theirs in TRIPLET_FILES.items():
        for part in ("train", "val", "test"):
            own = [row for row, each in enumerate(PART_OF) if each == part]
            rows = [
                f"{a} {far} {near}"
                for a in own
                for far in own
                for near in own
                if near != a and close(attribute, a, near) and not close(attribute, a, far)
            ]
            (root / "tripletlists" / f"{theirs}_tripletlist_{part}.txt").write_text("\n".join(rows))
    return root


@pytest.mark.parametrize(
    ("value", "inches"),
    [("Flat", 0), ("Under 1in", 0.5), ("1in - 1 3/4in", 1.375), ("3in - 3 3/4in", 3.375), ("5in & over", 5)],
)
def test_heights_of_heels(value, inches):
    assert heel_inches(value) == inches
    assert heel_inches("High heel") is None


def test_attributes_of_the_metadata(root):
    (train,) = load_zappos50k(root, triplets="none").splits.values()
    names = {name: train.features[name].names for name in zappos50k.COLUMNS}
    assert names["heel_height"] == HEELS  # by height; what has none comes last
    assert names["closure"] == ["Lace up", "Zipper"] and names["material"] == ["Leather", "Rubber", "Suede"]
    rows = {
        row["file_name"]: row for row in train.select_columns([name for name in train.column_names if name != "image"])
    }
    assert sorted(rows) == sorted(NAMES)
    for number, name in enumerate(NAMES):
        for attribute, column in zappos50k.COLUMNS.items():
            cell = [value for value in SHOES[number][column].split(";") if value]
            assert [names[attribute][value] for value in rows[name][f"{attribute}_all"]] == cell
            label = rows[name][attribute]
            assert (names[attribute][label] if label >= 0 else None) == (cell[0] if len(cell) == 1 else None)


def test_triplets_of_csn(lists):
    benchmark = load_zappos50k(lists)
    assert benchmark.triplets is not None and list(benchmark.triplets) == ["train", "validation", "test"]
    number = {name: row for row, name in enumerate(NAMES)}
    for split, theirs in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert benchmark.splits[split]["file_name"][:] == [
            name for name, part in zip(NAMES, PART_OF, strict=True) if part == theirs
        ]
        triplets = benchmark.triplets[split]
        assert triplets.features["condition"].names == CONDITIONS
        given = Counter()
        for attribute, file in TRIPLET_FILES.items():
            for line in (lists / "tripletlists" / f"{file}_tripletlist_{theirs}.txt").read_text().splitlines():
                a, far, near = map(int, line.split())
                given[attribute, a, near, far] += 1
        found = Counter(
            (CONDITIONS[row["condition"]], number[row["anchor"]], number[row["positive"]], number[row["negative"]])
            for row in triplets
        )
        assert found == given and given.total() > 1000
        assert all(close(a, anchor, near) and not close(a, anchor, far) for a, anchor, near, far in found)


def test_as_many_triplets_as_the_papers_take(lists, monkeypatch):
    monkeypatch.setattr(zappos50k, "NUM_TRIPLETS", {"train": 500, "validation": 40, "test": 80})
    chosen = [load_zappos50k(lists, seed=seed).triplets for seed in (0, 0, 1)]
    assert [len(each) for each in chosen[0].values()] == [500, 40, 80]
    for split in chosen[0]:
        assert chosen[0][split][:] == chosen[1][split][:] != chosen[2][split][:]
        assert len(set(chosen[0][split]["condition"][:])) == 4


def test_drawn_triplets(root, monkeypatch):
    monkeypatch.setattr(zappos50k, "NUM_TRIPLETS", {"train": 800, "validation": 40, "test": 120})
    benchmark = load_zappos50k(root, triplets="sample", seed=3)
    assert "sampled from the metadata (seed 3); they are not those of CSN" in benchmark.remarks[0]
    assert [len(own) for own in benchmark.splits.values()] == [42, 6, 12]
    number = {name: row for row, name in enumerate(NAMES)}
    for split, triplets in benchmark.triplets.items():
        pictures = set(benchmark.splits[split]["file_name"][:])
        count = Counter(triplets["condition"][:])
        assert count == dict.fromkeys(range(4), zappos50k.NUM_TRIPLETS[split] // 4)
        for row in triplets:
            assert {row["anchor"], row["positive"], row["negative"]} <= pictures  # no picture in two splits
            anchor, near, far = (SHOES[number[row[role]]] for role in ("anchor", "positive", "negative"))
            attribute = CONDITIONS[row["condition"]]
            values = [each[zappos50k.COLUMNS[attribute]] for each in (anchor, near, far)]
            assert not any(";" in value for value in values) and row["anchor"] != row["positive"]
            if attribute == "heel_height":
                heights = [heel_inches(value) for value in values]
                assert abs(heights[0] - heights[1]) < abs(heights[0] - heights[2])
            else:
                assert values[0] == values[1] != values[2]
    again, other = (load_zappos50k(root, triplets="sample", seed=seed).triplets["train"][:] for seed in (3, 4))
    assert benchmark.triplets["train"][:] == again != other


def test_prepare_load_train_evaluate(lists, train_a_step_and_evaluate, tmp_path, capsys, monkeypatch):
    """Over the command line: labels and triplets of one folder, with three test pictures missing."""
    monkeypatch.setattr(zappos50k, "NUM_TRIPLETS", {"train": 200, "validation": 60, "test": 300})
    for name in NAMES[-3:]:
        (lists / "ut-zap50k-images" / name).unlink()
    output = tmp_path / "prepared"
    assert main(["data", "prepare", "zappos50k", "--root", str(lists), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "test: 9 of 12 images found; results are for a subset" in printed and "triplets, test: 300" in printed
    data = load_attribute_dataset(output, [name for name in zappos50k.COLUMNS if name != "insole"])
    assert {split: len(own) for split, own in data.splits.items()} == {"train": 36, "validation": 12, "test": 9}
    result = train_a_step_and_evaluate(data)
    assert "9 of 12 images found" in result.table()

    triplets = load_source(output, "triplets", None)
    assert [len(own) for own in triplets.values()] == [200, 60, 300]
    folder = tmp_path / "model"
    CCAModel.from_pretrained(tmp_path / "run" / "checkpoint-1").save_pretrained(folder)
    capsys.readouterr()
    words = ["evaluate", "--model", folder, "--dataset", output, "--config_name", "triplets", "--device", "cpu"]
    assert main([*map(str, words), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    roles = zip(*(triplets["test"][role][:] for role in ("anchor", "positive", "negative")), strict=True)
    usable = np.mean([not set(names) & set(NAMES[-3:]) for names in roles])
    assert 0 <= metrics["triplet_accuracy"] <= 1 and metrics["coverage"] == pytest.approx(usable)


def test_without_csns_files_the_error_names_them(root):
    with pytest.raises(FileNotFoundError, match=r"filenames.json is missing; it comes with the triplets of CSN"):
        load_zappos50k(root)
    (root / "filenames.json").write_text("\n".join(NAMES))
    with pytest.raises(FileNotFoundError, match=r"class_tripletlist_train.txt is missing; .*csn_zappos_triplets.zip"):
        load_zappos50k(root)


@pytest.mark.parametrize("content", ["0 1", "0 1 60", "0 -1 2", "0 1 x", "0 1 2\n3 4", ""])
def test_a_wrong_row_is_named(lists, content):
    (lists / "tripletlists" / "heel_tripletlist_val.txt").write_text(content)
    with pytest.raises(ValueError, match="heel_tripletlist_val.txt: expected three numbers a line"):
        load_zappos50k(lists)


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(ValueError, match="triplets must be 'lists', 'sample' or 'none', got 'all'"):
        load_zappos50k(root, triplets="all")
    metadata = root / "ut-zap50k-data" / "meta-data.csv"
    metadata.write_text("CID,Category\n1-1,Shoes\n")
    with pytest.raises(ValueError, match="has no column SubCategory, HeelHeight, .*; it has CID, Category"):
        load_zappos50k(root, triplets="none")
    metadata.write_text(",".join(HEADER) + "\n" + "7-7,Shoes,Oxfords,Flat,Padded,Zipper,Men,Suede,Round\n")
    with pytest.raises(ValueError, match="has no category, sub_category, .* for any of the 60 images"):
        load_zappos50k(root, triplets="none")
    metadata.unlink()
    with pytest.raises(FileNotFoundError, match="meta-data.csv is missing; it comes with UT Zappos50K"):
        load_zappos50k(root, triplets="none")
    with pytest.raises(FileNotFoundError, match="no folder ut-zap50k-images in .*cs.utexas.edu"):
        load_zappos50k(tmp_path)
