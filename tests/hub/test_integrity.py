"""`cca check` and the checks at load: a flipped bit, NaN, a pipe, code of a checkpoint's own."""

import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTConfig

from cca_hf import AttributeIndex, CCAModel
from cca_hf.cli.main import main
from cca_hf.embedding.shards import has_changed
from cca_hf.hub.integrity import check_folder
from cca_hf.models.loading import load_model
from cca_hf.search.sources import EmbeddedSource

from .conftest import VIT


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint, its embeddings in two shards, and an index of these."""
    root = tmp_path_factory.mktemp("made")
    CCAModel.from_backbone(ViTConfig(**VIT), ["shape", "colour"]).save_pretrained(root / "model")
    random = np.random.default_rng(0)
    (root / "images").mkdir()
    for number in range(6):
        Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(root / "images" / f"{number}.png")
    assert embed(root / "model", root, root / "shards", "--store", str(root / "shapes.index")) == 0
    return root


@pytest.fixture
def copy(made, tmp_path):
    return lambda name: shutil.copytree(made / name, tmp_path / name)


def embed(model, root, output, *more):
    words = ["embed", "--model", str(model), "--images", str(root / "images"), "--output_dir", str(output)]
    return main([*words, "--device", "cpu", "--batch_size", "4", "--shard_size", "4", *more])


def flip(path, place, bit=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_a_line_for_each_file(made, copy, capsys):
    for name, files in (("model", 18), ("shards", 2), ("shapes.index", 9)):
        assert main(["check", str(made / name)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) >= files and {line[:13] for line in lines} == {"ok           "}
    folder = copy("model")
    flip(folder / "model.safetensors", -5)
    (folder / "modules.json").unlink()
    assert main(["check", str(folder)]) == 1
    captured = capsys.readouterr()
    wrong = [line for line in captured.out.splitlines() if not line.startswith("ok ")]
    assert wrong == ["changed      model.safetensors", "missing      modules.json"]
    assert captured.err == f"cca: error: 2 of 19 files in {folder} are not the ones that were written\n"
    assert main(["check", str(made / "images")]) == 1
    assert "images contains no checkpoint, no embeddings and no index" in capsys.readouterr().err


def test_a_flipped_bit_in_the_weights(copy):
    folder = copy("model")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for bit in range(8):
        flip(weights, len(content) * (bit + 1) // 9, bit)
        assert [file for file in check_folder(folder) if not file.usable] == [("model.safetensors", "changed")]
        weights.write_bytes(content)


def test_a_flipped_bit_in_a_shard(made, copy):
    folder = copy("shards")
    shard = min(folder.glob("*.parquet"))
    content = shard.read_bytes()
    name = content.rindex(b"cca_hf.sha256")
    for bit, place in enumerate([0, 100, len(content) // 2, name, name + 30, name - 40, -40, -2]):
        flip(shard, place, bit)
        assert has_changed(shard) is True
        assert [file.state for file in check_folder(folder)] == ["changed", "ok"]
        shard.write_bytes(content)
    flip(shard, 100)
    with pytest.raises(
        ValueError, match=r"00000-of-00002\.parquet has changed since it was written: delete it, and run"
    ):
        list(EmbeddedSource(folder, "model").batches([]))
    shard.unlink()
    assert embed(made / "model", made, folder) == 0  # which computes it again
    assert [file.state for file in check_folder(folder)] == ["ok", "ok"]


def test_an_index_whose_files_changed(copy, made, capsys):
    folder = copy("shapes.index")
    flip(max(folder.glob("items.lance/data/*"), key=lambda path: path.stat().st_size), 20)
    assert sorted({file.state for file in check_folder(folder)}) == ["changed", "ok"]
    whole = folder.with_name("whole.index")
    shutil.copytree(made / "shapes.index", whole)
    with AttributeIndex.open(whole, CCAModel.from_pretrained(made / "model"), writable=True) as index:
        index.add(["new"], images=[made / "images" / "0.png"])
        assert {file.state for file in check_folder(whole)} == {"ok", "no checksum"}
        index.optimize()
    assert {file.state for file in check_folder(whole)} == {"ok"}


def test_files_of_version_0_1(copy):
    folder = copy("model")
    (folder / "checksums.json").unlink()
    assert {file.state for file in check_folder(folder)} == {"no checksum"}
    assert load_model(folder, "cpu").config.attributes == ["shape", "colour"]
    poison(folder, torch.nan)
    assert [file for file in check_folder(folder) if not file.usable] == [("model.safetensors", "not finite")]
    (folder / "checksums.json").write_text("{")
    with pytest.raises(ValueError, match=r"checksums\.json is damaged: Expecting property name"):
        check_folder(folder)


def poison(folder, value):
    weights = load_file(folder / "model.safetensors")
    weights["layernorm.weight"][3] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_are_finite(made, copy, tmp_path, value, capsys):
    folder = copy("model")
    poison(folder, value)
    assert embed(folder, made, tmp_path / "out") == 1
    message = "weights are NaN or infinite: layernorm.weight. The training failed, or the file has changed"
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
    model = CCAModel.from_pretrained(made / "model")
    torch.nn.init.constant_(model.layernorm.weight, value)
    with pytest.raises(ValueError, match="weights are NaN or infinite"):
        model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"the embedding of images\[0\] is NaN or infinite"):
        model.encode([made / "images" / "0.png"])
    with pytest.raises(ValueError, match=r"the embedding of images\[0\] is NaN or infinite"):
        model.embed_pixels(torch.zeros(1, 3, 32, 32), [0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_std": [0.5, 0, 0.5]}, "image_std of the image processor must not be 0"),
        ({"image_std": 0}, "image_std of the image processor must not be 0"),
        ({"image_mean": [float("nan")] * 3}, "image_mean of the image processor must be a finite number"),
        ({"image_mean": "grey"}, "image_mean of the image processor must be a finite number"),
        ({"rescale_factor": 0}, "rescale_factor of the image processor must not be 0"),
        ({"image_std": [0, 1, 1], "do_center_crop": True}, "image_std of the image processor must not be 0"),
    ],
)
def test_settings_that_make_no_pixel_values(copy, settings, message):
    folder = copy("model")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ValueError, match=message):
        load_model(folder, "cpu")


def test_code_of_a_checkpoint_is_not_run(made, copy, tmp_path, monkeypatch, capsys):
    """Not even if somebody answers the question whether to run it."""
    folder = copy("model")
    path, ran = folder / "preprocessor_config.json", tmp_path / "ran"
    own = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    code = "from transformers import ViTImageProcessor\n\n\nclass Own(ViTImageProcessor):\n    pass\n"
    (folder / "own.py").write_text(f"{code}\n\nopen({str(ran)!r}, 'w')\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    for words in (["embed", "--images", str(made / "images")], ["export"], ["push", "--repo", "me/x"]):
        assert main([*words, "--model", str(folder), *_output(words[0], tmp_path)]) == 1
        assert "contains custom code" in capsys.readouterr().err
    with pytest.raises(ValueError, match="contains custom code"):
        CCAModel.from_pretrained(folder)
    assert not ran.exists()


def _output(command, folder):
    return ["--dry_run" if command == "push" else "--output_dir", str(folder / command)]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_pipe_in_place_of_a_file(copy, name):
    folder = copy("model")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match="is a pipe or a device, not a file: remove it, or restore the checkpoint"):
        load_model(folder, "cpu")
    assert [file for file in check_folder(folder) if not file.usable] == [(name, "missing")]
