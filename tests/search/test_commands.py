"""`cca index` and `cca search`, from pictures to a page, as they are typed."""

import json
import subprocess
import sys
from pathlib import Path

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
    with AttributeIndex.open(store, CCAModel.from_pretrained(checkpoint)) as index:
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
    (mixed,) = found(capsys, "--store", store, "--item", 1003, "--weights", "colour=1", "shape=0.5", "--top", 4)
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


@pytest.mark.parametrize("command", [["index"], ["index", "move"], ["search"]])
def test_help_shows_what_to_type_and_needs_no_torch(command):
    script = (
        f"import sys; from cca_hf.cli import main; main.main({[*command, '--help']!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Examples:" in done.stdout and f"  cca {' '.join(command)} " in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_searching_by_item_needs_no_torch(store):
    script = (
        "import sys; from cca_hf.cli.main import main; "
        f"code = main(['search', '--store', {str(store)!r}, '--item', '1003', '--value', 'colour=red', '--json']); "
        "sys.exit(code or ('torch' in sys.modules and 3))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0
