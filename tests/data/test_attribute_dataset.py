"""A data set as its user sees it: a mapping of splits with decoded images, and what a terminal and a notebook show."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from datasets import DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image

from cca_hf import load_attribute_dataset
from cca_hf.data.html_table import html_table, thumbnail
from cca_hf.data.schema import AttributeDataset
from cca_hf.data.split_names import same_split
from cca_hf.embedding.catalogue import Catalogue
from cca_hf.evaluation.retrieval.evaluator import query_and_gallery
from cca_hf.models.encoding import as_sequence
from cca_hf.models.images import UnreadableImageError, load_image


@pytest.fixture
def data(built, rows) -> AttributeDataset:
    splits = DatasetDict(train=built(rows[:18]), validation=built(rows[18:24]), test=built(rows[24:]))
    return load_attribute_dataset(splits, ["colour", "size"], group_column="item")


def test_a_mapping_of_splits(data):
    assert (len(data), list(data), list(data.keys())) == (3, ["train", "validation", "test"], [*data.splits])
    assert [(split, rows.num_rows) for split, rows in data.items()] == [("train", 18), ("validation", 6), ("test", 6)]
    assert [rows.num_rows for rows in data.values()] == [18, 6, 6]
    assert "train" in data and "tests" not in data and 3 not in data
    assert data.get("tests") is None and data["test"] is data["test"] is dict(data)["test"]


@pytest.mark.parametrize("name", ["valid", "val", "dev"])
def test_other_names_of_validation(data, name):
    assert data[name] is data["validation"] and name in data
    assert data.labels(name).tolist() == data.labels("validation").tolist()
    assert data.groups(name).tolist() == data.groups("validation").tolist()


def test_a_name_that_the_data_set_has_is_taken_as_it_is():
    assert same_split("val", ["train", "val", "validation"]) == "val"
    assert same_split("validation", ["train", "valid"]) == "valid"
    assert same_split("val", ["train"]) == "validation" and same_split("tset", ["test"]) == "tset"


def test_an_unknown_split_names_the_closest(data):
    with pytest.raises(KeyError, match=r"no split 'tset' \(did you mean 'test'\?\); there are: test, train, valid"):
        data["tset"]


def test_images_are_decoded_on_access(data):
    encoded = data.splits["train"][3]["image"]
    assert encoded["bytes"].startswith(b"\xff\xd8")
    train = data["train"]
    for image in (train[3]["image"], train["image"][3], train[:4]["image"][3], train.select([3])[0]["image"]):
        assert image.mode == "RGB" and np.array_equal(image, load_image(encoded))
    counted = train.map(lambda row: {"buttons": len(row["item"])})  # the files stay as they are
    assert counted.with_format("arrow")["image"][3].as_py() == encoded
    assert Features.from_dict(train.features.to_dict())["image"] == ImageFeature(mode="RGB")  # of `datasets` in files


def test_decoded_images_are_those_of_the_model(built, rows):
    """Upright, of more than 8 bits, and with the name of what cannot be read."""
    turned, buffer = Image.new("RGB", (24, 18)), io.BytesIO()
    turned.getexif()[0x0112] = 6
    turned.save(buffer, "JPEG", exif=turned.getexif())
    deep, grey = io.BytesIO(), np.full((18, 24), 30000, dtype=np.uint16)
    Image.fromarray(grey).save(deep, "PNG")
    images = [buffer.getvalue(), deep.getvalue(), b"broken", *[buffer.getvalue()] * 5]
    train = load_attribute_dataset(built(rows[:8], images), ["colour"], make_splits=False)["train"]
    assert train[0]["image"].size == (18, 24)
    assert train[1]["image"].getpixel((0, 0)) == (30000 // 257,) * 3
    with pytest.raises(UnreadableImageError, match="cannot be read as an image"):
        train[2]


def test_the_model_reads_the_files(data):
    """`encode(data["test"]["image"])` decodes an image once, in its threads."""
    for images in (data["test"]["image"], data["test"].select([0, 1])["image"]):
        assert as_sequence(images)[1] == data.splits["test"][1]["image"]
    changed = data["test"].with_transform(lambda batch: {"image": [image.rotate(90) for image in batch["image"]]})
    assert as_sequence(changed["image"])[0].size == (24, 18)  # what the user does to the images stays


def test_decoded_splits_are_encoded_again(data):
    part = replace(data, splits=DatasetDict(test=data["test"].select(range(4))))
    assert part.splits["test"].features["image"] == ImageFeature(decode=False)
    assert part["test"].num_rows == 4 and part.summary().splits["test"].images == 4


def test_a_terminal_shows_splits_and_attributes(data):
    many = replace(data, attributes=data.attributes | {"size": [f"size {number}" for number in range(1200)]})
    assert repr(many).splitlines() == [
        "AttributeDataset",
        "  splits:",
        "    train       18 images",
        "    validation  6 images",
        "    test        6 images",
        "  attributes:",
        "    colour      3 values: blue, green, red",
        "    size        1,200 values: size 0, size 1, size 2, size 3, size 4, ...",
        "  groups of near copies: item",
    ]


def shown(html: str) -> list[str]:
    """The captions of the thumbnails."""
    return re.findall(r"<small>(.*?)</small>", html)


def test_a_notebook_shows_an_image_of_the_first_values(built, rows):
    rows = [
        row | {"colour": ("<script>alert(1)</script>", "red", "blue")[place % 3]} for place, row in enumerate(rows)
    ]
    images = [None] * len(rows)
    source = built(rows)
    images = [row["bytes"] for row in source.with_format("arrow")["image"].to_pylist()]
    images[1] = b"broken"  # the first red one
    data = load_attribute_dataset(built(rows, images), ["colour", "buttons"], make_splits=False)
    html = data._repr_html_()
    assert "<script" not in html
    assert shown(html) == [
        "&lt;script&gt;alert(1)&lt;/script&gt; (10)",
        "blue (10)",
        "red (10)",
        *["0 (8)", "5 (8)", "10 (7)", "15 (7)"],
    ]
    uris = re.findall(r'src="data:image/jpeg;base64,(.*?)"', html)
    assert len(uris) == 5 and html.count("background-color: rgba(128, 128, 128, 0.4)") == 2  # red, and 5 buttons
    first = Image.open(io.BytesIO(base64.b64decode(uris[0])))
    assert first.size == (24, 18)
    difference = np.asarray(first).astype(int) - np.asarray(load_image(images[0]))
    assert np.abs(difference).mean() < 12
    assert "train: 30 images" in html


def test_a_notebook_stays_small(built, rows):
    rows = [{f"attribute {place}": str(row % 8) for place in range(12)} for row in range(24)]
    images = np.random.default_rng(0).integers(0, 256, (24, 300, 400, 3), dtype=np.uint8)
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    html = load_attribute_dataset(built(rows, files), [*rows[0]], make_splits=False)._repr_html_()
    assert len(shown(html)) == 10 * 5 and "2 more attributes: attribute 10, attribute 11" in html
    assert len(html) < 50 * 14_000  # of noise, which JPEG cannot reduce


def test_a_display_opens_no_connection(image_server, data):
    url, answers = image_server
    answers["/x.jpg"] = data.splits["train"][0]["image"]["bytes"]
    assert thumbnail(f"{url}/x.jpg", "") == thumbnail({"bytes": None, "path": f"{url}/x.jpg"}, "") == (None, "")
    assert thumbnail(None, "none") == (None, "none")


def test_the_summary_in_a_notebook_has_the_cells_of_the_text(data):
    summary = data.summary()
    html, lines = summary._repr_html_(), str(summary).splitlines()
    assert repr(summary) == str(summary)
    cells = re.findall(r"<t[hd] [^>]*>(.*?)</t[hd]>", html)
    assert cells == [cell for line in lines for cell in re.split(r" {2,}", line)]


def test_a_table_escapes_every_text():
    html = html_table(["<b>"], [[["<i>", "<u>", [thumbnail(None, "<s>")]]]], ["<p>"], title="<h1>")
    for tag in ("b", "i", "u", "s", "p", "h1"):
        assert f"&lt;{tag}&gt;" in html
    assert not re.search(r"<(i|u|s|h1)>", html)


def test_other_names_in_commands(built, rows):
    """`--split valid` of `cca evaluate`, and of `cca embed` and `cca index`, which take the splits of the source."""
    source = DatasetDict(train=built(rows[:18]), val=built(rows[18:]))
    for name in ("val", "valid", "validation"):
        assert len(Catalogue.from_dataset(source, split=name)) == 12
    with pytest.raises(ValueError, match="no split 'test'; there are: train, val"):
        Catalogue.from_dataset(source, split="test")
    data = load_attribute_dataset(source, ["colour"], make_splits=False)
    assert query_and_gallery(data, "valid") == ("validation", None)
    pair = DatasetDict(validation_query=data.splits["train"], validation_gallery=data.splits["validation"])
    assert query_and_gallery(replace(data, splits=pair), "val") == ("validation_query", "validation_gallery")
