"""A tiny data set and a tiny model to train on it."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTConfig

from cca_hf.data.loading import load_attribute_dataset
from cca_hf.data.schema import AttributeDataset
from cca_hf.data.shapes import generate_shapes_dataset
from cca_hf.models.modeling_cca import CCAModel
from cca_hf.training.arguments import CCATrainingArguments

from ..warm_python import WarmPython

EPOCH = 10  # steps, with the data and the arguments below

TINY_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="session")
def shapes() -> AttributeDataset:
    """157 training, 22 validation and 45 test pictures of 32 pixels with 5 attributes."""
    return load_attribute_dataset(generate_shapes_dataset(num_images=224, image_size=32, seed=0))


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as parquet files, for processes of their own."""
    folder = tmp_path_factory.mktemp("shapes")
    for split, dataset in generate_shapes_dataset(num_images=224, image_size=32, seed=0).items():
        dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def make_model(shapes: AttributeDataset) -> Callable[..., CCAModel]:
    """A CCA model on a tiny ViT with random weights, the same ones each time."""

    def make(**config_fields: Any) -> CCAModel:
        torch.manual_seed(0)
        return CCAModel.from_backbone(ViTConfig(**TINY_VIT), shapes.attributes, **config_fields)

    return make


@pytest.fixture
def make_args(tmp_path: Path) -> Callable[..., CCATrainingArguments]:
    """Arguments of a short run on the CPU without progress bars."""

    def make(**changes: Any) -> CCATrainingArguments:
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "disable_tqdm": True,
            "bf16": False,  # the default depends on the machine
            "per_device_train_batch_size": 16,
            "images_per_value": 2,
            "num_train_epochs": 1,
            "logging_steps": 1,
            "attribute_map": "none",  # so that a model is what its last checkpoint is
        }
        return CCATrainingArguments(**(settings | changes))

    return make


@pytest.fixture
def run_python(repository: Path, warm_python: WarmPython) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python in a process of its own, one thread, with this checkout's package."""

    def run(*arguments: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        done = warm_python.run(*arguments, env=child_environment(repository), **options)
        if check and done.returncode:
            pytest.fail(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


def child_environment(repository: Path) -> dict[str, str]:
    path = os.pathsep.join([str(repository / "src"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
