"""The lists `<attribute>_all` and `<attribute>_maybe`, read by name into booleans."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, concatenate_datasets

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.schema import AttributeDataset

COLOURS = ["red", "green", "blue"]


def dataset(encode, lists, kind, column="colour_all") -> Dataset:
    rows = {
        "image": [{"bytes": encode(row, "red"), "path": None} for row in range(len(lists))],
        "colour": [row % 2 for row in range(len(lists))],
        column: lists,
    }
    features = Features(image=Image(), colour=ClassLabel(names=COLOURS), **{column: kind})
    return Dataset.from_dict(rows, features=features).cast_column("image", Image(decode=False))


def test_ids_and_names_give_the_same(encode):
    expected = [[True, True, False], [False] * 3, [False] * 3, [False, False, True]]
    as_ids = dataset(encode, [[1, 0], [], None, [2]], List(ClassLabel(names=COLOURS)))
    as_names = dataset(encode, [["green", "red"], [], None, ["blue"]], List(Value("string")))
    for one in (as_ids, as_names):
        data = AttributeDataset(DatasetDict(test=one), {"colour": COLOURS})
        sets = data.value_sets("test", "all")
        assert list(sets) == ["colour"] and sets["colour"].dtype == bool
        np.testing.assert_array_equal(sets["colour"], expected)
        assert data.value_sets("test", "maybe") == {}


def test_gaps_within_a_list_are_no_values(encode):
    for lists, kind in (
        ([["green", None, " "], [None]], List(Value("string"))),
        ([[1, None], [None]], List(ClassLabel(names=COLOURS))),
    ):
        data = AttributeDataset(DatasetDict(test=dataset(encode, lists, kind)), {"colour": COLOURS})
        np.testing.assert_array_equal(data.value_sets("test", "all")["colour"], [[False, True, False], [False] * 3])


def test_another_order_of_the_values(encode):
    """A trained model has its own order; ids of the file would then be other values."""
    source = dataset(encode, [[1, 0], [], None, [2]], List(ClassLabel(names=COLOURS)), "colour_maybe")
    data = load_attribute_dataset(DatasetDict(test=source), {"colour": ["blue", "red", "green"]}, make_splits=False)
    expected = [[False, True, True], [False] * 3, [False] * 3, [True, False, False]]
    np.testing.assert_array_equal(data.value_sets("test", "maybe")["colour"], expected)


def test_selections_and_several_chunks(encode):
    kind = List(ClassLabel(names=COLOURS))
    both = concatenate_datasets([dataset(encode, [[1, 0], [], [2]], kind), dataset(encode, [None, [0], [1]], kind)])
    data = AttributeDataset(DatasetDict(test=both.select([5, 0, 3, 2, 0])), {"colour": COLOURS})
    expected = [[False, True, False], [True, True, False], [False] * 3, [False, False, True], [True, True, False]]
    np.testing.assert_array_equal(data.value_sets("test", "all")["colour"], expected)
    empty = AttributeDataset(DatasetDict(test=both.select([])), {"colour": COLOURS})
    assert empty.value_sets("test", "all")["colour"].shape == (0, 3)


def test_a_column_of_that_name_that_holds_no_lists_is_another_column(encode):
    text = dataset(encode, ["red and green", "", ""], Value("string"))
    assert AttributeDataset(DatasetDict(test=text), {"colour": COLOURS}).value_sets("test", "all") == {}


@pytest.mark.parametrize(
    ("lists", "kind", "message"),
    [
        ([["gren"]], List(Value("string")), r"'colour_all' called 'gren' \(did you mean 'green'\?\)"),
        (
            [[1, 2]],
            List(Value("int64")),
            "2 unexpected value.*'colour_all' called '1', '2'; there are: blue, green, red",
        ),
        ([[1]], List(ClassLabel(names=["red", "pink"])), "called 'pink'"),
    ],
)
def test_what_is_no_value_is_refused(encode, lists, kind, message):
    data = AttributeDataset(DatasetDict(test=dataset(encode, lists, kind)), {"colour": COLOURS})
    with pytest.raises(ValueError, match=message):
        data.value_sets("test", "all")
