"""Settings of a process that trains on a CPU: only programs change them."""

import json
import os

import pytest
import torch

from cca_hf.recipes.attribute_retrieval import DataArguments, ModelArguments, run_training
from cca_hf.training.process import set_threads

from .conftest import TINY_VIT

OF_ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}
CORES = os.cpu_count()


@pytest.fixture
def own_threads():
    """The number of threads is a setting of the whole process: it is what it was after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("wanted", "environment", "threads"),
    [
        (None, OF_ACCELERATE, CORES),
        (1, OF_ACCELERATE, 1),
        (3, OF_ACCELERATE, 3),
        (None, OF_ACCELERATE | {"OMP_NUM_THREADS": "2"}, 2),
        (None, OF_ACCELERATE | {"LOCAL_WORLD_SIZE": "2"}, 1),
        (None, {"OMP_NUM_THREADS": "1"}, 1),
    ],
)
def test_threads(wanted, environment, threads, own_threads, monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # as PyTorch does when it is imported
    assert set_threads(wanted) == torch.get_num_threads() == threads


def test_training_leaves_the_process_alone(make_args, shapes_folder, monkeypatch):
    """The number of threads belongs to the program: the recipe, which a notebook calls as well, leaves it."""
    wanted = []
    monkeypatch.setattr(torch, "set_num_threads", wanted.append)
    model_args = ModelArguments(backbone_config=json.dumps({"model_type": "vit", **TINY_VIT}))
    run_training(model_args, DataArguments(str(shapes_folder)), make_args(cpu_threads=2, max_steps=1))
    assert 2 not in wanted
    set_threads(2)
    assert wanted[-1] == 2


def test_only_programs_prepare_the_process(repository):
    """Memory and threads are set in one file, which no library function uses."""
    source = repository / "src" / "cca_hf"
    settings = ("mallopt(", "training.process", "from .process")
    users = [
        path.relative_to(source).as_posix()
        for path in sorted(source.rglob("*.py"))
        if any(name in path.read_text(encoding="utf-8") for name in settings)
    ]
    assert [user for user in users if not user.startswith("cli/")] == ["training/process.py"]
