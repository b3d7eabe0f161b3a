"""`cca embed`, `cca index` and `cca search` with a model that has one embedding of an image, and no attributes."""

import contextlib
import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from cca_hf import AttributeIndex, ImageEmbedder
from cca_hf.cli.main import main
from cca_hf.search import CheckpointId, IndexSchema, copy_index

ITEMS = 10


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """`shoes`, `query.png`, `vit` (a model without attributes) and `shoes.index`, made by it."""
    folder = tmp_path_factory.mktemp("world")
    features = Features(image=Image(), colour=ClassLabel(names=["blue", "red"]), price=Value("float32"))
    rng = np.random.default_rng(0)
    images = [PILImage.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(ITEMS)]
    images[-1].save(folder / "query.png")
    rows = {
        "image": images,
        "colour": [row % 2 for row in range(ITEMS)],
        "price": [float(row) for row in range(ITEMS)],
    }
    (folder / "shoes").mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(folder / "shoes" / "test.parquet")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "vit")
    printed = run(folder, "index --model vit --dataset shoes --store shoes.index --device cpu")
    assert printed.splitlines() == [
        "shoes.index: 10 items, each with one embedding",
        "columns to filter by: picture, colour, price",
        "next: cca search --store shoes.index --item 0",
    ]
    return folder


@pytest.fixture(scope="module")
def embeddings(world):
    data = Dataset.from_parquet(str(world / "shoes" / "test.parquet"), cache_dir=str(world / "cache"))
    return ImageEmbedder.from_pretrained(world / "vit", "cpu").encode(data["image"])


def run(folder, words, status=0):
    """What a command prints, or its error."""
    output, error = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        assert main(words.split()) == status, error.getvalue()
    return error.getvalue() if status else output.getvalue()


def nearest(embeddings, query, allowed):
    similarities = embeddings @ query
    return sorted(allowed, key=lambda row: -similarities[row])


def test_search_by_image_and_by_item(world, embeddings):
    printed = run(world, "search --store shoes.index --image query.png --top 3")
    assert printed.splitlines()[0] == "query.png"
    order = nearest(embeddings, embeddings[-1], range(ITEMS))
    assert [line.split()[0] for line in printed.splitlines()[3:6]] == [str(row) for row in order[:3]]
    assert "1.000" in printed.splitlines()[3]
    (answer,) = json.loads(run(world, "search --store shoes.index --item 3 --where price<7 --top 9 --json"))
    assert answer["query"] == "item 3" and answer["attribute"] is None
    expected = nearest(embeddings, embeddings[3], set(range(7)) - {3})
    assert [int(hit["item_id"]) for hit in answer["found"]] == expected
    similarities = [hit["similarity"] for hit in answer["found"]]
    np.testing.assert_allclose(similarities, embeddings[expected] @ embeddings[3], atol=1e-5)


def test_the_page_of_a_search_names_no_attribute(world):
    run(world, "search --store shoes.index --item 3 --html found.html")
    page = (world / "found.html").read_text(encoding="utf-8")
    assert "<h1>Found</h1>" in page and "<h3></h3>" not in page and "item 3" in page
    assert page.count("data:image/jpeg;base64,") == ITEMS


def test_attributes_are_errors(world):
    message = "the index has one embedding for each item, and none by attribute: leave out 'colour'"
    for words in ("--attribute colour", "--weights colour=1", "--value colour=red"):
        assert message in run(world, f"search --store shoes.index --item 3 {words}", status=1)
    error = run(world, "embed --model vit --dataset shoes --output_dir no --attributes colour --device cpu", status=1)
    assert "this model has one embedding of an image, and none by attribute: leave out the attribute 'colour'" in error


def test_embeddings_in_files(world, embeddings):
    run(world, "embed --model vit --dataset shoes --output_dir parts --columns price --dtype int8 --device cpu")
    manifest = json.loads((world / "parts" / "manifest.json").read_text())
    assert manifest["attributes"] == [""] and manifest["dim"] == 16
    table = pq.read_table(next((world / "parts").glob("*.parquet")))
    assert table.column_names == ["item_id", "price", "embedding", "scale"]
    scales = table.column("scale").to_numpy()[:, None]
    np.testing.assert_allclose(np.array(table.column("embedding").to_pylist()) * scales, embeddings, atol=5e-3)
    run(world, "embed --model vit --dataset shoes --output_dir whole --device cpu")
    printed = run(world, "index --embeddings whole --model vit --store whole.index --json")
    assert json.loads(printed)["attributes"] == []
    with AttributeIndex.open(world / "whole.index") as index:
        assert index.schema.attributes == ("",) and index.schema.vector_column("") == "embedding"
        rows = [row for table in index.tables(embeddings=True) for row in table.to_pylist()]
    stored = {row["item_id"]: row["embedding"] for row in rows}
    np.testing.assert_allclose([stored[str(row)] for row in range(ITEMS)], embeddings, atol=1e-5)


def test_from_python(world, embeddings, tmp_path):
    embedder = ImageEmbedder.from_pretrained(world / "vit", "cpu")
    with AttributeIndex.create(tmp_path / "index", embedder, columns={"price": "number"}) as index:
        index.add([f"a{row}" for row in range(5)], embeddings=embeddings[:5], columns={"price": [1.0] * 5})
        index.add(["q"], images=[world / "query.png"])
        assert index.search(embedding=embeddings[2], top=1)[0].item_id == "a2"
        assert index.search(image=world / "query.png", where="price is None")[0].item_id == "q"
        many = index.search_many(embeddings=embeddings[:2], top=1)
        assert [hits[0].item_id for hits in many] == ["a0", "a1"]
        assert (
            "6 items; no attributes; columns: price (number)" in repr(index)
            and "none; 16 numbers" in index._repr_html_()
        )
        with pytest.raises(ValueError, match=r"must have shape \(items, dim\) = \(1, 16\); got \(1, 8\)"):
            index.add(["x"], embeddings=embeddings[:1, :8])
    assert copy_index(tmp_path / "index", f"qdrant-local:{tmp_path}/qdrant/shoes", show_progress=False) == 6
    with AttributeIndex.open(f"qdrant-local:{tmp_path}/qdrant/shoes", embedder) as index:
        assert index.search(embedding=embeddings[2], top=1)[0].item_id == "a2"


def test_an_index_of_another_model(world, tmp_path):
    shutil.copytree(world / "vit", tmp_path / "vit")
    ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(tmp_path / "vit")
    error = run(world, f"search --store shoes.index --image query.png --model {tmp_path / 'vit'}", status=1)
    assert "the index at shoes.index contains embeddings of" in error and "they cannot be compared with" in error


def test_one_attribute_needs_no_name(tmp_path):
    """Also an index of a model with one attribute."""
    schema = IndexSchema(("colour",), 2, {}, CheckpointId("me/x", "f"))
    with AttributeIndex.create_from_schema(tmp_path / "index", schema) as index:
        index.add(["a", "b"], embeddings=np.eye(2)[:, None])
        assert [hit.item_id for hit in index.search(item="a")] == ["b"]
        assert [hit.item_id for hit in index.search(embedding=[0.1, 1])] == ["b", "a"]
