"""Folders of images as people keep them: links, hidden files, other formats, and metadata from any program."""

import csv
import json
import logging
import os

import pytest
from datasets import Image as ImageFeature
from PIL import Image

from cca_hf.data.image_files import find_files, image_suffixes
from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.sources import load_source
from cca_hf.models.images import load_image


@pytest.fixture
def place(tmp_path, encode):
    """Writes images into the folder `shoes`."""

    def write(*paths):
        for row, path in enumerate(paths):
            file = tmp_path / "shoes" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(row, "red"))
        return tmp_path / "shoes"

    return write


def write_csv(file, rows, encoding="utf-8", delimiter=","):
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding=encoding) as text:
        writer = csv.DictWriter(text, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def paths_of(folder, dataset):
    return [os.path.relpath(image["path"], folder) for image in images_of(dataset)]


def images_of(dataset):
    """The undecoded images."""
    return dataset.cast_column("image", ImageFeature(decode=False))["image"]


# ---- Which folder is loaded ----


@pytest.mark.parametrize("name", ["parquet", "csv", "imagefolder", "shoes[1]"])
def test_a_folder_is_loaded_whatever_its_name(name, tmp_path, encode, monkeypatch):
    """`datasets` took such names for formats and patterns, and loaded other files."""
    for folder in (name, "other", "shoes1"):
        for row, colour in enumerate(["red", "blue"] * 2):
            (tmp_path / folder / colour).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / colour / f"{folder}-{row}.jpg").write_bytes(encode(row, colour))
    monkeypatch.chdir(tmp_path)
    (split,) = load_source(name, None, None).values()
    assert paths_of(tmp_path / name, split) == [f"blue/{name}-1.jpg", f"blue/{name}-3.jpg"] + [
        f"red/{name}-0.jpg",
        f"red/{name}-2.jpg",
    ]


def test_a_folder_of_tables_is_loaded_whatever_its_name(tmp_path, writers, built, monkeypatch):
    writers["parquet"](tmp_path / "parquet", {"train": writers["rows"](8)}, built)
    writers["parquet"](tmp_path / "other", {"train": writers["rows"](8, 50)}, built)
    monkeypatch.chdir(tmp_path)
    loaded = load_source("parquet", None, None)
    assert loaded["train"]["item"][:] == [row["item"] for row in writers["rows"](8)]
    writers["parquet"](tmp_path / "a[b]", {"train": writers["rows"](8)}, built)
    with pytest.raises(ValueError, match=r"cannot contain '\*', '\?' or '\['; rename '.*a\[b\]'"):
        load_source("a[b]", None, None)


def test_the_name_of_a_format_is_no_source(tmp_path, monkeypatch):
    (tmp_path / "prices.csv").write_text("a,b\n1,2\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="'csv' is no local folder"):
        load_source("csv", None, None)


# ---- Which files are images ----


def test_what_pillow_decodes_is_used_and_the_rest_is_counted(place, tmp_path, caplog):
    folder = place("red/1.jpg", "red/2.JPG", "blue/3.jpeg", "red/._1.jpg", ".trash/4.jpg", "__MACOSX/red/5.jpg")
    Image.new("RGB", (8, 8)).save(folder / "blue" / "6.png")
    for name in ("a.pdf", "b.h5", "c.mpg", "d.eps", "red/e.h5", ".DS_Store"):
        (folder / name).write_bytes(b"not an image")
    (folder / "red" / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    latin = os.fsencode(folder) + b"/red/caf\xe9.jpg"
    with open(latin, "wb") as file:
        file.write((folder / "red" / "1.jpg").read_bytes())
    with caplog.at_level(logging.WARNING):
        data = load_attribute_dataset(folder, make_splits=False)
    assert paths_of(folder, data["train"]) == ["blue/3.jpeg", "blue/6.png", "red/1.jpg", "red/2.JPG"]
    assert data.attributes == {"label": ["blue", "red"]}
    (text,) = [message for message in caplog.messages if "passed over" in message]
    assert text.startswith(f"files passed over in {folder}: ")
    for part in (
        "2 hidden (.trash, red/._1.jpg)",
        "1 in folders of programs, such as __MACOSX (__MACOSX)",
        "1 with a name that is not UTF-8 text; rename it (red/caf\\udce9.jpg)",
        "1 that are links to nothing, or no regular files (red/gone.jpg)",
        "5 of no image format that can be read (.h5: 2, .eps: 1, .mpg: 1, .pdf: 1)",
    ):
        assert part in text


def test_links_are_followed_once(place, tmp_path, encode, caplog):
    folder = place("red/1.jpg", "red/2.jpg")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    for name in ("3.jpg", "4.jpg"):
        (elsewhere / name).write_bytes(encode(3, "blue"))
    (elsewhere / "deep" / "loop").symlink_to(folder)
    (folder / "blue").symlink_to(elsewhere)
    (folder / "red" / "5.jpg").symlink_to(elsewhere / "3.jpg")
    (folder / "a-copy").symlink_to(folder / "red")
    data = load_attribute_dataset(folder, make_splits=False)
    assert paths_of(folder, data["train"]) == ["blue/3.jpg", "blue/4.jpg", "red/1.jpg", "red/2.jpg", "red/5.jpg"]
    assert data.attributes == {"label": ["blue", "red"]}
    assert "2 in links to a folder that is included already (a-copy, blue/deep/loop)" in caplog.text


def test_heic(place):
    pillow_heif = pytest.importorskip("pillow_heif")
    folder = place("red/1.jpg", "blue/2.jpg")
    heif = pillow_heif.from_pillow(Image.new("RGB", (16, 16), (200, 20, 20)))
    heif.save(folder / "red" / "3.HEIC", quality=90)
    data = load_source(folder, None, None)["train"]
    assert paths_of(folder, data) == ["blue/2.jpg", "red/1.jpg", "red/3.HEIC"]
    red, green, blue = load_image(images_of(data)[2]).getpixel((8, 8))
    assert abs(red - 200) < 12 and abs(green - 20) < 12 and abs(blue - 20) < 12


def test_heic_without_its_decoder(place, monkeypatch):
    folder = place("red/1.heic")
    monkeypatch.setattr("cca_hf.data.image_files.image_suffixes", lambda: image_suffixes() - {".heic"})
    with pytest.raises(ValueError, match=r"no image in .*: 1 in HEIC or HEIF; pip install 'cca_hf\[heic\]'"):
        load_source(folder, None, None)


def test_texts_beside_images_do_not_decide_the_format(place):
    folder = place("red/1.jpg", "blue/2.jpg")
    for name in ("red/1.txt", "blue/2.txt", "red/1.json", "blue/2.json", "read.me.txt"):
        (folder / name).write_text("{}")
    assert paths_of(folder, load_source(folder, None, None)["train"]) == ["blue/2.jpg", "red/1.jpg"]


# ---- Splits ----


def test_one_metadata_file_above_the_folders_of_the_splits(place, caplog):
    folder = place("train/1.jpg", "train/2.jpg", "test/3.jpg", "test/4.jpg", "other/5.jpg", "train/6.jpg")
    names = ["test/3.jpg", "train/1.jpg", "other/5.jpg", "train/2.jpg", "test/4.jpg"]
    write_csv(folder / "metadata.csv", [{"file_name": name, "colour": f"c{name[-5]}"} for name in names])
    splits = load_source(folder, None, None)
    assert {split: dataset["colour"][:] for split, dataset in splits.items()} == {
        "train": ["c1", "c2"],
        "test": ["c3", "c4"],
    }
    assert paths_of(folder, splits["test"]) == ["test/3.jpg", "test/4.jpg"]
    assert "1 outside of the folders of the splits (other/5.jpg)" in caplog.text
    assert "1 that no metadata file lists (train/6.jpg)" in caplog.text


def test_one_metadata_file_beside_images_named_after_their_splits(place):
    folder = place("train_1.jpg", "train_2.jpg", "test_3.jpg")
    rows = [{"file_name": name, "colour": name[-5]} for name in ("test_3.jpg", "train_2.jpg", "train_1.jpg")]
    write_csv(folder / "metadata.csv", rows)
    splits = load_source(folder, None, None)
    assert {split: dataset["colour"][:] for split, dataset in splits.items()} == {"train": [2, 1], "test": [3]}


def test_a_split_that_no_metadata_file_lists(place):
    folder = place("train/1.jpg", "test/2.jpg")
    write_csv(folder / "train" / "metadata.csv", [{"file_name": "1.jpg", "colour": "red"}])
    with pytest.raises(ValueError, match="list no image of the split 'test', such as test/2.jpg; add test/metadata.c"):
        load_source(folder, None, None)


# ---- Metadata ----


def test_cells_with_words_for_nothing_are_values(place):
    words = ["None", "NA", "N/A", "null", "nan", "<NA>", "red", ""]
    folder = place(*[f"{row}.jpg" for row in range(16)])
    rows = [{"file_name": f"{row}.jpg", "colour": words[row % 8]} for row in range(16)]
    write_csv(folder / "metadata.csv", rows)
    data = load_attribute_dataset(folder, ["colour"], make_splits=False)
    assert data.attributes["colour"] == ["<NA>", "N/A", "NA", "None", "nan", "null", "red"]
    assert (data.labels("train")[:, 0] >= 0).tolist() == [row["colour"] != "" for row in rows]
    (folder / "metadata.csv").rename(folder.parent / "old.csv")
    lines = [json.dumps({**row, "colour": row["colour"] or None}) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    again = load_attribute_dataset(folder, ["colour"], make_splits=False)
    assert again.attributes == data.attributes
    assert again.labels("train").tolist() == data.labels("train").tolist()


def test_columns_of_csv_have_one_type_in_all_splits(place):
    """A hole in one split made its column floats, which `datasets` refused; 007 became 7."""
    folder = place(*[f"{split}/{row}.jpg" for split in ("train", "test") for row in range(4)])
    train = {"size": "9", "code": "007", "new": "True", "price": "1.5", "serial": "12345678901234567890"}
    test = {"size": "", "code": "8", "new": "FALSE", "price": "2", "serial": "1"}
    for split, cells in (("train", train), ("test", test)):
        rows = [{"file_name": f"{row}.jpg", **cells, "size": cells["size"] and str(9 + row % 2)} for row in range(4)]
        write_csv(folder / split / "metadata.csv", rows)
    splits = load_source(folder, None, None)
    assert {name: feature.dtype for name, feature in splits["train"].features.items() if name != "image"} == {
        "size": "int64",
        "code": "string",
        "new": "bool",
        "price": "float64",
        "serial": "string",
    }
    assert splits["train"].features == splits["test"].features
    assert splits["test"][0] | {"image": None} == {
        "image": None, "size": None, "code": "8", "new": False, "price": 2.0, "serial": "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"sku,colour\n1,red\n", "metadata.csv: there is no column 'file_name' .* are 'sku', 'colour'"),
        (b"", "metadata.csv: there is no column 'file_name' .* The columns are none"),
        (
            "file_name,colour\n1.jpg,grün\n".encode("latin-1"),
            "metadata.csv is not encoded in UTF-8 .*; save it in",
        ),
        ("file_name,colour\n1.jpg,red\n".encode("utf-16"), "metadata.csv is not encoded in UTF-8"),
        (b"file_name,colour\n1.jpg,red\n2.jpg,red, dark\n", "metadata.csv, line 3: 3 cells for 2 columns; put quotes"),
        (
            b"file_name,colour\n../../secret.jpg,red\n",
            "metadata.csv: '../../secret.jpg' is no path inside of",
        ),
        (b"file_name,colour\n/etc/passwd,red\n", "metadata.csv: '/etc/passwd' is no path inside of the data set"),
        (b"file_name,colour\nfile:///etc/passwd,red\n", "metadata.csv: 'file:///etc/passwd' is no path inside"),
    ],
)
def test_metadata_that_cannot_be_read_is_named(place, content, message):
    folder = place("1.jpg", "2.jpg")
    (folder / "metadata.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_source(folder, None, None)
    assert str(folder / "metadata.csv") in str(caught.value)


def test_metadata_without_rows(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,colour\n")
    with pytest.raises(ValueError, match=f"the metadata files in {tmp_path} contain no rows"):
        load_source(tmp_path, None, None)


def test_words_for_nothing_in_other_tables_are_values(tmp_path):
    (tmp_path / "train.csv").write_text("file_name,colour,size\n1.jpg,NA,1\n2.jpg,,\n3.jpg,None,3\n")
    train = load_source(tmp_path, None, None)["train"]
    assert train["colour"][:] == ["NA", None, "None"] and train["size"][:] == [1, None, 3]


def test_json_lines_that_cannot_be_read_are_named(place):
    folder = place("1.jpg")
    (folder / "metadata.jsonl").write_text('{"file_name": "1.jpg"}\n{"file_name": \n')
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 2: not a JSON object"):
        load_source(folder, None, None)


def test_csv_as_spreadsheets_write_it(place):
    """With a mark of its encoding, quotes, line breaks in a cell, empty lines and an index without a name."""
    folder = place("1.jpg", "2.jpg")
    text = ',file_name,note\r\n0,1.jpg,"a, b\nc"\r\n\r\n1,2.jpg,"""d"""\r\n'
    (folder / "metadata.csv").write_text(text, encoding="utf-8-sig", newline="")
    data = load_source(folder, None, None)["train"]
    assert data.column_names == ["Unnamed: 0", "image", "note"]
    assert data["note"][:] == ["a, b\nc", '"d"'] and data["Unnamed: 0"][:] == [0, 1]


def test_further_columns_of_paths_are_images_too(place):
    folder = place("a/1.jpg", "a/2.jpg", "a/3.jpg")
    rows = [{"file_name": "1.jpg", "back_file_name": "2.jpg", "file_names": ["2.jpg", "3.jpg"]}]
    (folder / "a" / "metadata.jsonl").write_text(json.dumps(rows[0]))
    row = load_source(folder, None, None)["train"][0]
    assert row.keys() == {"image", "back", "images"}
    assert row["back"].filename == str(folder / "a" / "2.jpg")
    assert [image.filename for image in row["images"]] == [str(folder / "a" / "2.jpg"), str(folder / "a" / "3.jpg")]


def test_found_files(place):
    folder = place("b/2.jpg", "a.b.jpg", "b/1.png.jpg")
    found = find_files(folder)
    assert found.images == ["a.b.jpg", "b/1.png.jpg", "b/2.jpg"] and not found.passed_over
