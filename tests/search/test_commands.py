"""`cca index` and `cca search`, from pictures to a page, as they are typed."""

import datetime
import decimal
import io
import json
import logging
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import ViTConfig

from cca_hf.cli.main import main
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.search import AttributeIndex

COLOURS = ["blue", "red"]
ITEMS = 24


@pytest.fixture(scope="module")
def shoes(tmp_path_factory) -> Path:
    """A data set of parquet files, with labels, prices and a column that no index can hold."""
    folder = tmp_path_factory.mktemp("data") / "shoes"
    features = Features(
        image=Image(), sku=Value("int64"), colour=ClassLabel(names=COLOURS), shape=Value("string"),
        price=Value("float32"), tags=[Value("string")],
    )  # fmt: skip
    pixels = [(30, 30, 120 + 5 * row) if row % 2 == 0 else (120 + 5 * row, 30, 30) for row in range(ITEMS)]
    rows = {
        "image": [PILImage.new("RGB", (32, 32), pixel) for pixel in pixels],
        "sku": [1000 + row for row in range(ITEMS)],
        "colour": [-1 if row == 5 else row % 2 for row in range(ITEMS)],
        "shape": ["round" if row % 3 else "square" for row in range(ITEMS)],
        "price": [float(row) for row in range(ITEMS)],
        "tags": [["a"]] * ITEMS,
    }
    folder.mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "cca"
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    CCAModel.from_backbone(config, ["colour", "shape"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def store(shoes, checkpoint, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("index") / "shoes.index"
    assert run("index", "--model", checkpoint, "--dataset", shoes, "--id_column", "sku", "--store", place) == 0
    return place


def run(*words: object) -> int:
    return main([str(word) for word in words])


def found(capsys, *words: object) -> list[dict]:
    capsys.readouterr()
    assert run("search", *words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_a_data_set_becomes_an_index(store, shoes, checkpoint, capsys):
    with AttributeIndex.open(store) as index:  # which names its model
        assert index.count() == ITEMS
        assert index.schema.columns == {"picture": "text", "colour": "text", "shape": "text", "price": "number"}
        assert Path(index.schema.checkpoint.name) == checkpoint
        (hit,) = index.get([1005])
        assert hit.columns == {"picture": f"{shoes}::test::5", "colour": None, "shape": "round", "price": 5.0}
        (itself,) = index.search(image=PILImage.new("RGB", (32, 32), (30, 30, 130)), attribute="colour", top=1)
        assert itself.item_id == "1002" and itself.similarity == pytest.approx(1, abs=1e-4)
    # again, and only what is new: nothing changes
    words = ["index", "--model", checkpoint, "--dataset", shoes, "--id_column", "sku", "--store", store, "--json"]
    assert run(*words, "--only_new") == 0
    assert json.loads(capsys.readouterr().out)["items"] == ITEMS


def test_an_index_finds_its_model(checkpoint, tmp_path, monkeypatch):
    """From another folder, and only if it is the same model still."""
    grey = PILImage.new("RGB", (32, 32), (90, 90, 90))
    monkeypatch.chdir(checkpoint.parent)
    model = CCAModel.from_pretrained(checkpoint.name)
    with AttributeIndex.create(tmp_path / "own.index", model) as index:
        index.add(["grey"], images=[grey])
    monkeypatch.chdir(tmp_path)
    with AttributeIndex.open("own.index") as index:
        (hit,) = index.search(grey, attribute="shape")
        assert hit.item_id == "grey" and hit.similarity == pytest.approx(1, abs=1e-4)
    model.config.name_or_path = str(tmp_path / "changed")
    AttributeIndex.create(tmp_path / "changed.index", model).close()
    model.layernorm.bias.data += 1
    model.save_pretrained(tmp_path / "changed")
    with AttributeIndex.open("changed.index") as index:
        with pytest.raises(ValueError, match=r"changed has changed since \(fingerprint .*; open the index with its"):
            index.search(grey, attribute="shape")
    model.config.name_or_path = ""
    AttributeIndex.create(tmp_path / "nameless.index", model).close()
    with AttributeIndex.open("nameless.index") as index:
        with pytest.raises(ValueError, match="nameless.index does not name its model; open the index with its model"):
            index.search(grey, attribute="shape")


def test_search_by_picture_item_and_value(store, tmp_path, capsys):
    """Under several attributes, mixed, filtered; the model is found by the index itself."""
    pictures = []
    for name, colour in (("blue.png", (30, 30, 140)), ("red.png", (200, 30, 30))):
        PILImage.new("RGB", (32, 32), colour).save(tmp_path / name)
        pictures.append(tmp_path / name)
    results = found(capsys, "--store", store, "--image", *pictures, "--attribute", "colour", "shape", "--top", 3,
                    "--where", "price < 10 and shape != 'square'")  # fmt: skip
    assert [(each["query"], each["attribute"]) for each in results] == [
        (name, attribute) for name in ("blue.png", "red.png") for attribute in ("colour", "shape")
    ]
    for each in results:
        assert len(each["found"]) == 3
        assert all(hit["columns"]["price"] < 10 and hit["columns"]["shape"] == "round" for hit in each["found"])
    (mixed,) = found(capsys, "--store", store, "--item", 1003, "--weights", "colour=1", "shape=0.5", "--top_k", 4)
    with AttributeIndex.open(store) as index:
        expected = index.search(item="1003", weights={"colour": 1, "shape": 0.5}, top=4)
        assert [hit["item_id"] for hit in mixed["found"]] == [hit.item_id for hit in expected]
        (wish,) = found(capsys, "--store", store, "--item", 1003, "--value", "colour=blue", "--top", 4)
        expected = index.search(item="1003", values={"colour": "blue"}, top=4)
        assert [hit["item_id"] for hit in wish["found"]] == [hit.item_id for hit in expected]
        assert wish["query"] == "item 1003, but colour blue"


def test_ids_below_zero(shoes, checkpoint, tmp_path, capsys):
    data = Dataset.from_parquet(str(shoes / "test-00000-of-00001.parquet"), cache_dir=str(tmp_path / "cache"))
    (tmp_path / "shoes").mkdir()
    data = data.remove_columns("sku").add_column("sku", [-row for row in range(ITEMS)])
    data.to_parquet(tmp_path / "shoes" / "test.parquet")
    place = tmp_path / "index"
    words = ["--model", checkpoint, "--dataset", tmp_path / "shoes", "--id-column", "sku", "--store", place]
    assert run("index", *words, "--columns", "price") == 0
    for item in (["--item", -3], ["--item=-3"]):
        (result,) = found(capsys, "--store", place, *item, "--attribute", "colour", "--top", 3)
        assert result["query"] == "item -3" and len(result["found"]) == 3
    results = found(capsys, "--store", place, "--item", -3, -4, 0, "--attribute", "colour", "--top", 3)
    assert [each["query"] for each in results] == ["item -3", "item -4", "item 0"]


def test_the_table(store, capsys):
    capsys.readouterr()
    assert run("search", "--store", store, "--value", "colour=red", "--top", 2) == 0
    head, columns, _, first, *_ = capsys.readouterr().out.splitlines()
    assert head == "colour red, by colour"
    assert columns.split() == ["item", "similarity", "colour", "shape", "price"]
    assert first.split()[0].startswith("10")
    assert run("search", "--store", store, "--item", 1003, "--attribute", "shape", "--top", 2) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["item", "similarity", "shape", "colour", "price"]


def test_ids_do_not_steer_the_terminal(checkpoint, tmp_path, capsys):
    """Control characters of ids and names are printed as escapes, in tables, JSON and errors."""
    model, place = CCAModel.from_pretrained(checkpoint), tmp_path / "index"
    ids = ["one", "\x1b[2J\x9b1mtwo\x07"]
    with AttributeIndex.create(place, model) as index:
        index.add(ids, embeddings=torch.nn.functional.normalize(torch.ones(2, 2, model.config.hidden_size), dim=-1))
    capsys.readouterr()
    words = ["search", "--store", place, "--model", checkpoint, "--attribute", "colour", "--item"]
    assert run(*words, "one") == 0
    assert "\\u001b[2J\\u009b1mtwo\\u0007       1.000" in capsys.readouterr().out
    assert run(*words, ids[1]) == 0
    assert capsys.readouterr().out.startswith("item \\u001b[2J\\u009b1mtwo\\u0007, by colour\n")
    assert run(*words, "one", "--json") == 0
    printed = capsys.readouterr().out
    assert "\x9b" not in printed and json.loads(printed)[0]["found"][0]["item_id"] == ids[1]
    assert run(*words, "\x1b]0;title\x07") == 1
    assert "title" in (error := capsys.readouterr().err) and not {"\x1b", "\x07"} & set(error)


def test_the_page_holds_the_pictures(store, tmp_path, capsys):
    page = tmp_path / "new" / "found.html"
    words = ["--store", store, "--item", 1003, "--attribute", "colour", "shape", "--top", 3, "--html", page]
    assert run("search", *words, "--where", "price < 20") == 0
    assert f"page: {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text.count('src="data:image/jpeg;base64,') == 1 + 2 * 3
    assert "price &lt; 20" in text and "http" not in text.replace("http-equiv", "")
    below = re.findall(r">item 1(\d+)</small><small[^>]*>price (\d+)</small>", text)
    assert len(below) == 2 * 3 and all(int(row) == int(price) for row, price in below)
    assert len(re.findall(">(round|square)</small>", text)) == 3  # the value, of which none is missing


def test_a_folder_of_pictures(checkpoint, tmp_path, capsys):
    for name in ("a", "sub/b"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (32, 32), (200, 30, 30)).save(tmp_path / "pictures" / f"{name}.png")
    store = tmp_path / "index"
    assert run("index", "--model", checkpoint, "--images", tmp_path / "pictures", "--store", store) == 0
    assert "2 items" in capsys.readouterr().out
    (result,) = found(capsys, "--store", store, "--item", "a.png", "--attribute", "shape")
    assert [hit["item_id"] for hit in result["found"]] == ["sub/b.png"]
    assert result["found"][0]["columns"]["picture"] == str(tmp_path / "pictures" / "sub" / "b.png")
    assert run("search", "--store", store, "--item", "a.png", "--html", tmp_path / "page.html") == 0


def test_embeddings_that_are_made_already(shoes, checkpoint, store, tmp_path, capsys):
    """`cca embed`, `cca index`: the same index as from the pictures, but for where these are."""
    words = ["--dataset", shoes, "--id_column", "sku", "--columns", "colour", "price"]
    assert run("embed", "--model", checkpoint, *words, "--output_dir", tmp_path / "embeddings", "--shard_size", 16,
               "--batch_size", 16) == 0  # fmt: skip
    place = tmp_path / "index"
    assert run("index", "--embeddings", tmp_path / "embeddings", "--model", checkpoint, "--store", place) == 0
    with AttributeIndex.open(store) as one, AttributeIndex.open(place) as other:
        assert other.schema.columns == {"colour": "text", "price": "number"}
        assert other.schema.checkpoint == one.schema.checkpoint
        for hit, same in zip(*(each.search(item="1007", attribute="colour") for each in (one, other)), strict=True):
            assert hit.item_id == same.item_id and hit.similarity == pytest.approx(same.similarity, abs=1e-5)
            assert same.columns == {name: hit.columns[name] for name in ("colour", "price")}
    capsys.readouterr()
    assert run("search", "--store", place, "--item", 1007, "--html", tmp_path / "page.html") == 1
    assert "has no path or URL for the image of item" in capsys.readouterr().err


def test_move_to_the_other_engine_and_on_after_an_interruption(store, tmp_path, capsys, monkeypatch):
    from cca_hf.search import qdrant_store

    target = f"qdrant-local:{tmp_path}/qdrant/shoes"
    written = qdrant_store.QdrantStore.upsert

    def upsert_once(self, items):
        if self.count(None):
            raise KeyboardInterrupt
        written(self, items)

    monkeypatch.setattr("cca_hf.search.store._ITEMS_AT_ONCE", 10)
    monkeypatch.setattr(qdrant_store.QdrantStore, "upsert", upsert_once)
    assert run("index", "move", store, target) == 130
    assert run("search", "--store", target, "--item", 1003) == 1
    said = capsys.readouterr().err
    assert f"is not complete: copying {store}" in said and "was not finished; do it again" in said

    items = []

    def upsert_and_note(self, table):
        items.extend(table.column("item_id").to_pylist())
        written(self, table)

    monkeypatch.setattr(qdrant_store.QdrantStore, "upsert", upsert_and_note)
    assert run("index", "move", store, target) == 0
    assert f"{target}: {ITEMS} items" in capsys.readouterr().out
    assert len(items) == ITEMS - 10  # the first ten were there
    back = tmp_path / "back.index"
    assert run("index", "move", target, back) == 0
    with AttributeIndex.open(store) as one, AttributeIndex.open(back) as other:
        assert one.schema == other.schema
        ids = [str(1000 + row) for row in range(ITEMS)]
        for attribute in ("colour", "shape"):
            for hits, others in zip(
                *(each.search_many(items=ids, attribute=attribute, top=5) for each in (one, other)), strict=True
            ):
                assert [(hit.item_id, hit.columns) for hit in hits] == [(hit.item_id, hit.columns) for hit in others]
    assert run("index", "move", store, back) == 1
    assert "is an index already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["index", "--model", "m", "--images", "x"], 2, "--store is missing"),
        (["index", "--store", "s", "--model", "m"], 2, "give one of --images, --dataset and --embeddings"),
        (["index", "--store", "s", "--images", "x"], 2, "need the --model"),
        (["index", "--store", "s", "--model", "m", "--images", "x", "--split", "test"], 2, "are for a --dataset"),
        (["index", "--store", "s", "--embeddings", "{tmp}"], 1, "'cca embed' has not written to it"),
        (["index", "--store", "{store}", "--model", "{model}", "--dataset", "{shoes}", "--columns", "prize"], 1,
         "no column 'prize' (did you mean 'price'?)"),
        (["index", "--store", "{store}", "--model", "{model}", "--dataset", "{shoes}", "--columns", "tags"], 1,
         "an index cannot store the column 'tags'"),
        (["search", "--item", "1"], 2, "Missing option '--store'"),
        (["search", "--store", "{store}"], 2, "give an --image, an --item or a --value"),
        (["search", "--store", "{store}", "--item", "1", "--image", "x"], 2, "either --image or --item"),
        (["search", "--store", "{store}", "--item", "1", "--attribute", "a", "--weights", "a=1"], 2, "or --weights"),
        (["search", "--store", "{store}", "--item", "1", "--weights", "colour"], 2, "--weights takes NAME=..."),
        (["search", "--store", "{store}", "--item", "1", "--weights", "colour=x"], 2, "must be a number; got 'x'"),
        (["search", "--store", "{tmp}", "--item", "1"], 1, "the folder contains no index"),
        (["search", "--store", "{tmp}/none", "--item", "1"], 1, "the folder does not exist"),
        (["search", "--store", "{store}", "--item", "1"], 1, "the index has no item '1'"),
        (["search", "--store", "{store}", "--item", "1001", "--attribute", "color"], 1, "did you mean 'colour'?"),
        (["search", "--store", "{store}", "--item", "1001", "--where", "prise < 3"], 1, "did you mean 'price'?"),
        (["search", "--store", "{store}", "--value", "colour=rd"], 1, "did you mean 'red'?"),
        (["search", "--store", "{store}", "--image", "{tmp}/none.jpg"], 1, "cannot be read as an image"),
        (["index", "move", "{tmp}/none", "{tmp}/new"], 1, "there is no index at"),
        (["search", "--store", "{store}", "--item", "--top", "3"], 2, "'--item': the option needs a value"),
        (["search", "--store", "--item", "3"], 2, "'--store': the option needs a value"),
        (["search", "--store", "{store}", "--item", "1", "--top", "-3"], 2, "Invalid value for '--top'"),
        (["search", "--stroe", "{store}"], 2, "--store"),
        (["index", "mvoe", "a", "b"], 2, "No such command 'mvoe'"),
    ],
)  # fmt: skip
def test_errors_are_one_line(words, code, message, store, shoes, checkpoint, tmp_path, capfd):
    places = {"store": store, "shoes": shoes, "model": checkpoint, "tmp": tmp_path}
    assert run(*(str(word).format(**places) for word in words)) == code
    printed, said = capfd.readouterr()
    errors = [line for line in said.splitlines() if "error:" in line]
    assert printed == "" and len(errors) == 1 and message in errors[0]
    assert "Traceback" not in said
    assert not (tmp_path / "none").exists() and not (tmp_path / "new").exists()


def test_a_checkpoint_that_did_not_make_the_index(store, shoes, checkpoint, tmp_path, capsys):
    torch.manual_seed(1)
    other = CCAModel.from_pretrained(checkpoint)
    torch.nn.init.normal_(other.layernorm.weight)
    other.save_pretrained(tmp_path / "other")
    words = ["--dataset", shoes, "--id_column", "sku", "--store", store]
    assert run("index", "--model", tmp_path / "other", *words) == 1
    assert "they cannot be compared with embeddings of" in capsys.readouterr().err
    PILImage.new("RGB", (32, 32)).save(tmp_path / "query.png")
    assert run("search", "--store", store, "--model", tmp_path / "other", "--image", tmp_path / "query.png") == 1
    assert "they cannot be compared with embeddings of" in capsys.readouterr().err


def an_image(level: int) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", (32, 32), (level, 30, 200 - level)).save(buffer, "PNG")
    return buffer.getvalue()


def written(folder: Path, **splits: dict) -> Path:
    """A data set of parquet files, with four images in each split unless it has its own."""
    folder.mkdir(parents=True)
    for number, (split, columns) in enumerate(splits.items()):
        images = [an_image(40 * number + 10 * row) for row in range(4)]
        Dataset.from_dict({"image": images, **columns}).to_parquet(folder / f"{split}.parquet")
    return folder


def errors(capsys) -> str:
    return capsys.readouterr().err


def test_rows_that_hold_no_image_are_named_or_skipped(checkpoint, tmp_path, capsys, monkeypatch):
    """Paths as text, a path to nothing, and no path."""
    monkeypatch.setenv("CCA_TRUST_DATA", "1")  # the images lie beside the data set
    PILImage.new("RGB", (32, 32)).save(tmp_path / "a.png")
    paths = [str(tmp_path / "a.png"), None, str(tmp_path / "none.png"), str(tmp_path / "a.png")]
    data = written(tmp_path / "data", test={"image": paths, "sku": ["a", "b", "c", "d"]})
    store = tmp_path / "index"
    words = ["index", "--model", checkpoint, "--dataset", data, "--id_column", "sku", "--store", store]
    assert run(*words) == 1
    assert "error: row 1, item b: there is no image in this row\n" in errors(capsys)
    assert run(*words, "--on_unreadable", "skip", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["items"] == 2 and shown["unreadable"].keys() == {"b", "c"}
    assert "none.png cannot be read as an image" in shown["unreadable"]["c"].replace("'", "")
    assert run(*words, "--on_unreadable", "skip") == 0
    assert "2 images cannot be read and were skipped, such as b: there is no image" in capsys.readouterr().out
    with AttributeIndex.open(store) as index:
        assert [hit.columns["picture"] for hit in index.get(["a", "d"])] == [paths[0]] * 2


def test_the_image_column_is_found_or_named_also_by_the_page(checkpoint, tmp_path, capsys):
    images = Dataset.from_dict(
        {"mask": [an_image(200)] * 2, "photo": [an_image(0), an_image(90)], "shape": ["a", "b"]},
        features=Features(mask=Image(), photo=Image(), shape=Value("string")),
    )
    (tmp_path / "two").mkdir()
    images.to_parquet(tmp_path / "two" / "test.parquet")
    (tmp_path / "one").mkdir()
    images.rename_column("mask", "image").to_parquet(tmp_path / "one" / "test.parquet")
    (tmp_path / "only").mkdir()
    images.remove_columns("mask").to_parquet(tmp_path / "only" / "test.parquet")
    named = ["--image_column", "photo"]
    for name, words in (("one", named), ("two", named), ("only", [])):
        store = tmp_path / f"{name}.index"
        assert run("index", "--model", checkpoint, "--dataset", tmp_path / name, "--store", store, *words) == 0
        page = tmp_path / f"{name}.html"
        assert run("search", "--store", store, "--item", 0, "--attribute", "shape", "--html", page) == 0
    # the images of the page are those of the column
    pages = [(tmp_path / f"{name}.html").read_text().split('src="data:')[1:] for name in ("one", "two", "only")]
    shown = [[text.split('"')[0] for text in images] for images in pages]
    assert len(shown[0]) == 2 and shown[0] == shown[1] == shown[2]
    assert run("index", "--model", checkpoint, "--dataset", tmp_path / "two", "--store", tmp_path / "index") == 1
    assert "found several image columns (mask, photo); choose one with image_column" in errors(capsys)


def test_columns_that_do_not_fit_are_left_out_with_a_warning(checkpoint, tmp_path, capsys, caplog):
    odd = {
        "_id": [1],
        "price.eur": [1.5],
        "__index_level_0__": [0],
        "similarity": [0.5],
        "picture": ["p"],
        "item_id": ["i"],
        "embedding_colour": ["e"],
        "tags": [["t"]],
        "nothing": [None],
        "query_index": [1],
    }
    zone = datetime.timezone(datetime.timedelta(hours=2))
    good = {
        "colour": ["red"],
        "price": [decimal.Decimal("19.99")],
        "day": [datetime.date(2024, 1, 31)],
        "at": [datetime.datetime(1960, 1, 31, 12, 30, 5, 750_000)],
        "there": [datetime.datetime(2024, 1, 31, 12, tzinfo=zone)],
    }
    columns = {name: values * 4 for name, values in {**odd, **good}.items()}
    columns["hash"] = pa.array([2**63] * 4, pa.uint64())
    data = written(tmp_path / "data", test=columns)
    store = tmp_path / "index"
    words = ["index", "--model", checkpoint, "--dataset", data, "--store", store]
    with caplog.at_level(logging.WARNING):
        assert run(*words) == 0
    (warning,) = [record.getMessage() for record in caplog.records if "not stored" in record.getMessage()]
    bad_name = '(a name has no leading _ and none of . ` " [ ] \\)'
    used = "(an index uses this name itself)"
    assert warning == (
        f"these columns are not stored: _id {bad_name}, price.eur {bad_name}, __index_level_0__ {bad_name}, "
        f"similarity {used}, picture (the index stores the path or URL of the image under this name), "
        f"item_id {used}, embedding_colour (the index stores embeddings under this name), "
        "tags (it contains lists, not text, numbers or booleans), "
        f"nothing (it contains values of type null, not text, numbers or booleans), query_index {used}, "
        "hash (it contains integers beyond 63 bits)"
    )
    with AttributeIndex.open(store) as index:
        text = dict.fromkeys(["picture", "colour", "day", "at", "there"], "text")
        assert index.schema.columns == {**text, "price": "number"}
        (hit,) = index.get(["2"])
        stored = {"colour": "red", "price": 19.99, "day": "2024-01-31", "at": "1960-01-31T12:30:05"}
        stored["there"] = "2024-01-31T10:00:00Z"
        assert hit.columns == {"picture": f"{data}::test::2", **stored}
        assert index.count("price == 19.99 and day == '2024-01-31'") == 4
    capsys.readouterr()
    for name, reason in (
        ("_id", "a name has no leading _"),
        ("tags", "it contains lists"),
        ("item_id", "an index uses"),
    ):
        assert run(*words, "--columns", "price", name) == 1
        assert f"an index cannot store the column {name!r}: {reason}" in errors(capsys)


def test_columns_that_the_index_does_not_have(checkpoint, tmp_path, capsys, caplog):
    """A second data set has one more column, and one of another type: only --columns makes this an error."""
    first = written(tmp_path / "first", test={"price": [1.5] * 4, "year": [1, 2, 3, 4]})
    second = written(tmp_path / "second", test={"price": [1, 2, 3, 4], "year": ["a"] * 4, "size": [1] * 4})
    store = tmp_path / "index"
    words = ["index", "--model", checkpoint, "--store", store]
    assert run(*words, "--dataset", first) == 0
    words += ["--dataset", second, "--id_prefix", "test-"]
    with caplog.at_level(logging.WARNING):
        assert run(*words) == 0
    expected = "year (it is text, in the index integer), size (the index has no such column)"
    assert f"these columns are not stored: {expected}" in [record.getMessage() for record in caplog.records]
    with AttributeIndex.open(store) as index:
        assert [hit.columns["price"] for hit in index.get(["test-2", "2"])] == [3.0, 1.5]
        assert [hit.columns["year"] for hit in index.get(["test-2", "2"])] == [None, 3]
    capsys.readouterr()
    assert run(*words, "--split", "test", "--id_prefix", "test-", "--columns", "price", "size") == 1
    assert "has other columns; choose with --columns among picture (text), price (number), year (integer)" in errors(
        capsys
    )


@pytest.mark.parametrize("engine", ["lance", "qdrant"])
def test_a_second_split_replaces_nothing_by_accident(engine, checkpoint, tmp_path, capsys, caplog):
    data = written(tmp_path / "data", train={"shape": ["train"] * 4}, test={"shape": ["test"] * 4})
    store = str(tmp_path / "index") if engine == "lance" else f"qdrant-local:{tmp_path}/qdrant/shoes"
    words = ["index", "--model", checkpoint, "--dataset", data, "--store", store]

    def counts() -> tuple[int, int]:
        with AttributeIndex.open(store) as index:
            return index.count("shape == 'train'"), index.count("shape == 'test'")

    assert run(*words, "--split", "train") == 0
    capsys.readouterr()
    assert run(*words, "--split", "test") == 1
    assert (
        f"error: 4 of 4 items of {data}::test have the ids of items from {data}::train, which they would replace in "
        f"the index at {store}. Give them other ids with --id_prefix, or with another --id_column, or replace the "
        "items with --replace\n"
    ) in errors(capsys)
    assert counts() == (4, 0)
    for again in ([], ["--only_new"]):  # the same command goes on
        assert run(*words, "--split", "train", *again) == 0
    assert counts() == (4, 0)
    with caplog.at_level(logging.WARNING):
        assert run(*words, "--split", "test", "--only_new") == 0
    assert f"4 of 4 items of {data}::test have the ids of items from {data}::train, and are skipped" in caplog.text
    assert counts() == (4, 0)


def test_several_splits_and_folders_in_one_index(checkpoint, tmp_path, capsys):
    data = written(tmp_path / "data", train={"shape": ["train"] * 4}, test={"shape": ["test"] * 4})
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(an_image(len(name)))
    store = tmp_path / "index"
    words = ["index", "--model", checkpoint, "--store", store]
    assert run(*words, "--dataset", data, "--split", "train") == 0
    assert run(*words, "--dataset", data, "--split", "test", "--id_prefix", "test-") == 0
    assert run(*words, "--images", tmp_path / "one") == 0
    capsys.readouterr()
    assert run(*words, "--images", tmp_path / "two") == 1
    assert (
        f"1 of 1 items of {tmp_path}/two have the ids of items from {data}::train, {data}::test, {tmp_path}/one, "
        in (errors(capsys))
    )
    # an index that was moved remembers its sources too
    assert run("index", "move", store, tmp_path / "moved") == 0
    assert run("index", "--model", checkpoint, "--store", tmp_path / "moved", "--images", tmp_path / "two") == 1
    assert run(*words, "--images", tmp_path / "two", "--replace") == 0
    with AttributeIndex.open(store) as index:
        assert index.count() == 9 and {hit.item_id for hit in index.get(["0", "test-0", "a.png"])} == {
            "0", "test-0", "a.png"
        }  # fmt: skip
        assert index.get(["a.png"])[0].columns["picture"] == str(tmp_path / "two" / "a.png")


def test_embeddings_of_two_splits(checkpoint, tmp_path, capsys):
    data = written(tmp_path / "data", train={}, test={})
    for split in ("train", "test"):
        assert (
            run("embed", "--model", checkpoint, "--dataset", data, "--split", split, "--output_dir", tmp_path / split)
            == 0
        )
    store = tmp_path / "index"
    words = ["index", "--model", checkpoint, "--store", store, "--embeddings"]
    assert run(*words, tmp_path / "train") == 0 and run(*words, tmp_path / "train") == 0
    capsys.readouterr()
    assert run(*words, tmp_path / "test") == 1
    assert f"4 of 4 items of {tmp_path}/test have the ids of items from {tmp_path}/train" in errors(capsys)
    assert run(*words, tmp_path / "test", "--id_prefix", "test-") == 0
    with AttributeIndex.open(store) as index:
        assert index.count() == 8


def test_a_web_dataset(checkpoint, tmp_path, capsys):
    """The fields of its json are columns, for `cca index` and for `cca embed`."""
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "test-0.tar", "w") as tar:
        for row in range(4):
            described = json.dumps({"colour": COLOURS[row % 2], "sku": f"sku {row}"}).encode()
            for suffix, content in (("png", an_image(40 * row)), ("json", described)):
                info = tarfile.TarInfo(f"{row}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    words = ["--model", checkpoint, "--dataset", tmp_path / "data", "--id_column", "sku"]
    assert run("embed", *words, "--columns", "colour", "--output_dir", tmp_path / "embeddings") == 0
    assert run("index", *words, "--store", tmp_path / "one") == 0
    embedded = ["--embeddings", tmp_path / "embeddings", "--model", checkpoint]
    assert run("index", *embedded, "--store", tmp_path / "other") == 0
    for place in ("one", "other"):
        (red,) = found(capsys, "--store", tmp_path / place, "--value", "colour=red", "--where", "colour == 'red'")
        assert {hit["item_id"] for hit in red["found"]} == {"sku 1", "sku 3"}


@pytest.mark.parametrize("made", ["images", "embeddings"])
def test_an_index_made_in_another_precision(made, checkpoint, tmp_path, capsys):
    """bfloat16 does not make it another space: the checkpoint searches it, and the reverse."""
    data, store = written(tmp_path / "data", test={}), tmp_path / "index"
    (tmp_path / "query.png").write_bytes(an_image(20))
    halved, words = ["--precision", "bfloat16"], ["--model", checkpoint, "--dataset", data]
    if made == "images":
        assert run("index", *words, *halved, "--store", store) == 0
    else:
        assert run("embed", *words, *halved, "--output_dir", tmp_path / "out") == 0
        assert run("index", "--embeddings", tmp_path / "out", "--model", checkpoint, "--store", store) == 0
    for precision in ([], halved, ["--precision", "float16"]):
        query = ["--store", store, "--image", tmp_path / "query.png", "--attribute", "colour", "--top", 4]
        (result,) = found(capsys, *query, *precision)
        assert len(result["found"]) == 4 and result["found"][0]["similarity"] == pytest.approx(1, abs=0.01)
    assert run("index", *words, "--store", store, "--replace") == 0  # in float32


def test_a_converted_model_and_an_index(store, checkpoint):
    model = CCAModel.from_pretrained(checkpoint, dtype="bfloat16")
    with pytest.raises(ValueError, match="If the model was converted, open the index first and convert it then"):
        AttributeIndex.open(store, model)
    model = CCAModel.from_pretrained(checkpoint)
    with AttributeIndex.open(store, model) as index:
        model.to(torch.bfloat16)
        assert index.search(image=an_image(200), attribute="colour", top=1)[0].similarity > 0.9


@pytest.mark.parametrize("item", ["it's a file", "--x"])
def test_the_next_command_works_as_printed(item, checkpoint, tmp_path, capsys):
    """Also for an index that does not name its model."""
    data = written(tmp_path / "my data", test={"sku": [item, "b", "c", "d"]})
    out, store = tmp_path / "out", tmp_path / "my index"
    assert run("embed", "--model", checkpoint, "--dataset", data, "--id_column", "sku", "--output_dir", out) == 0
    capsys.readouterr()
    assert run("index", "--store", store, "--embeddings", out) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    command = shlex.split(line.removeprefix("next: "))
    assert command[0] == "cca" and run(*command[1:]) == 0
    assert f"item {item}, by colour" in capsys.readouterr().out


def test_searching_by_item_needs_no_torch(store):
    words = ["search", "--store", str(store), "--item", "1003", "--value", "colour=red", "shape=", "--top", "3"]
    script = (
        "import sys; from cca_hf.cli.main import main; "
        f"codes = [main({words!r}), main({[*words, '--json']!r})]; "
        "print(codes, [name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "item 1003, but colour red, any shape" in done.stdout
    assert done.stdout.splitlines()[-1] == "[0, 0] []"
