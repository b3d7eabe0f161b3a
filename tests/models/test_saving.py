"""Saving over a good checkpoint: whole, or not at all."""

import errno
import os
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from cca_hf import CCAModel


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MB, where this machine allows one to be made."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine mounts no small disk: {done.stderr.strip()}")
    yield mount
    subprocess.run(["umount", mount], check=True)


def test_full_disk_leaves_the_earlier_checkpoint_as_it_was(model, attributes, vit_config, small_disk):
    model.save_pretrained(small_disk / "model")
    before = {path.name: path.read_bytes() for path in (small_disk / "model").iterdir()}
    torch.nn.init.zeros_(model.layernorm.weight)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    with pytest.raises(
        OSError, match=r"saving to .*model failed, what was there before is untouched: .*No space left"
    ):
        model.save_pretrained(small_disk / "model")
    assert {path.name: path.read_bytes() for path in (small_disk / "model").iterdir()} == before
    CCAModel.from_pretrained(small_disk / "model")
    filler.unlink()
    model.save_pretrained(small_disk / "model")
    assert not load_file(small_disk / "model" / "model.safetensors")["layernorm.weight"].any()


def test_failure_in_the_middle_of_writing(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def write_half(self, save_directory, **kwargs):
        (save_directory / "config.json").write_text("{")
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", write_half)
    with pytest.raises(OSError, match="untouched: .*Input/output error"):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_the_way(model, tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(OSError, match="it is a file, and must be a folder"):
        model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


def test_checkpoint_of_another_shape_is_refused(model, vit_config, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch|mismatch"):
        CCAModel.from_pretrained(tmp_path, attributes=["one"], attribute_values={})
