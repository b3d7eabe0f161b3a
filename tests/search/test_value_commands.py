"""The same item in another colour, as it is typed: an index with prototypes, `cca search --value`, and the page."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import ViTConfig

from cca_hf.models.modeling_cca import CCAModel
from cca_hf.search import AttributeIndex

from ..pages import run_cca
from .test_commands import run

COLOURS, SHAPES, ITEMS = ["blue", "red", "violet"], ["round", "square"], 12


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A checkpoint with prototypes, `cca`, a table of images with labels, and the index of them."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    model = CCAModel.from_backbone(config, {"colour": COLOURS, "shape": SHAPES})
    known = np.array([[True, True, True], [True, False, False]])
    model.set_prototypes(np.random.default_rng(0).normal(size=(2, 3, 32)), known)
    model.save_pretrained(folder / "cca")
    rows = {
        "image": [PILImage.new("RGB", (32, 32), (20 * row, 40, 240 - 20 * row)) for row in range(ITEMS)],
        "colour": [COLOURS[row * 2 // ITEMS] for row in range(ITEMS)],
        "shape": [SHAPES[row % 2] for row in range(ITEMS)],
    }
    (folder / "shoes").mkdir()
    features = Features(image=Image(), colour=Value("string"), shape=Value("string"))
    Dataset.from_dict(rows, features=features).to_parquet(folder / "shoes" / "test.parquet")
    run_cca("cca index --model cca --dataset shoes --store shoes.index".split(), folder)
    return folder


def searched(folder: Path, *words: str) -> list[dict]:
    return json.loads(run_cca(["cca", "search", "--store", "shoes.index", *words, "--json"], folder))


def test_several_values_at_once(world):
    with AttributeIndex.open(world / "shoes.index") as index:
        violet = CCAModel.from_pretrained(world / "cca").value_prototypes("colour")["violet"]
        np.testing.assert_array_equal(index.schema.prototype("colour", "violet"), violet)
        for words, change, by, arguments in (
            (["colour=violet"], "colour violet", "colour, shape", {"values": {"colour": "violet"}}),
            (["colour="], "any colour", "shape", {"values": {"colour": None}}),
            (
                ["colour=violet", "shape=square", "--keep", "0.5"],
                "colour violet, shape square",
                "colour, shape",
                {"values": {"colour": "violet", "shape": "square"}, "keep": 0.5},
            ),
            (
                ["colour=violet", "--keep", "0.5", "--top", "3"],
                "colour violet",
                "colour, shape x 0.5",
                {"values": {"colour": "violet"}, "keep": 0.5, "top": 3},
            ),
        ):
            (answer,) = searched(world, "--item", "3", "--value", *words)
            assert (answer["query"], answer["attribute"]) == (f"item 3, but {change}", by)
            hits = index.search(item="3", **arguments)
            assert [hit["item_id"] for hit in answer["found"]] == [hit.item_id for hit in hits]
            assert [hit["similarity"] for hit in answer["found"]] == [hit.similarity for hit in hits]
    (answer,) = searched(world, "--value", "colour=violet")
    assert (answer["query"], answer["attribute"]) == ("colour violet", "colour")


def test_a_value_that_the_item_has(world):
    words = "cca search --store shoes.index --item 3 7 --value colour=blue shape=square --top 2".split()
    lines = run_cca(words, world).splitlines()
    assert lines[0] == "item 3, but colour blue, shape square, by colour, shape"
    assert lines[1:3] == ["item 3 has colour blue already", "item 3 has shape square already"]
    place = lines.index("item 7, but colour blue, shape square, by colour, shape")
    assert lines[place + 1] == "item 7 has shape square already"
    assert lines[place + 2].split() == ["item", "similarity", "colour", "shape"]


def test_errors_say_what_to_write(world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    for words, message in (
        (["--item", 3, "--value", "colour=violett"], "knows no colour 'violett' (did you mean 'violet'?)"),
        (["--item", 3, "--value", "colour"], "--value takes NAME=VALUE, or NAME= to leave the attribute out"),
        (["--item", 3, "--keep", 0.5], "keep is the weight of what stays of a query beside the values"),
        (["--value", "colour="], "values only leaves out colour: give an image, an item"),
    ):  # fmt: skip
        assert run("search", "--store", "shoes.index", *words) in (1, 2)
        assert message in capsys.readouterr().err


def test_the_page_shows_the_change_and_what_matches(world):
    run_cca("cca search --store shoes.index --item 3 --value colour=red --html found.html".split(), world)
    text = (world / "found.html").read_text(encoding="utf-8")
    assert "<title>Item 3, but colour red</title>" in text and "<h1>Item 3, but colour red</h1>" in text
    with AttributeIndex.open(world / "shoes.index") as index:
        hits = index.search(item="3", values={"colour": "red"})
    shown = re.findall(r'<small title="\w+"( class="match")?>(red|blue|round|square)</small>', text)
    values = [(hit.columns[name], wanted) for hit in hits for name, wanted in (("colour", "red"), ("shape", "square"))]
    assert [(value, bool(mark)) for mark, value in shown] == [(value, value == wanted) for value, wanted in values]
    assert {value for mark, value in shown if mark} == {"red", "square"}
    run_cca("cca search --store shoes.index --item 3 4 --value colour= --html found.html".split(), world)
    assert "<h1>2 queries, but any colour</h1>" in (world / "found.html").read_text(encoding="utf-8")


def test_an_index_without_labels_is_searched_by_value(world, caplog):
    """Of plain images, and of embeddings whose model is named."""
    (world / "images").mkdir()
    for row in range(4):
        PILImage.new("RGB", (32, 32), (60 * row, 40, 240)).save(world / "images" / f"{row}.png")
    run_cca("cca index --model cca --images images --store images.index".split(), world)
    run_cca("cca embed --model cca --images images --output_dir embeddings".split(), world)
    run_cca("cca index --embeddings embeddings --model cca --store embeddings.index".split(), world)
    found = [
        json.loads(run_cca(["cca", "search", "--store", store, "--value", "colour=red", "--json"], world))
        for store in ("images.index", "embeddings.index")
    ]
    first, second = ([(hit["item_id"], round(hit["similarity"], 5)) for hit in answer[0]["found"]] for answer in found)
    assert first == second and len(first) == 4
    assert not [record for record in caplog.records if "prototypes" in record.getMessage()]
    # a model that is not there any more, and another one: a warning, and an index without prototypes
    other = CCAModel.from_pretrained(world / "cca")
    other.layernorm.bias.data += 1
    other.save_pretrained(world / "other")
    for name, reason in (
        ("gone", "because its model cannot be loaded"),
        ("other", "the fingerprint of this model is"),
    ):
        run_cca(f"cca index --embeddings embeddings --model {name} --store {name}.index".split(), world)
        assert reason in caplog.text and "the index has no prototypes of values" in caplog.text
        with AttributeIndex.open(world / f"{name}.index") as index:
            assert index.schema.prototypes == {} and index.count() == 4
