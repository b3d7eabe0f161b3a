"""Outfits from all the forms in which a user has them, and the questions made from them."""

import json
import logging
from collections import Counter

import numpy as np
import pandas
import pytest
from datasets import ClassLabel, Dataset, concatenate_datasets

from cca_hf.data.outfit_loading import load_outfits
from cca_hf.data.outfit_questions import make_compatibility, make_questions
from cca_hf.data.outfits import LabelledOutfit, OutfitDataset, Question
from cca_hf.data.shapes import generate_shapes_dataset

OUTFITS = {f"o{number}": [str(3 * number), str(3 * number + 1), str(3 * number + 2)] for number in range(30)}


@pytest.fixture(scope="module")
def items() -> Dataset:
    """100 shapes whose category is the shape and whose id is a number."""
    shapes = generate_shapes_dataset(100, image_size=32)["train"].remove_columns("mask")
    names = shapes.features["shape"].names
    rows = [number % 3 for number in range(shapes.num_rows)]
    shapes = shapes.remove_columns("shape").add_column("category", rows, feature=ClassLabel(names=names[:3]))
    more = shapes.select(range(30))
    return concatenate_datasets([shapes, more]).add_column("id", list(range(100)))


def rows_of_items() -> list[dict[str, str]]:
    return [{"outfit_id": name, "item_id": item} for name, ids in OUTFITS.items() for item in ids]


def test_every_form_gives_the_same_outfits(items, tmp_path):
    frame = pandas.DataFrame(rows_of_items())
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "lists.json").write_text(json.dumps(list(OUTFITS.values())))
    (tmp_path / "objects.json").write_text(json.dumps([{"items": ids} for ids in OUTFITS.values()]))
    expected = [tuple(ids) for ids in OUTFITS.values()]
    forms = [frame, rows_of_items(), [{"items": ids} for ids in OUTFITS.values()]]
    forms += [tmp_path / name for name in ("rows.csv", "rows.parquet", "lists.json", "objects.json")]
    for form in forms:
        data = load_outfits(items, form, seed=3)
        assert [len(part) for part in data.outfits.values()] == [24, 3, 3]
        assert sorted(sum(data.outfits.values(), [])) == sorted(expected), form
        assert data.outfits == load_outfits(items, expected, seed=3).outfits


def test_splits_are_kept(items, tmp_path):
    splits = {"train": [["0", "1"], ["2", "3"]], "valid": [["4", "5"]], "test": [["6", "7"]]}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    rows = [{"split": split, "items": outfit} for split, outfits in splits.items() for outfit in outfits]
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.json").write_text(json.dumps(splits["valid" if name == "val" else name]))
    for form in (splits, tmp_path / "splits.json", rows, tmp_path):
        data = load_outfits(items, form)
        assert data.outfits == {"train": [("0", "1"), ("2", "3")], "validation": [("4", "5")], "test": [("6", "7")]}
        assert data.split_outfits("dev") == [("4", "5")]


def test_questions_of_a_folder(items, tmp_path):
    (tmp_path / "test.json").write_text(json.dumps([["0", "1", "2"], ["3", "4"]]))
    questions = [
        {"question": ["0", "1"], "answer": "2", "wrong_random": ["3", "4"], "wrong_same_type": None},
        {"question": ["3"], "answer": "4", "wrong_random": ["0"], "wrong_same_type": ["1"]},
    ]
    (tmp_path / "fill_in_the_blank").mkdir()
    (tmp_path / "fill_in_the_blank" / "test.json").write_text(json.dumps(questions))
    (tmp_path / "compatibility").mkdir()
    (tmp_path / "compatibility" / "test.json").write_text(json.dumps([{"items": [0, 4], "compatible": False}]))
    data = load_outfits(items, tmp_path)
    assert data.questions == {
        "test": {
            "random": [Question(("0", "1"), ("2", "3", "4"), 0), Question(("3",), ("4", "0"), 0)],
            "same_type": [Question(("3",), ("4", "1"), 0)],
        }
    }
    assert data.compatibility == {"test": [LabelledOutfit(("0", "4"), False)]}
    assert repr(data).splitlines() == [
        "OutfitDataset: 100 items in 3 categories",
        "  test: 2 outfits, 2 questions (random), 1 questions (same_type), 1 labelled outfits",
    ]


def test_questions_are_made_by_seed(items):
    data = load_outfits(items, {"test": list(OUTFITS.values())})
    made = make_questions(data, "test", seed=1)
    assert made == make_questions(data, "test", seed=1) != make_questions(data, "test", seed=2)
    assert {kind: len(questions) for kind, questions in made.items()} == {"same_category": 30, "random": 30}
    outfits = [set(ids) for ids in OUTFITS.values()]
    for kind, questions in made.items():
        for question in questions:
            answer, *wrong = question.choices
            outfit = next(each for each in outfits if answer in each)
            assert outfit == {*question.items, answer} and not outfit & set(wrong) and len(set(wrong)) == 3
            categories = data.category_ids[data.rows(question.choices)]
            assert kind == "random" or len(set(categories.tolist())) == 1
    blanks = Counter(OUTFITS_PLACE[question.choices[0]] for question in made["random"])
    assert set(blanks) == {0, 1, 2}


OUTFITS_PLACE = {item: place for ids in OUTFITS.values() for place, item in enumerate(ids)}


def test_incompatible_outfits_have_the_same_categories(items):
    data = load_outfits(items, {"test": list(OUTFITS.values())})
    labelled = make_compatibility(data, "test", seed=1)
    assert [outfit.compatible for outfit in labelled] == [True, False] * 30
    for real, made in zip(labelled[::2], labelled[1::2], strict=True):
        assert not set(real.items) & set(made.items) and len(set(made.items)) == 3
        assert (data.category_ids[data.rows(real.items)] == data.category_ids[data.rows(made.items)]).all()


def test_items_without_image_or_category_leave_their_outfits(items, caplog):
    rows = items.select(range(6)).to_list()
    rows[0]["image"], rows[3]["category"] = None, -1
    some = Dataset.from_list(rows, features=items.features)
    with caplog.at_level(logging.WARNING):
        data = load_outfits(some, {"test": [["0", "1"], ["1", "2", "3"], ["4", "5"]]})
    assert data.outfits == {"test": [("1", "2"), ("4", "5")]}
    assert str(data.coverage) == "5 of 6 images found; results are for a subset"
    assert "left out 1 of 3 outfits, which have fewer than two items with an image and a category" in caplog.text
    assert data.item_rows("test").tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("outfits", "message"),
    [
        ([["0", "1"], ["0", "199"]] * 5, "the outfits, outfit 1: no item '199'; did you mean '99'?"),
        ([["0"]] * 10, "the outfits: no outfit has two items"),
        ([["0", "1"]], "1 outfit(s) cannot be divided into training, validation and test; give the splits"),
        (["0", "1"], "the outfits, outfit 0: expected a list of ids, got '0'"),
        (
            [{"outfit": "a", "item": "0"}],
            "the outfits: outfits need the columns 'outfit_id' and 'item_id', a row for each item, or 'items', a list "
            "for each outfit; the columns are 'outfit', 'item'",
        ),
    ],
)
def test_wrong_outfits_are_named(items, outfits, message):
    with pytest.raises(ValueError) as error:
        load_outfits(items, outfits)
    assert str(error.value) == message


def test_wrong_items_are_named(items):
    with pytest.raises(ValueError, match=r"the items: no column 'kind'"):
        load_outfits(items, [["0", "1"]], category_column="kind")
    twice = items.remove_columns("id").add_column("id", [0, *range(99)])
    with pytest.raises(ValueError, match="the items: the id '0' is in the rows 0 and 1"):
        load_outfits(twice, [["0", "1"]])
    data = load_outfits(items, {"train": [["0", "1"]]})
    with pytest.raises(ValueError, match=r"no category 'squares' \(did you mean 'square'\?\)"):
        data.category_id("squares")
    with pytest.raises(ValueError, match="no item 'x' among 100 items"):
        data.rows(["x"])


def test_damaged_files_are_named(items, tmp_path):
    (tmp_path / "test.json").write_text('[["0", "1"')
    with pytest.raises(ValueError, match=r"test\.json is not complete JSON: .* line 1 column 11"):
        load_outfits(items, tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file or folder 'nothing.csv' with outfits"):
        load_outfits(items, "nothing.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match="contains no outfits: give it a file for each split, such as train.json"
    ):
        load_outfits(items, tmp_path / "empty")


def test_rooms_of_ikea(shared_data):
    data = load_outfits(shared_data / "ikea", shared_data / "ikea_sets", category_column="type_group")
    assert {split: len(outfits) for split, outfits in data.outfits.items()} == {
        "train": 190,
        "validation": 37,
        "test": 78,
    }
    assert {kind: len(questions) for kind, questions in data.questions["test"].items()} == {
        "random": 382,
        "same_type": 372,
    }
    assert isinstance(data, OutfitDataset) and np.all(data.category_ids >= 0)
