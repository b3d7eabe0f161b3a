"""Data sets of which pictures are missing: left out, counted, and said in every result."""

import json
from dataclasses import replace

import numpy as np
import pytest
from datasets import DatasetDict

from cca_hf.data.coverage import Coverage
from cca_hf.data.loading import load_attribute_dataset
from cca_hf.evaluation import EvaluationResult, evaluate_embeddings
from cca_hf.visualization.report import comparison_table, plot_results


@pytest.fixture
def partly(rows, built, encode):
    """Of 30 rows, every third has no picture."""
    return built(rows, [None if index % 3 == 1 else encode(index, row["colour"]) for index, row in enumerate(rows)])


def test_rows_without_a_picture_are_left_out(partly, caplog):
    data = load_attribute_dataset(DatasetDict(train=partly, test=partly), ["size"], make_splits=False)
    assert data.coverage == {"train": Coverage(20, 30), "test": Coverage(20, 30)}
    assert data["test"]["buttons"][:] == [row["buttons"] for index, row in enumerate(partly) if index % 3 != 1]
    assert "test: 20 of 30 images found; results are for a subset" in caplog.text
    assert data.coverage_of("test") == Coverage(20, 30)
    assert data.coverage_of("train", "test") == Coverage(40, 60)
    # through a selection and a shuffle, whose rows are not where the table has them
    chosen = partly.shuffle(seed=3).select(range(12))
    again = load_attribute_dataset(DatasetDict(test=chosen), ["size"], make_splits=False)
    assert again["test"]["buttons"][:] == [row["buttons"] for row in chosen if row["image"] is not None]


def test_a_whole_split_beside_one_that_is_not(partly, built, rows):
    data = load_attribute_dataset(DatasetDict(train=built(rows), test=partly), ["size"], make_splits=False)
    assert data.coverage == {"test": Coverage(20, 30)}
    assert data.coverage_of("train") is None
    assert data.coverage_of("train", "test") == Coverage(50, 60)


def test_what_is_cut_out_of_a_subset_is_one(partly):
    data = load_attribute_dataset(partly, ["size"])
    assert data.coverage_of("test") == data.coverage_of("validation") == Coverage(20, 30)


def test_a_whole_split_stays_whole_when_others_are_cut_from_a_subset(partly, built, rows):
    data = load_attribute_dataset(DatasetDict(train=partly, test=built(rows)), ["size"])
    assert data.coverage_of("test") is None
    assert data.coverage_of("train") == data.coverage_of("validation") == Coverage(20, 30)


def test_unreadable_pictures_that_are_skipped_count_as_missing(rows, built, encode):
    images = [b"no picture" if index == 4 else encode(index, None) for index, _ in enumerate(rows)]
    data = load_attribute_dataset(DatasetDict(test=built(rows, images)), ["size"], make_splits=False)
    assert data.coverage == {}
    assert data.check_images(on_unreadable="skip").coverage == {"test": Coverage(29, 30)}


def test_no_picture_at_all(built, rows):
    with pytest.raises(ValueError, match="none of the 30 images of the split 'train' exists"):
        load_attribute_dataset(built(rows, [None] * 30), ["size"])


def test_image_root(tmp_path, rows, built, encode):
    """Annotations alone, from the Hub, with the pictures that lie on this machine."""
    names = [f"a b/{index}.jpg" for index in range(30)]
    annotations = built(rows, [None] * 30).add_column("file_name", names)
    for index, name in enumerate(names[:25]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"" if index == 3 else encode(index, None))
    data = load_attribute_dataset(DatasetDict(test=annotations), ["size"], image_root=tmp_path, make_splits=False)
    assert data.coverage == {"test": Coverage(24, 30)}
    assert data.splits["test"]["image"][3] == {"bytes": None, "path": str(tmp_path / names[4])}
    assert data.check_images() is data
    with pytest.raises(ValueError, match=r"image_root needs .* no column 'file_name'; there are: buttons"):
        load_attribute_dataset(built(rows), ["size"], image_root=tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere with images"):
        load_attribute_dataset(annotations, ["size"], image_root=tmp_path / "nowhere")


@pytest.mark.parametrize("name", [None, "no\0file.jpg", "."])
def test_names_without_a_file_are_missing_images(name, tmp_path, rows, built, encode):
    (tmp_path / "0.jpg").write_bytes(encode(0, None))
    annotations = built(rows, [None] * 30).add_column("file_name", ["0.jpg"] * 29 + [name])
    data = load_attribute_dataset(DatasetDict(test=annotations), ["size"], image_root=tmp_path, make_splits=False)
    assert data.coverage == {"test": Coverage(29, 30)}


def test_names_that_are_no_strings(tmp_path, rows, built):
    annotations = built(rows, [None] * 30).add_column("file_name", list(range(30)))
    with pytest.raises(ValueError, match="'file_name' of the split 'test' must be strings, got 0"):
        load_attribute_dataset(DatasetDict(test=annotations), ["size"], image_root=tmp_path, make_splits=False)


def test_every_result_says_so(tmp_path):
    labels = np.arange(12).reshape(-1, 1) % 2
    whole = evaluate_embeddings(np.eye(12), labels, {"colour": ["red", "blue"]})
    subset = replace(whole, coverage=Coverage(17_920, 18_000))
    line = "Subset: 17,920 of 18,000 images found; results are for a subset."
    assert subset.table().splitlines()[-1] == comparison_table({"model": subset}).splitlines()[-1] == line
    assert subset.metrics()["coverage"] == pytest.approx(17_920 / 18_000)
    assert "coverage" not in whole.metrics() and "Subset" not in whole.table()
    path = subset.save_json(tmp_path / "evaluation.json")
    assert EvaluationResult.load_json(path) == subset
    assert json.loads(path.read_text())["coverage"] == {"found": 17_920, "listed": 18_000}
    assert EvaluationResult.load_json(whole.save_json(tmp_path / "whole.json")) == whole
    (axes,) = plot_results({"model": subset}).axes
    assert "subset: 17,920 of 18,000 images" in axes.get_xlabel()
