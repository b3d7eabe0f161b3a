"""Polyvore Outfits in the form of the original files, with few items and images of our own."""

import json
from pathlib import Path

import pytest

from cca_hf.cli.main import main
from cca_hf.data.benchmarks.polyvore import load_polyvore
from cca_hf.data.coverage import Coverage
from cca_hf.data.outfit_loading import load_outfits
from cca_hf.data.outfits import LabelledOutfit, Question

KINDS = [("tops", "2"), ("shoes", "41"), ("bags", "37")]
ITEMS = {
    str(100 + number): {"semantic_category": KINDS[number % 3][0], "category_id": KINDS[number % 3][1], "title": ""}
    for number in range(12)
}
SETS = {
    "train": {"7": "100 101 102", "8": "103 104"},
    "valid": {"9": "105 106"},
    "test": {"10": "107 108 109", "11": "110 111"},
}


@pytest.fixture
def root(tmp_path, add_pictures) -> Path:
    folder = tmp_path / "polyvore_outfits"
    (folder / "disjoint").mkdir(parents=True)
    (folder / "polyvore_item_metadata.json").write_text(json.dumps(ITEMS))
    (folder / "categories.csv").write_text("2,blouse,tops\n37,tote,bags\n41,sandal,shoes\n")
    for part, sets in SETS.items():
        outfits = [
            {"set_id": name, "items": [{"item_id": item, "index": place} for place, item in enumerate(ids.split(), 1)]}
            for name, ids in sets.items()
        ]
        (folder / "disjoint" / f"{part}.json").write_text(json.dumps(outfits))
    questions = [
        {"question": ["10_1", "10_3"], "blank_position": 2, "answers": ["11_2", "10_2", "11_2"]},
        {"question": ["11_1"], "blank_position": 2, "answers": ["11_2", "10_1"]},
    ]
    (folder / "disjoint" / "fill_in_blank_test.json").write_text(json.dumps(questions))
    (folder / "disjoint" / "compatibility_test.txt").write_text("1 10_1 10_2 10_3\n0 10_1 11_2\n")
    add_pictures(folder / "images", [f"{item}.jpg" for item in ITEMS])
    return folder


def test_prepared_and_loaded(root, tmp_path, capsys):
    assert main(["data", "prepare", "polyvore", "--root", str(root), "--output", str(tmp_path / "polyvore")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "items: 12 images",
        "Outfits, disjoint: 2 train, 1 validation, 2 test. Read by load_outfits(<this folder>, disjoint/).",
        f"written: {tmp_path / 'polyvore'}",
    ]
    data = load_outfits(tmp_path / "polyvore", tmp_path / "polyvore" / "disjoint", attributes=["fine_category"])
    assert data.outfits["train"] == [("100", "101", "102"), ("103", "104")]
    assert data.categories == ["bags", "shoes", "tops"]
    assert data.attributes == {"fine_category": ["blouse", "sandal", "tote"]}
    row = data.items[int(data.rows(["104"])[0])]
    assert (row["category"], row["fine_category"], row["file_name"]) == (1, 1, "images/104.jpg")
    assert data.questions["test"] == {
        "same_category": [
            Question(("107", "109"), ("108", "111"), answer=0),  # a wrong choice that is given twice counts once
            Question(("110",), ("111", "107"), answer=0),
        ]
    }
    assert data.compatibility["test"] == [
        LabelledOutfit(("107", "108", "109"), True),
        LabelledOutfit(("107", "111"), False),
    ]


def test_missing_images_are_counted_and_leave_their_outfits(root, tmp_path, capsys):
    (root / "images" / "108.jpg").unlink()
    (root / "images" / "110.jpg").unlink()
    main(["data", "prepare", "polyvore", "--root", str(root), "--output", str(tmp_path / "polyvore")])
    assert capsys.readouterr().out.splitlines()[0] == "items: 10 of 12 images found; results are for a subset"
    data = load_outfits(tmp_path / "polyvore", tmp_path / "polyvore" / "disjoint")
    assert data.coverage == Coverage(10, 12)
    assert data.outfits["test"] == [("107", "109")]  # the other one has one item left
    assert data.compatibility["test"] == [LabelledOutfit(("107", "111"), False)]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("disjoint/test.json", '[{"set_id": "10", "ite', "test.json is not complete JSON: Unterminated string"),
        ("disjoint/valid.json", '[{"set_id": "9"}]', "valid.json, outfit 0: expected set_id, and items with item_id"),
        (
            "disjoint/train.json",
            '[{"set_id": "7", "items": [{"item_id": "1000", "index": 1}]}]',
            "train.json, outfit 0: no item '1000'; did you mean '100'?",
        ),
        (
            "disjoint/fill_in_blank_test.json",
            '[{"question": ["10_1"], "blank_position": 2, "answers": ["11_1", "11_2"]}]',
            "fill_in_blank_test.json, question 0: no single answer is of the set 10 of the question",
        ),
        (
            "disjoint/fill_in_blank_test.json",
            '[{"question": ["10_9"], "blank_position": 2, "answers": ["10_2"]}]',
            "fill_in_blank_test.json, question 0: no item '10_9'; did you mean '10_3'?",
        ),
        (
            "disjoint/compatibility_test.txt",
            "1 10_1 10_2\n10_1 10_2\n",
            "compatibility_test.txt, line 2: expected '<0 or 1> <set>_<index> <set>_<index> ...', got '10_1 10_2'",
        ),
        ("polyvore_item_metadata.json", '{"100": 3}', "item 100: expected an object, got 3"),
        ("categories.csv", "2,blouse\n", "categories.csv, row 1: expected '<id>,<fine category>,<category>'"),
    ],
)
def test_damaged_files_are_named_with_the_place(root, file, content, message):
    (root / file).write_text(content)
    with pytest.raises(ValueError) as error:
        load_polyvore(root)
    assert message in str(error.value)


def test_missing_files_are_named_with_their_origin(root, capsys):
    (root / "disjoint" / "valid.json").unlink()
    assert main(["data", "prepare", "polyvore", "--root", str(root), "--output", str(root / "out")]) == 1
    assert "valid.json is missing; it comes with Polyvore Outfits, https://" in capsys.readouterr().err
    assert main(["data", "prepare", "polyvore", "--root", str(root), "--seed", "1", "--output", "out"]) == 2
    assert "--seed is not for polyvore" in capsys.readouterr().err
