"""PETA, PA-100K, RAP, Market-1501-Attribute and UPAR, from generated files of the same forms as the published ones."""

import re
from pathlib import Path

import numpy as np
import pytest

from cca_hf.cli.main import main
from cca_hf.data.benchmarks.pedestrians import (
    load_market1501_attribute,
    load_pa100k,
    load_peta,
    load_rapv1,
    load_rapv2,
    load_upar,
)
from cca_hf.data.recognition import load_recognition_dataset

savemat = pytest.importorskip("scipy.io").savemat
RNG = np.random.default_rng(0)


def cell(values: list, shape: tuple[int, int]) -> np.ndarray:
    """A cell array of MATLAB."""
    cells = np.empty(len(values), dtype=object)
    cells[:] = values
    return cells.reshape(shape)


def column(values: list) -> np.ndarray:
    return cell(values, (len(values), 1))


def labels_of(rows, names):
    """(images, attributes) as the reader gives them."""
    return np.column_stack([rows[name][:] for name in names])


def test_peta(tmp_path, add_pictures):
    labels = RNG.integers(2, size=(12, 105))
    rows = {"train": [0, 2, 4, 6, 8, 9], "validation": [1, 3], "test": [5, 7, 10, 11]}
    parts = {f"field_{name}": np.array(part)[:, None] + 1.0 for name, part in rows.items()}
    other = {name: np.array([[1.0]]) for name in parts}
    content = {
        "data": np.hstack([RNG.integers(100, size=(12, 4)), labels]).astype(float),
        "names": np.hstack([column([f"a{place}" for place in range(105)]), column(["-"] * 105)]),
        "something": np.array([[1.0]]),
        "partitions": column([parts, other, other, other, other]),
    }
    savemat(tmp_path / "PETA.mat", {"peta": content})
    add_pictures(tmp_path / "images", [f"{row + 1:05d}.png" for row in range(12)])
    benchmark = load_peta(tmp_path)
    names = [f"a{place}" for place in range(35)]
    assert [*benchmark.splits] == [*rows]
    for split, part in rows.items():
        found = benchmark.splits[split]
        assert found["file_name"][:] == [f"{row + 1:05d}.png" for row in part]
        assert [name for name in found.column_names if name[0] == "a"] == names
        assert np.array_equal(labels_of(found, names), labels[part, :35])
        assert found.features["a0"].names == ["no", "yes"] and found.data.column("image").null_count == 0


def test_pa100k(tmp_path, add_pictures):
    names = ["Female", "Hat", "Skirt&Dress"]
    content, labels = {"attributes": column(names)}, {}
    for start, (split, count) in zip((0, 4, 6), {"train": 4, "val": 2, "test": 3}.items(), strict=True):
        labels[split] = RNG.integers(2, size=(count, 3))
        files = [f"{start + row + 1:06d}.jpg" for row in range(count)]
        content |= {f"{split}_images_name": column(files), f"{split}_label": labels[split].astype(np.uint8)}
        add_pictures(tmp_path / "release_data" / "release_data", files)
    savemat(tmp_path / "annotation.mat", content)
    splits = load_pa100k(tmp_path).splits
    assert {split: rows.num_rows for split, rows in splits.items()} == {"train": 4, "validation": 2, "test": 3}
    assert np.array_equal(labels_of(splits["validation"], names), labels["val"])
    assert splits["test"]["file_name"][:] == ["000007.jpg", "000008.jpg", "000009.jpg"]


def test_rapv1_has_two_splits_and_missing_labels(tmp_path, add_pictures):
    labels = RNG.integers(2, size=(5, 92))
    labels[1, 3] = 2  # neither present nor absent
    files = [f"CAM01_2014-02-15_{row}.png" for row in range(5)]
    part = {"train": np.array([[1.0, 3.0, 4.0]]), "test": np.array([[2.0, 5.0]])}
    content = {
        "partition": column([part] * 5),
        "label": labels,
        "chinese": column(["-"]),
        "english": column([f"a{place}" for place in range(92)]),
        "position": np.zeros((5, 4)),
        "images": column(files),
        "selected": column(["-"]),
    }
    savemat(tmp_path / "RAP_annotation.mat", {"RAP_annotation": content})
    add_pictures(tmp_path / "RAP_dataset", files)
    splits = load_rapv1(tmp_path).splits
    assert [*splits] == ["train", "test"] and splits["test"]["file_name"][:] == [files[1], files[4]]
    assert splits["test"]["a3"][:] == [-1, labels[4, 3]] and "a51" not in splits["test"].column_names
    assert splits["train"]["a50"][:] == labels[[0, 2, 3], 50].tolist()


def test_rapv2_by_protocol_and_by_person(tmp_path, add_pictures):
    labels, persons = RNG.integers(2, size=(40, 6)), np.repeat(np.arange(10), 4)
    files = [f"{row}.png" for row in range(40)]
    rows = np.arange(40)
    part = {"train": rows[None, :20] + 1.0, "val": rows[None, 20:28] + 1.0, "test": rows[None, 28:] + 1.0}
    content = {
        "name": column(files),
        "data": labels,
        "english": column([f"a{place}" for place in range(6)]),
        "selected": np.array([[2.0, 5.0]]),
        "partition": cell([part] * 5, (1, 5)),
        "person": np.where(persons == 0, -1, persons)[:, None].astype(float),
    }
    savemat(tmp_path / "RAP_annotation.mat", {"RAP_annotation": content})
    add_pictures(tmp_path / "RAP_dataset", files)
    splits = load_rapv2(tmp_path).splits
    assert splits["test"]["file_name"][:] == files[28:] and splits["test"]["a4"][:] == labels[28:, 4].tolist()
    assert splits["train"]["person"][:][:5] == [None] * 4 + ["1"]
    splits = load_rapv2(tmp_path, by_person=True).splits
    of_split = {split: set(rows["person"][:]) for split, rows in splits.items()}
    assert len(of_split["test"]) == 2 and len(of_split["validation"]) == 1 and None in of_split["train"]
    assert not of_split["train"] & of_split["test"] and sum(rows.num_rows for rows in splits.values()) == 40


def test_the_fields_of_market1501_are_read_by_name(tmp_path, add_pictures):
    names = ["age", "hat", "gender", "upred"]
    values = {"train": [[1, 4], [2, 1], [1, 2], [1, 2]], "test": [[3, 2], [1, 2], [2, 2], [2, 1]]}
    persons = {"train": ["0002", "0007"], "test": ["0001", "0003"]}
    content = {}
    for split, order in (("train", [0, 1, 2, 3]), ("test", [3, 1, 0, 2])):
        fields = {names[place]: np.array([values[split][place]], float) for place in order}
        content[split] = fields | {"image_index": column(persons[split])}
    savemat(tmp_path / "market_attribute.mat", {"market_attribute": content})
    add_pictures(tmp_path, ["bounding_box_train/0007_c1s1_01.jpg", "bounding_box_train/0002_c1s1_01.jpg"])
    add_pictures(tmp_path, ["query/0003_c2s1_01.jpg", "bounding_box_test/0001_c1s1_01.jpg"])
    add_pictures(tmp_path, ["bounding_box_test/-1_c1s1_01.jpg", "bounding_box_test/0000_c1s1_01.jpg"])
    splits = load_market1501_attribute(tmp_path).splits
    train, test = splits["train"], splits["test"]
    assert train["person"][:] == ["0002", "0007"] and test["person"][:] == ["0003", "0001"]
    assert train["age"][:] == [0, 3] and train.features["age"].names == ["young", "teenager", "adult", "old"]
    assert train["hat"][:] == [1, 0] and test["hat"][:] == [1, 0]
    assert test["age"][:] == [1, 2] and test["upred"][:] == [0, 1]


@pytest.mark.parametrize("header", ["# Age-Young,Hat", "# Image,Age-Young,Hat"])
def test_upar_with_and_without_a_name_of_the_first_column(tmp_path, add_pictures, header, capsys):
    files = [f"{source}/{row}.jpg" for source in ("PETA/images", "PA100k/release_data") for row in range(4)]
    rows = [f"{name},{row % 2},{row // 2 % 2}" for row, name in enumerate(files)]
    path = tmp_path / "data" / "phase1" / "train" / "train.csv"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join([header, *rows]))
    add_pictures(tmp_path / "data", files)
    train = load_upar(tmp_path).splits["train"]
    assert train["Age-Young"][:] == [0, 1] * 4 and train["Hat"][:] == [0, 0, 1, 1] * 2
    assert train["source"][:] == ["PETA"] * 4 + ["PA100k"] * 4
    assert main(["data", "prepare", "upar", "--root", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    assert "train: 8 images" in capsys.readouterr().out
    data = load_recognition_dataset(str(tmp_path / "out"), make_splits=False)
    assert data.kinds == {"Age-Young": "binary", "Hat": "binary"}
    assert np.array_equal(data.targets("train"), [[row % 2, row // 2 % 2] for row in range(8)])


def test_a_broken_line_of_upar_is_named(tmp_path):
    (tmp_path / "train.csv").write_text("# A,B\nx.jpg,0,1\ny.jpg,1\n")
    with pytest.raises(ValueError, match=r"train\.csv, line 3: expected a path and 2 numbers, got 2 cells$"):
        load_upar(tmp_path)


def test_missing_annotations_say_where_they_come_from(tmp_path):
    message = f"there is no PETA.mat in {tmp_path} or its subfolders; it comes with PETA, http"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}"):
        load_peta(Path(tmp_path))


def test_by_person_is_for_rapv2(tmp_path, capsys):
    words = ["data", "prepare", "peta", "--root", str(tmp_path), "--by_person", "--output", str(tmp_path / "out")]
    assert main(words) == 2
    assert "--by_person is not for peta" in capsys.readouterr().err
