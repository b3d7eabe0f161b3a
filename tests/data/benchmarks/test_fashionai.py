"""FashionAI: the official rows against ASEN's files, and from both to a trained step and an evaluation."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from cca_hf.cli.main import main
from cca_hf.data.benchmarks.asen import EVALUATION_SPLITS, AsenSplits
from cca_hf.data.benchmarks.fashionai import ATTRIBUTES, load_fashionai, read_official_rows
from cca_hf.data.coverage import Coverage
from cca_hf.data.loading import load_attribute_dataset

NAMES = list(ATTRIBUTES)
TRAINING_FOLDER = "fashionAI_attributes_train3"


def write_labels(root: Path, rows: dict[str, list[str]], end: str = "\n") -> Path:
    """One `Annotations/label.csv` for each folder of pictures."""
    for folder, lines in rows.items():
        path = root / folder / "Annotations" / "label.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(end.join(lines).encode())
    return root


@pytest.fixture(scope="module")
def root(asen, fashionai_rows, tmp_path_factory) -> Path:
    """All official rows there are, in the folders that ASEN's file names say; others stand in for training images."""
    splits = AsenSplits(asen, "FashionAI")
    folder_of = {
        name.rpartition("/")[2]: name.partition("/")[0]
        for part in ("valid", "test")
        for name in splits.file_names(part)
    }
    rows: dict[str, list[str]] = {TRAINING_FOLDER: fashionai_rows["round1_answers.csv"]}
    for file in ("label_valid.csv", "label_test.csv"):
        for line in fashionai_rows[file]:
            rows.setdefault(folder_of[line.partition(",")[0].rpartition("/")[2]], []).append(line)
    return write_labels(tmp_path_factory.mktemp("fashionai"), rows)


def test_official_rows_equal_asens_files(root, asen):
    """For 36,000 of 36,000 images."""
    official = {(Path(row.file_name).name, row.attribute): row for row in read_official_rows(root).values()}
    splits = AsenSplits(asen, "FashionAI")
    equal = told = 0
    for split in EVALUATION_SPLITS:
        rows = splits.evaluation(split)
        for name, ((attribute, value),) in zip(rows.file_names, rows.pairs, strict=True):
            row = official[name.rpartition("/")[2], attribute]
            told += 1
            equal += row.value == value and row.file_name == name
    assert (equal, told) == (36_000, 36_000)


def test_names_of_the_values(shared_data):
    path = shared_data / "fashionai_labels" / "value_names.json"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    published = json.loads(path.read_text())
    assert published["ATTRIBUTES"] == NAMES
    assert published["ATTRIBUTES_VALUES"] == ATTRIBUTES


def chosen_rows(benchmark, each: int) -> dict[str, list[int]]:
    """Rows of each split, so that every value is there `each` times."""
    rows: dict[str, list[int]] = {}
    for split, dataset in benchmark.splits.items():
        seen: Counter = Counter()
        labels = np.stack([dataset.with_format("numpy")[name][:] for name in NAMES], axis=1)
        shown = zip(labels.argmax(axis=1).tolist(), labels.max(axis=1).tolist(), strict=True)
        rows[split] = [row for row, pair in enumerate(shown) if (seen.update([pair]) or seen[pair]) <= each]
    return rows


def test_prepare_load_train_evaluate(root, asen, add_pictures, train_a_step_and_evaluate, tmp_path, capsys):
    """From the real rows and a few pictures, over the command line, to a result that says it is of a subset."""
    benchmark = load_fashionai(root, asen)
    rows = chosen_rows(benchmark, each=2)
    pictures = tmp_path / "pictures"
    shutil.copytree(root, pictures)
    for split, own in rows.items():
        add_pictures(pictures, benchmark.splits[split].select(own)["file_name"][:])
    output = tmp_path / "prepared"
    words = ["data", "prepare", "fashionai", "--root", pictures, "--asen-splits", asen, "--output", output]
    assert main([str(word) for word in words]) == 0
    printed = capsys.readouterr().out
    found = {split: len(own) for split, own in rows.items()}
    queries, gallery = found["test_query"], found["test_gallery"]
    assert f"test_query: {queries} of 3,600 images found; results are for a subset" in printed
    assert "19,818 official rows outside the validation and test part" in printed
    assert "54 of 54 values differ in number" in printed

    data = load_attribute_dataset(output)
    assert data.attributes == ATTRIBUTES
    assert {split: len(data[split]) for split in data.splits} == found
    assert data.coverage["test_query"] == Coverage(queries, 3600)
    # values, pictures and names belong together
    official = {row.file_name: row for row in read_official_rows(root).values()}
    for row in data.splits["test_gallery"].select_columns(["image", "file_name", *NAMES]):
        told = official[row["file_name"]]
        assert row["image"]["bytes"] == (pictures / row["file_name"]).read_bytes()
        assert [row[name] for name in NAMES] == [told.value if a == told.attribute else -1 for a in range(len(NAMES))]

    result = train_a_step_and_evaluate(data)
    assert result.coverage == Coverage(queries + gallery, 18_000)
    assert f"{queries + gallery} of 18,000 images found; results are for a subset" in result.table()
    assert result.metrics()["coverage"] == pytest.approx((queries + gallery) / 18_000)


def test_maybe_stands_beside_the_label(root, asen, fashionai_rows):
    benchmark = load_fashionai(root, asen)
    for part, file in (("validation", "label_valid.csv"), ("test", "label_test.csv")):
        marked = 0
        for role in ("query", "gallery"):
            rows = benchmark.splits[f"{part}_{role}"].with_format("arrow")[:]
            for name in NAMES:
                labels, maybe = rows.column(name).to_numpy(), rows.column(f"{name}_maybe")
                assert np.array_equal(maybe.is_null().to_numpy(), labels < 0)
                told = np.flatnonzero(pc.fill_null(pc.list_value_length(maybe), 0).to_numpy())
                assert all(labels[row] not in maybe[row].as_py() for row in told)
                marked += len(told)
        assert marked == sum("m" in line.split(",")[2] for line in fashionai_rows[file]) > 900


LETTERS = {"skirt_length": "nymnnn", "collar_design": "ynnnn"}


def small_root(folder: Path, end: str = "\n") -> Path:
    rows = [
        f"Images/{name}_labels/{i}{name[0]}.jpg,{name}_labels,{letters}"
        for name, letters in LETTERS.items()
        for i in range(4)
    ]
    return write_labels(folder, {"train1": rows[:3], "deep/train2": rows[3:]}, end)


def test_without_asen_all_rows_are_for_training(tmp_path, add_pictures):
    root = small_root(tmp_path, end="\r\n")
    benchmark = load_fashionai(root)
    assert list(benchmark.splits) == ["train"] and len(benchmark.splits["train"]) == 8
    row = benchmark.splits["train"][0]  # of the first file
    assert row["file_name"] == "deep/train2/Images/skirt_length_labels/3s.jpg" and row["image"] is None
    assert (row["skirt_length"], row["skirt_length_maybe"], row["collar_design"]) == (1, [2], -1)
    assert row["collar_design_maybe"] is None
    add_pictures(root, [row["file_name"]])
    assert load_fashionai(root).splits["train"].with_format("arrow")["image"][0].as_py() == {
        "bytes": None,
        "path": str(root / row["file_name"]),
    }


ASEN_FILES = {
    "filenames_valid.txt": "train1/Images/skirt_length_labels/0s.jpg\ntrain1/Images/skirt_length_labels/1s.jpg\n",
    "filenames_test.txt": "x/Images/skirt_length_labels/3s.jpg\nx/Images/collar_design_labels/0c.jpg\n",
    "query_valid.txt": "0 0 1",
    "candidate_valid.txt": "1 0 1",
    "query_test.txt": "0 0 1",
    "candidate_test.txt": "1 4 0",
}


def test_training_images_are_the_rest(tmp_path, small_asen):
    """Matched on the md5, whatever the folder; the published labels tell whether the copy is whole."""
    root = small_root(tmp_path / "root")
    whole = load_fashionai(
        root, small_asen("FashionAI", ASEN_FILES | {"label_train.txt": "0 4 0\n1 4 0\n2 4 0\n3 0 1\n"})
    )
    names = [f"deep/train2/Images/collar_design_labels/{i}c.jpg" for i in (1, 2, 3)]
    names += ["train1/Images/skirt_length_labels/2s.jpg"]
    assert whole.splits["train"]["file_name"][:] == names
    assert whole.splits["test_query"]["file_name"][:] == ["deep/train2/Images/skirt_length_labels/3s.jpg"]
    assert "4 official rows" in whole.remarks[0] and "is that of ASEN's label_train.txt" in whole.remarks[0]
    partly = load_fashionai(root, small_asen("FashionAI", {"label_train.txt": "0 4 0\n1 4 0\n2 4 1\n3 0 1\n"}))
    assert "has 4, and 2 of 3 values differ in number" in partly.remarks[0]
    (tmp_path / "asen" / "FashionAI" / "label_train.txt").unlink()
    assert "label_train.txt is missing" in load_fashionai(root, tmp_path / "asen").remarks[0]


def test_asens_own_training_list_is_taken_where_it_is(tmp_path, small_asen):
    files = {"filenames_train.txt": "any/Images/skirt_length_labels/2s.jpg", "label_train.txt": "0 0 1"}
    benchmark = load_fashionai(small_root(tmp_path / "root"), small_asen("FashionAI", ASEN_FILES | files))
    assert benchmark.splits["train"]["file_name"][:] == ["train1/Images/skirt_length_labels/2s.jpg"]
    assert benchmark.splits["train"]["skirt_length_maybe"][:] == [[2]]
    without_official = load_fashionai(tmp_path / "asen", tmp_path / "asen")
    assert without_official.splits["train"]["file_name"][:] == ["any/Images/skirt_length_labels/2s.jpg"]
    assert "skirt_length_maybe" not in without_official.splits["train"].column_names


def test_disagreement_is_an_error(tmp_path, small_asen):
    folder = small_asen("FashionAI", ASEN_FILES | {"query_test.txt": "0 0 2"})
    with pytest.raises(ValueError, match=r"differ on 1 of 4 evaluated images, such as .*3s.jpg: skirt_length 2 and 1"):
        load_fashionai(small_root(tmp_path / "root"), folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Images/a.jpg,skirt_labels,nnynnn", "expected 'path,<attribute>_labels,letters'"),
        ("Images/a.jpg", "expected 'path,<attribute>_labels,letters'"),
        ("Images/a.jpg,skirt_length_labels,nny", "skirt_length has 6 values, so expected 6 letters"),
        ("Images/a.jpg,skirt_length_labels,nnynny", "one y and the others"),
        ("Images/a.jpg,skirt_length_labels,nnnnnn", "one y and the others"),
        ("Images/a.jpg,skirt_length_labels,nnyxnn", "got 'nnyxnn'"),
        ("Images/skirt_length_labels/0s.jpg,skirt_length_labels,ynnnnn", "contradicts an earlier row"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, line, message):
    root = small_root(tmp_path)
    write_labels(root, {"train3": ["Images/b.jpg,collar_design_labels,nynnn", line]})
    with pytest.raises(ValueError, match=f"train3/Annotations/label.csv, line 2: .*{message}"):
        load_fashionai(root)


def test_nothing_there(tmp_path, small_asen):
    with pytest.raises(FileNotFoundError, match=r"no label.csv in .*tianchi.aliyun.com/competition/entrance/231671"):
        load_fashionai(tmp_path)
    without_training = load_fashionai(tmp_path, small_asen("FashionAI", ASEN_FILES))
    assert list(without_training.splits) == list(EVALUATION_SPLITS)
    assert "There are no training images: filenames_train.txt is missing" in without_training.remarks[0]
