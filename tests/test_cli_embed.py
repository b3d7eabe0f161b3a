"""`cca embed` and `cca export` as they are typed."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from transformers import ViTConfig

from cca_hf import CCAModel
from cca_hf.cli.main import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    folder = tmp_path_factory.mktemp("checkpoints") / "cca"
    CCAModel.from_backbone(ViTConfig(**shape, image_size=32, patch_size=8), ["colour", "shape"]).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def catalogue(tmp_path) -> Path:
    folder = tmp_path / "catalogue"
    folder.mkdir()
    for number in range(10):
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        PILImage.fromarray(noise).save(folder / f"{number}.png")
    return folder


def rows(folder: Path) -> Dataset:
    return Dataset.from_parquet(sorted(map(str, folder.glob("*.parquet"))), cache_dir=str(folder / "cache"))


def test_a_folder_of_pictures(checkpoint, catalogue, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["embed", "--model", str(checkpoint), "--images", str(catalogue), "--output_dir", str(out)]
    options = ["--attributes", "shape", "--batch_size", "2", "--shard_size", "4", "--device", "cpu"]
    assert main([*command, *options]) == 0
    told = {"folder": str(out), "pictures": 10, "done": 10, "unreadable": {}}
    assert json.loads(capsys.readouterr().out) == told
    assert main([*command, *options]) == 0  # there is nothing left to do
    assert json.loads(capsys.readouterr().out) == told
    want = CCAModel.from_pretrained(checkpoint).encode(sorted(catalogue.iterdir()), "shape")
    np.testing.assert_allclose(rows(out)["embedding_shape"][:], want[:, 0], atol=1e-5)
    assert main([*command, *options, "--precision", "bfloat16"]) == 1
    assert "another job, which differs in model" in capsys.readouterr().err


def test_a_data_set(checkpoint, catalogue, tmp_path, capsys):
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(catalogue.iterdir())]
    columns = {"image": images, "sku": [f"s{n}" for n in range(10)], "price": list(range(10)), "brand": ["b"] * 10}
    data = Dataset.from_dict(columns).cast_column("image", Image())
    (tmp_path / "shoes").mkdir()
    data.to_parquet(tmp_path / "shoes" / "train.parquet")
    out = tmp_path / "out"
    command = ["embed", "--model", str(checkpoint), "--dataset", str(tmp_path / "shoes"), "--output_dir", str(out)]
    options = ["--id_column", "sku", "--columns", "price", "brand", "--dtype", "int8", "--device", "cpu"]
    assert main([*command, *options]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 10
    found = rows(out)
    assert found["item_id"][:] == columns["sku"] and found["price"][:] == columns["price"]
    assert set(found.column_names) == {
        "item_id", "price", "brand", "embedding_colour", "embedding_shape", "scale_colour", "scale_shape"
    }  # fmt: skip


def test_into_an_index(checkpoint, catalogue, tmp_path, capsys):
    pytest.importorskip("lancedb", reason="the extra [search] is not installed")
    out, store = tmp_path / "out", tmp_path / "shapes.index"
    command = ["embed", "--model", str(checkpoint), "--images", str(catalogue), "--output_dir", str(out)]
    assert main([*command, "--store", str(store)]) == 0
    assert json.loads(capsys.readouterr().out)["store"] == str(store)
    search = ["search", "--store", str(store), "--image", str(catalogue / "3.png"), "--attribute", "shape"]
    assert main([*search, "--top", "2", "--json"]) == 0  # with the model that the index names
    assert '"item_id": "3.png"' in capsys.readouterr().out


def test_an_index_takes_one_writer(checkpoint, catalogue, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = ["embed", "--model", str(checkpoint), "--images", str(catalogue), "--output_dir", str(tmp_path / "out")]
    assert main([*command, "--store", str(tmp_path / "shapes.index")]) == 2
    assert "an index allows one writer" in capsys.readouterr().err


def test_unreadable_pictures(checkpoint, catalogue, tmp_path, capsys):
    (catalogue / "3.png").write_bytes(b"no picture")
    command = ["embed", "--model", str(checkpoint), "--images", str(catalogue), "--output_dir", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu"]) == 1
    assert "3.png cannot be read as an image" in capsys.readouterr().err
    assert main([*command, "--device", "cpu", "--on_unreadable", "skip"]) == 0
    assert list(json.loads(capsys.readouterr().out)["unreadable"]) == ["3.png"]


def test_no_image_can_be_read(checkpoint, tmp_path, capsys):
    """A row without an image, and images as base64: named by row and id, and without their content."""
    text = "iVBORw0KGgo" + "A" * 5000
    (tmp_path / "shoes").mkdir()
    Dataset.from_dict({"image": [text, text, None], "sku": ["a", "b", "c"]}).to_parquet(
        tmp_path / "shoes/test.parquet"
    )
    command = ["embed", "--model", str(checkpoint), "--dataset", str(tmp_path / "shoes"), "--id_column", "sku"]
    command += ["--output_dir", str(tmp_path / "out"), "--shard_size", "1", "--batch_size", "1"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "error: row 0, item a: " in said and "AAAA" not in said
    assert main([*command, "--on_unreadable", "skip"]) == 0
    unreadable = json.loads(capsys.readouterr().out)["unreadable"]
    assert list(unreadable) == ["a", "b", "c"] and unreadable["c"] == "there is no image in this row"
    assert all(pq.read_table(path).num_rows == 0 for path in (tmp_path / "out").glob("embeddings-*"))
    assert len(list((tmp_path / "out").glob("embeddings-*"))) == 3


def test_an_error_names_the_row_of_the_catalogue(checkpoint, catalogue, tmp_path, capsys):
    """Not the row among those that were left to do."""
    (catalogue / "7.png").write_bytes(b"no picture")
    command = ["embed", "--model", str(checkpoint), "--images", str(catalogue), "--output_dir", str(tmp_path / "out")]
    for _ in range(2):
        assert main([*command, "--shard_size", "2", "--batch_size", "2"]) == 1
        assert "error: row 7, item 7.png: " in capsys.readouterr().err


def test_two_processes_share_the_work(checkpoint, catalogue, tmp_path, warm_python):
    out = tmp_path / "out"
    command = ["-m", "cca_hf.cli.main", "embed", "--model", checkpoint, "--images", catalogue, "--output_dir", out]
    printed = warm_python.run_on_ranks(2, *command, "--batch_size=2", "--shard_size=2")
    assert len(json.loads(printed)) == 4  # the first process alone speaks
    found = rows(out)
    assert sorted(found["item_id"][:]) == [f"{number}.png" for number in range(10)]


def test_an_exported_model(checkpoint, catalogue, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    exported, out = tmp_path / "exported", tmp_path / "out"
    command = ["export", "--model", str(checkpoint), "--output_dir", str(exported), "--attributes", "shape"]
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == str(exported)
    embed = ["embed", "--model", str(exported), "--images", str(catalogue), "--output_dir", str(out)]
    assert main(embed) == 0
    want = CCAModel.from_pretrained(checkpoint).encode(sorted(catalogue.iterdir()), "shape")
    np.testing.assert_allclose(rows(out)["embedding_shape"][:], want[:, 0], atol=1e-5)
    # its embeddings are in the space of the checkpoint, which searches them
    store = tmp_path / "shapes.index"
    assert main(["index", "--embeddings", str(out), "--model", str(exported), "--store", str(store)]) == 0
    query = ["search", "--store", str(store), "--image", str(catalogue / "3.png"), "--top", "1", "--json"]
    for name in (checkpoint, exported):
        capsys.readouterr()
        assert main([*query, "--model", str(name)]) == 0
        assert '"item_id": "3.png"' in capsys.readouterr().out
    assert main([*query, "--model", str(exported), "--precision", "bfloat16"]) == 1
    assert "in the precision that it was exported in" in capsys.readouterr().err
    assert main([*embed, "--device", "cuda"]) == 1
    assert "runs on the CPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either --images or --dataset"),
        (["--images", "a", "--dataset", "b"], "give either --images or --dataset"),
        (["--images", "a", "--columns", "price"], "are for a --dataset"),
        (["--images", "a", "--image_column", "photo"], "are for a --dataset"),
        (["--images", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_refusals(checkpoint, tmp_path, capsys, words, message):
    code = main(["embed", "--model", str(checkpoint), "--output_dir", str(tmp_path / "out"), *words])
    assert code == (1 if "nowhere" in words else 2)
    assert message in capsys.readouterr().err
