"""Every kind of data in the table of docs/your_own_data.md, from Python and the command line; what is refused.

A kind is a function that writes the same rows, and returns what the user types: a path or an object.
"""

import csv
import io
import json
import logging
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Image
from PIL import Image as PILImage

from cca_hf import load_attribute_dataset
from cca_hf.embedding.catalogue import Catalogue
from cca_hf.models.images import load_image

from ..pages import run_cca
from .conftest import Row, encode_picture, make_rows

ROWS = 12
VALUES = {"colour": ["blue", "green", "red"], "size": ["large", "small"], "buttons": ["0", "5", "10", "15"]}


class Polars:
    """What polars hands over: the Arrow PyCapsule interface, with texts as views and categories as dictionaries."""

    def __init__(self, rows: list[Row]) -> None:
        table = pa.Table.from_pylist(rows)
        texts = pa.array(table["colour"].to_pylist(), pa.string()).dictionary_encode()
        self.table = table.set_column(1, "colour", texts).set_column(
            0, "image", pa.array(table["image"].to_pylist(), pa.string_view())
        )

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


def write_csv(file: Path, rows: list[Row], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with open(file, "w", newline="", encoding=encoding) as text:
        writer = csv.DictWriter(text, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return file


def renamed(rows: list[Row], image: Callable[[str], str], column: str = "image") -> list[Row]:
    return [{column: image(row["image"]), **{name: row[name] for name in row if name != "image"}} for row in rows]


def write_excel(folder: Path, rows: list[Row]) -> Path:
    pytest.importorskip("openpyxl")
    pandas.DataFrame(rows).to_excel(folder / "catalogue.xlsx", index=False)
    return folder / "catalogue.xlsx"


def write_json_lines(folder: Path, rows: list[Row]) -> Path:
    (folder / "catalogue.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "catalogue.jsonl"


def write_parquet(folder: Path, rows: list[Row]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / "catalogue.parquet")
    return folder / "catalogue.parquet"


def write_metadata(folder: Path, rows: list[Row]) -> Path:
    write_csv(folder / "images" / "metadata.csv", renamed(rows, lambda path: Path(path).name, "file_name"))
    return folder / "images"


def write_other_table(folder: Path, rows: list[Row]) -> Path:
    shop = folder / "shop"
    shutil.copytree(folder / "images", shop / "images")
    write_csv(shop / "labels.csv", renamed(rows, lambda path: Path(path).name), ";")
    return shop


def write_class_folders(folder: Path, rows: list[Row]) -> Path:
    for row in rows:
        (folder / "classes" / row["colour"]).mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / row["image"], folder / "classes" / row["colour"])
    return folder / "classes"


def make_list(folder: Path, rows: list[Row]) -> list[Row]:
    """Images in all forms."""
    forms: list[Callable[[Path], object]] = [
        lambda path: path,
        str,
        Path.read_bytes,
        PILImage.open,
        lambda path: PILImage.open(path).copy(),
        lambda path: np.asarray(PILImage.open(path)),
    ]
    return [{**row, "image": forms[place % len(forms)](folder / row["image"])} for place, row in enumerate(rows)]


def make_dataset(folder: Path, rows: list[Row]) -> Dataset:
    paths = [{**row, "image": str(folder / row["image"])} for row in rows]
    return Dataset.from_list(paths).cast_column("image", Image())


def save_dataset(folder: Path, rows: list[Row]) -> Path:
    make_dataset(folder, rows).save_to_disk(folder / "saved")
    return folder / "saved"


def write_tars(folder: Path, rows: list[Row]) -> Path:
    (folder / "tars").mkdir()
    with tarfile.open(folder / "tars" / "train-0.tar", "w") as tar:
        for place, row in enumerate(rows):
            labels = json.dumps({name: cell for name, cell in row.items() if name != "image"}).encode()
            for suffix, content in {"jpg": (folder / row["image"]).read_bytes(), "json": labels}.items():
                info = tarfile.TarInfo(f"{place:04}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder / "tars"


KINDS: dict[str, Callable[[Path, list[Row]], Any]] = {
    "CSV": lambda folder, rows: write_csv(folder / "catalogue.csv", rows),
    "TSV": lambda folder, rows: write_csv(folder / "catalogue.tsv", rows, "\t"),
    "CSV with semicolons": lambda folder, rows: write_csv(folder / "catalogue.csv", rows, ";"),
    "CSV of Excel": lambda folder, rows: write_csv(folder / "catalogue.csv", rows, ";", "utf-8-sig"),
    "Excel": write_excel,
    "JSON lines": write_json_lines,
    "parquet": write_parquet,
    "absolute paths": lambda folder, rows: write_csv(
        folder / "catalogue.csv", renamed(rows, lambda path: str(folder / path), "Image Path")
    ),
    "Windows paths": lambda folder, rows: write_csv(
        folder / "catalogue.csv", renamed(rows, lambda path: path.replace("/", "\\"), "file_name")
    ),
    "URLs": lambda folder, rows: write_csv(
        folder / "catalogue.csv", renamed(rows, lambda path: f"{SERVER['url']}/{path}?size=full", "image_url")
    ),
    "images with metadata.csv": write_metadata,
    "images with another table": write_other_table,
    "class folders": write_class_folders,
    "pandas": lambda folder, rows: pandas.DataFrame(rows),
    "polars": lambda folder, rows: Polars(rows),
    "list of dicts": make_list,
    "Dataset": make_dataset,
    "saved Dataset": save_dataset,
    "WebDataset": write_tars,
}
# What a user of the command line writes first.
FILES: dict[str, Callable[[Path, list[Row]], Path]] = {
    "pandas": lambda folder, rows: write_csv(folder / "catalogue.csv", rows),
    "polars": write_parquet,
    "list of dicts": write_json_lines,
    "Dataset": save_dataset,
}
SERVER: dict[str, str] = {}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the images that the rows name."""
    (tmp_path / "images").mkdir()
    for place, row in enumerate(make_rows(ROWS)):
        (tmp_path / "images" / f"{place:02}.jpg").write_bytes(encode_picture(place, row["colour"]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rows() -> list[Row]:
    return [{"image": f"images/{place:02}.jpg", **row} for place, row in enumerate(make_rows(ROWS))]


@pytest.fixture
def served(image_server, monkeypatch) -> None:
    """The images at URLs of this machine, which the user trusts."""
    SERVER["url"], answers = image_server
    answers.update(
        {f"/images/{row:02}.jpg?size=full": encode_picture(row, make_rows(ROWS)[row]["colour"]) for row in range(ROWS)}
    )
    monkeypatch.setenv("CCA_TRUST_DATA", "1")


def check(data: Any, kind: str) -> None:
    """The values, the labels and the pixels of every image."""
    (split,) = data.splits.values()
    labelled = make_rows(ROWS)
    if kind == "class folders":
        labelled.sort(key=lambda row: str(row["colour"]))
        assert data.attributes == {"label": VALUES["colour"]}
        expected = [[VALUES["colour"].index(row["colour"])] for row in labelled]
    else:
        assert data.attributes == VALUES
        expected = [
            [-1 if row[name] is None else names.index(str(row[name])) for name, names in VALUES.items()]
            for row in labelled
        ]
    assert data.labels("train").tolist() == expected
    order = {row["item"] + str(row["buttons"]): place for place, row in enumerate(make_rows(ROWS))}
    for row, image in zip(labelled, split["image"], strict=True):
        picture = encode_picture(order[row["item"] + str(row["buttons"])], row["colour"])
        assert np.array_equal(np.asarray(load_image(image)), np.asarray(load_image(picture)))


@pytest.mark.parametrize("kind", KINDS)
def test_from_python(kind, shop, rows, served):
    check(load_attribute_dataset(KINDS[kind](shop, rows), make_splits=False), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_from_the_command_line(kind, shop, rows, served):
    """The command writes the images and the labels that it has read."""
    source = FILES.get(kind, KINDS[kind])(shop, rows)
    run_cca(["cca", "data", "push", "--dataset", str(source), "--repo", "me/shoes", "--dry_run", "staged"], shop)
    written = shop / "staged" / "data" / "train-00000-of-00001.parquet"
    check(load_attribute_dataset(written, make_splits=False), kind)


def test_the_page_lists_what_is_tested(repository):
    page = (repository / "docs" / "your_own_data.md").read_text(encoding="utf-8")
    table = page.partition("|---|---|---|\n")[2].partition("\n\n")[0]
    assert [line.split("|")[1].strip() for line in table.splitlines()] == [*KINDS, "Hub"]  # Hub: test_sources.py


# ---- The column of images ----


def test_the_column_of_images(shop, rows):
    """A usual name comes before others, and the user's choice before all."""
    other = [
        {"thumbnail": "images/00.jpg", "photo": row["image"], **row, "image": place} for place, row in enumerate(rows)
    ]
    for row in other:
        del row["image"]
    write_csv(shop / "catalogue.csv", other)
    data = load_attribute_dataset("catalogue.csv", make_splits=False)
    assert data.splits["train"][5]["image"]["path"] == str(shop / "images" / "05.jpg")
    data = load_attribute_dataset("catalogue.csv", image_column="thumbnail", make_splits=False)
    assert data.splits["train"][5]["image"]["path"] == str(shop / "images" / "00.jpg")
    write_csv(
        shop / "catalogue.csv",
        [{"front": row["image"], "back": row["image"], "colour": row["colour"]} for row in rows],
    )
    with pytest.raises(ValueError, match=r"catalogue.csv: several columns name images: front, back; choose one with"):
        load_attribute_dataset("catalogue.csv")


def test_the_folder_of_the_images(shop, rows):
    write_csv(shop / "catalogue.csv", renamed(rows, lambda path: "..\\images\\" + Path(path).name, "path"))
    (shop / "lists").mkdir()
    (shop / "catalogue.csv").rename(shop / "lists" / "catalogue.csv")
    (shop / "lists" / "elsewhere").mkdir()
    with pytest.raises(
        ValueError, match=r"the column 'path' of the split 'train' names the file '.*00.jpg', which is not"
    ):
        load_attribute_dataset("lists/catalogue.csv")
    write_csv(shop / "lists" / "catalogue.csv", renamed(rows, lambda path: Path(path).name, "path"))
    data = load_attribute_dataset("lists/catalogue.csv", image_root=shop / "images", make_splits=False)
    check(data, "CSV")


def test_an_absolute_path_elsewhere_needs_the_users_word(shop, rows, tmp_path_factory, monkeypatch):
    private = tmp_path_factory.mktemp("private")
    shutil.copytree(shop / "images", private / "images")
    elsewhere = renamed(rows, lambda path: str(private / path))
    write_csv(shop / "catalogue.csv", elsewhere)
    with pytest.raises(
        ValueError, match=r"names the file '.*', which is not in \S+\. If you trust the data, set CCA_TRU"
    ):
        load_attribute_dataset("catalogue.csv")
    check(load_attribute_dataset(pandas.DataFrame(elsewhere), make_splits=False), "pandas")
    monkeypatch.setenv("CCA_TRUST_DATA", "1")
    check(load_attribute_dataset("catalogue.csv", make_splits=False), "CSV")


def test_missing_files_are_skipped_if_wanted(shop, rows, caplog):
    for row in (3, 7):
        (shop / "images" / f"{row:02}.jpg").unlink()
    write_csv(shop / "catalogue.csv", rows)
    data = load_attribute_dataset("catalogue.csv", on_unreadable="skip", make_splits=False)
    assert len(data["train"]) == ROWS - 2 and data.coverage["train"].listed == ROWS
    assert (
        "catalogue.csv, row 5: there is no image 'images/03.jpg'. 2 of 12 rows name missing files; these rows "
        "are left out"
    ) in caplog.messages
    catalogue = Catalogue.from_dataset("catalogue.csv", on_unreadable="skip")
    assert catalogue.paths(0, ROWS).count(None) == 2 and len(catalogue) == ROWS


def test_a_table_for_embedding_and_its_split(shop, rows):
    write_csv(shop / "shoes-val.csv", rows)
    for split in ("validation", "valid", "val", "dev", None):
        catalogue = Catalogue.from_dataset("shoes-val.csv", split=split, columns=["colour"])
        assert len(catalogue) == ROWS
    with pytest.raises(ValueError, match="no split 'test'; there are: validation"):
        Catalogue.from_dataset("shoes-val.csv", split="test")


def test_other_names_of_the_validation_split(shop, rows):
    data = load_attribute_dataset(rows, make_splits=True)
    assert list(data.splits) == ["train", "validation", "test"]
    for split in ("valid", "val", "dev"):
        assert split in data and data[split] is data["validation"]
        assert data.labels(split).tolist() == data.labels("validation").tolist()


# ---- The attributes ----


def test_the_columns_whose_values_repeat(shop, caplog):
    rows = [
        {
            "image": f"images/{place % ROWS:02}.jpg",
            "colour": ("red", "blue", "green")[place % 3],
            "year": 2020 + place % 4,
            "productId": place // 20,
            "price": 19 + place % 2,
            "old price": f"{place % 3},90 €",
            "length": place % 4 + 0.5,
            "name": f"Shoe {place}",
            "note": ("a long description of a shoe " * 3 + str(place % 2)),
            "materials": ("cotton", "wool", "cotton|wool")[place % 3],
            "season": "summer",
            "tags": ["new"],
        }
        for place in range(60)
    ]
    with caplog.at_level(logging.WARNING):
        data = load_attribute_dataset(rows, make_splits=False)
    assert data.attributes == {"colour": ["blue", "green", "red"], "year": ["2020", "2021", "2022", "2023"]}
    assert (
        "no attributes were named, so the columns whose values repeat are used: colour (3 values), year (4 values); "
        "not used: productId (called like an identifier), price (called like a quantity), old price (prices or "
        "fractions), length (prices or fractions), name (60 values for 60 images), note (free text), materials "
        "(several values in a cell, such as 'cotton|wool'), season (one value, 'summer'), tags (lists). Choose the "
        "attributes with attributes=[...] or --attributes"
    ) in caplog.messages


# ---- What is refused ----


def table_of(shop: Path, column: str, cells: list[object], name: str = "catalogue.jsonl") -> Path:
    rows = [{"image": f"images/{place:02}.jpg", column: cell} for place, cell in enumerate(cells)]
    (shop / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return shop / name


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            ["red", "blue", "red|blue", "red"],
            "the column 'colour' has cells with several values, such as 'red|blue'. An attribute has one value for "
            "each image: keep the main one in this column, and put a list of all of them into a column colour_all of "
            "a JSON lines or parquet file or a DataFrame, which the evaluation reads",
        ),
        (
            [["red"], ["blue"], ["red", "blue"], ["red"]],
            "the column 'colour' contains lists. An attribute has one value for each image: keep the main one in this "
            "column, and put a list of all of them into a column colour_all of a JSON lines or parquet file or a "
            "DataFrame, which the evaluation reads",
        ),
        (
            [1, 1, 2.5, 2.5],
            "the column 'colour' contains fractions, such as 2.5; convert it to a few named ranges first, such as "
            "'under 50' and '50 to 100' (pandas.cut does this)",
        ),
    ],
    ids=["A|B", "lists", "fractions"],
)
def test_columns_that_cannot_be_attributes(cells, message, shop, capsys):
    source = table_of(shop, "colour", cells)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_attribute_dataset(source, ["colour"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sku,colour\n1,red\n2,blue\n", r"catalogue.csv: no column names images. One column must contain the path of "
                                        r"each image, relative to \S+, or its URL. The columns are 'sku', 'colour'"),
        ("image,colour\n", "catalogue.csv contains no rows"),
        ("", "catalogue.csv contains no rows"),
        ("image,colour;size\nimages/00.jpg,red;1\n",
         "catalogue.csv: the columns could be separated by a comma or by a semicolon; put quotes around the"),
        ("image;colour\nimages/00.jpg;red\nimages/01.jpg;red;dark\n",
         "catalogue.csv, line 3: 3 cells for 2 columns; put quotes around a text that contains a semicolon"),
        ("image,colour\nimages/00.jpg,red\nimages/100.jpg,red\nimages/01.jpg,blue\nimages/101.jpg,red\n",
         r"catalogue.csv, row 3: there is no image 'images/100.jpg'. 2 of 4 rows name missing files. Paths are "
         r"relative to \S+, or to an image_root. Correct them, or leave the rows out with on_unreadable='skip'"),
        ("image,colour\nimages/00.jpg,gr\xfcn\n".encode("latin-1"),
         r"catalogue.csv is not encoded in UTF-8 \(.*\); save it in UTF-8, which Excel calls 'CSV UTF-8'"),
    ],
    ids=["no images", "no rows", "nothing", "separators", "cells", "missing file", "encoding"],
)  # fmt: skip
def test_tables_that_cannot_be_read(content, message, shop):
    file = shop / "catalogue.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        load_attribute_dataset(file, ["colour"])
    assert str(error.value).startswith(str(file))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.xls",
            b"image,colour\n",
            "a.xls is no Excel file: it contains text, such as CSV or HTML. If it is CSV, rename",
        ),
        (
            "a.xls",
            b"\xd0\xcf\x11\xe0...",
            "a.xls is an Excel file of an old kind, or has a password; save it as .xlsx or",
        ),
        ("a.parquet", b"image,colour\n", "a.parquet is not a parquet file"),
        (
            "a.pdf",
            b"%PDF",
            r"'.*a.pdf' is a file that is no table \(.csv, .tsv, .xlsx, .xls, .jsonl, .parquet\); give",
        ),
        ("a.jsonl", b'[{"image": "images/00.jpg"}]\n', "a.jsonl, line 1: a line must be a JSON object"),
    ],
)
def test_files_that_are_no_tables(name, content, message, shop):
    (shop / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_attribute_dataset(name)


def test_excel_without_openpyxl(shop, monkeypatch):
    (shop / "a.xlsx").write_bytes(b"PK\x03\x04")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ImportError, match=r"to read a.xlsx, pip install 'cca_hf\[excel\]', or save the sheet as CSV"):
        load_attribute_dataset("a.xlsx")


def test_folders_without_images(shop):
    (shop / "empty").mkdir()
    with pytest.raises(ValueError, match="/empty contains no images and no table: it is empty. Give the folder that"):
        load_attribute_dataset("empty")
    (shop / "empty" / "a.docx").write_bytes(b"PK")
    with pytest.raises(
        ValueError, match=r"no images and no table: 1 of no image format that can be read \(.docx: 1\)"
    ):
        load_attribute_dataset("empty")
    with pytest.raises(FileNotFoundError, match="there is no file 'catalogue.csv'"):
        load_attribute_dataset("catalogue.csv")


def test_objects_that_are_no_data(shop, rows):
    with pytest.raises(ValueError, match="the list contains no rows"):
        load_attribute_dataset([])
    with pytest.raises(TypeError, match="a list of rows contains a dict for each image; got str"):
        load_attribute_dataset(["images/00.jpg"])
    with pytest.raises(TypeError, match=r"DatasetDict \(not a streamed one\); got dict"):
        load_attribute_dataset({"image": ["images/00.jpg"]})
    with pytest.raises(ValueError, match="the DataFrame, row 2: there is no image 'none.jpg'"):
        load_attribute_dataset(
            pandas.DataFrame({**rows[0], "image": f"{name}.jpg"} for name in ("images/00", "images/01", "none"))
        )


def test_tables_among_images_that_do_not_label_them(shop, rows, caplog):
    """The folders of values stay the labels."""
    folder = write_class_folders(shop, rows)
    (folder / "prices.csv").write_text("sku,price\n1,2\n")
    assert load_attribute_dataset(folder, make_splits=False).attributes == {"label": VALUES["colour"]}
    assert "prices.csv does not label the images beside it: " in caplog.text
    (folder / "prices.csv").write_text("file_name,price\n")
    assert load_attribute_dataset(folder, make_splits=False).attributes == {"label": VALUES["colour"]}
    assert "prices.csv does not label the images beside it: it has no rows" in caplog.text
    (folder / "prices.csv").write_text("image,price\nother.jpg,2\n")
    assert load_attribute_dataset(folder, make_splits=False).attributes == {"label": VALUES["colour"]}
    assert "most of its paths, such as 'other.jpg', are no images in this folder" in caplog.text
    (folder / "stock.csv").write_text("sku,stock\n1,2\n")
    assert load_attribute_dataset(folder, make_splits=False).attributes == {"label": VALUES["colour"]}
    assert "(prices.csv, stock.csv): call the one that labels the images metadata.csv" in caplog.text
