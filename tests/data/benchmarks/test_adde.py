"""The split files of ADDE: generated files of that form, complete, truncated and contradictory, to a data set."""

import re
from pathlib import Path

import pytest

from cca_hf.cli.main import main
from cca_hf.data.benchmarks.adde import load_adde
from cca_hf.data.change_queries import holds_changes, read_changes
from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.sources import load_source

# two attributes with 3 and 2 values; the third test image is not labelled with the second one
FILES = {
    "attr_num.txt": "3 2\n",
    "imgs_train.txt": "".join(f"train/{row}.jpg\n" for row in range(6)),
    "labels_train.txt": "1 0 0 1 0\n0 1 0 1 0\n0 0 1 1 0\n1 0 0 0 1\n0 1 0 0 1\n0 0 1 0 1\n",
    "imgs_test.txt": "test/a b.jpg\ntest/1.jpg\ntest/2.jpg\ntest/3.jpg",
    "labels_test.txt": "1 0 0 1 0\n0 1 0 1 0\n0 1 0 0 0\n0 1 0 0 1\n",
    "ref_test.txt": "0\n1\n3\n",
    "indfull_test.txt": "-1 1 0 0 0\n0 0 0 -1 1\n0 0 0 1 -1\n",
    "gt_test.txt": "0 1 0 1 0\n0 1 0 0 1\n0 1 0 1 0\n",
    "triplet_train.txt": "0 1 2\n3 4 5\n",
    "triplet_train_ind.txt": "-1 1 0 0 0\n-1 1 0 0 0\n",
}


@pytest.fixture
def write(tmp_path, add_pictures):
    """Writes the images and split files, some with other content or, for None, left out."""

    def write(**changed: str | None) -> tuple[Path, Path]:
        root, splits = tmp_path / "images", tmp_path / "splits"
        add_pictures(root, "".join([FILES["imgs_train.txt"], FILES["imgs_test.txt"]]).split("\n"))
        splits.mkdir(exist_ok=True)
        for name, content in FILES.items():
            content = changed.get(name.removesuffix(".txt"), content)
            (splits / name).unlink(missing_ok=True)
            if content is not None:
                (splits / name).write_text(content)
        return root, splits

    return write


def prepare(root: Path, splits: Path, output: Path, *words: str) -> int:
    return main(
        ["data", "prepare", "adde", "--root", str(root), "--adde_splits", str(splits), "--output", str(output), *words]
    )


def test_a_prepared_data_set_has_images_and_changes(write, tmp_path, capsys):
    output = tmp_path / "prepared"
    assert prepare(*write(), output, "--attributes", "colour", "sleeve") == 0
    assert capsys.readouterr().out == (
        f"train: 6 images\ntest: 4 images\nchanges, test: 3\nchanges, train: 2\nwritten: {output}\n"
    )
    data = load_attribute_dataset(str(output), make_splits=False)
    assert data.attributes == {"colour": ["0", "1", "2"], "sleeve": ["0", "1"]}
    assert data.labels("test").tolist() == [[0, 0], [1, 0], [1, -1], [1, 1]]
    queries = load_source(str(output), "changes", None)
    assert holds_changes(queries) and not holds_changes(data.splits)
    assert queries["train"][0] == {
        "reference": "train/0.jpg",
        "positive": "train/1.jpg",
        "negative": "train/2.jpg",
        "colour": "1",
        "sleeve": None,
    }
    changes = read_changes(queries, data, "test")
    assert changes.reference.tolist() == [0, 1, 3]
    assert changes.changed.tolist() == [[True, False], [False, True], [False, True]]
    assert changes.target_labels.tolist() == [[1, 0], [1, 1], [1, 0]]


def test_changes_of_missing_images_are_left_out(write, tmp_path, caplog):
    root, splits = write()
    (root / "test" / "1.jpg").unlink()  # the reference of one change and the only target of the others
    output = tmp_path / "prepared"
    assert prepare(root, splits, output) == 0
    data = load_attribute_dataset(str(output), make_splits=False)
    assert list(data.attributes) == ["attribute_1", "attribute_2"]
    assert len(read_changes(load_source(str(output), "changes", None), data, "test")) == 0
    assert "3 of 3 changes are left out, because the image of the reference or of the target is missing" in caplog.text


def test_without_triplets(write):
    loaded = load_adde(*write(triplet_train=None))
    assert loaded.changes is not None and list(loaded.changes) == ["test"] and loaded.name == "splits of ADDE"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("attr_num", "3 x", ": expected the number of values of each attribute, got '3 x'"),
        ("labels_test", "1 0 0 1 0\n", " has 1 lines, and imgs_test.txt has 4: a file is not complete"),
        (
            "labels_test",
            "1 0 0 1 0\n0 1 0\n0 1 0 0 0\n0 1 0 0 1",
            ", line 2: expected 5 numbers (0, 1), got 3",
        ),
        ("labels_test", "1 0 0 1 0\n0 1 0 1 0\n0 1 0 0 0\n0 2 0 0 1", ", line 4: expected 5 numbers (0, 1)"),
        ("labels_test", "1 0 0 1 0\n0 1 1 1 0\n0 1 0 0 0\n0 1 0 0 1", ", line 2: an attribute has several values"),
        ("ref_test", "0\n4\n3\n", ", line 2: expected 1 numbers below 4, the lines of imgs_test.txt; got '4'"),
        ("indfull_test", "-1 1 0 0 0\n0 0 0 -1 1\n", " has 2 lines, and ref_test.txt has 3: a file is not complete"),
        ("indfull_test", "-1 1 0 0 0\n0 0 0 0 0\n0 0 0 1 -1", ", line 2: there is no new value (1)"),
        ("indfull_test", "-1 1 0 0 0\n0 0 0 1 -1\n0 0 0 1 -1", ", line 2: an old value (-1) is not the value of the"),
        ("gt_test", "0 1 0 1 0\n0 1 0 0 1\n0 0 1 1 0\n", ", line 3: the labels are not those of the reference"),
        ("gt_test", None, " is missing; it comes with ADDE's split files"),
        ("triplet_train", "0 1\n", ", line 1: expected 3 numbers below 6, the lines of imgs_train.txt; got '0 1'"),
        ("triplet_train_ind", "-1 1 0 0 0\n", " has 1 lines, and triplet_train.txt has 2: a file is not complete"),
    ],
)
def test_file_and_line_of_a_fault(write, name, content, message):
    root, splits = write(**{name: content})
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(f"{splits / name}.txt{message}")):
        load_adde(root, splits)


def test_wrong_flags(write, tmp_path, capsys):
    root, splits = write()
    assert prepare(root, splits, tmp_path / "out", "--attributes", "colour") == 1
    assert "counts the values of 2 attributes; got the names ['colour']" in capsys.readouterr().err
    assert main(["data", "prepare", "adde", "--root", str(root), "--output", str(tmp_path / "out")]) == 2
    assert "adde needs --adde_splits" in capsys.readouterr().err
    assert prepare(root, splits, tmp_path / "out", "--seed", "1") == 2
    assert "--seed is not for adde" in capsys.readouterr().err


def test_changes_that_do_not_fit(write, tmp_path):
    output = tmp_path / "prepared"
    assert prepare(*write(), output, "--attributes", "colour", "sleeve") == 0
    queries, whole = load_source(str(output), "changes", None), load_attribute_dataset(str(output), make_splits=False)
    with pytest.raises(ValueError, match="the changes are also of sleeve: evaluate all of these attributes"):
        read_changes(queries, load_attribute_dataset(str(output), ["colour"], make_splits=False), "test")
    queries["test"] = queries["test"].map(lambda row: {"colour": row["colour"] and "7"})
    with pytest.raises(ValueError, match="no value of colour '7'; there are: 0, 1, 2"):
        read_changes(queries, whole, "test")
