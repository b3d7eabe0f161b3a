"""A finished training to publish, a Hub to publish it on, and what happened when it was."""

import json
import os
from pathlib import Path

import pytest

from cca_hf.data.shapes import generate_shapes_dataset
from cca_hf.recipes.attribute_retrieval import DataArguments, ModelArguments, run_training
from cca_hf.training.arguments import CCATrainingArguments

from .stand_in import HubStandIn

SOURCE = Path(__file__).resolve().parents[2] / "src"
VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The output folder of two short epochs on drawn shapes."""
    root = tmp_path_factory.mktemp("run")
    for split, dataset in generate_shapes_dataset(num_images=224, image_size=32, seed=0).items():
        (root / "my-shapes").mkdir(exist_ok=True)
        dataset.to_parquet(root / "my-shapes" / f"{split}-00000-of-00001.parquet")
    args = CCATrainingArguments(
        output_dir=str(root / "cca-shapes"),
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        num_train_epochs=2,
        per_device_train_batch_size=16,
        images_per_value=2,
        report_to="none",
    )
    model_args = ModelArguments(backbone_config=json.dumps(VIT))
    run_training(model_args, DataArguments(str(root / "my-shapes"), ["shape", "colour"]), args)
    return root / "cca-shapes"


@pytest.fixture(scope="session")
def hub() -> HubStandIn:
    return HubStandIn()


@pytest.fixture(scope="session")
def run_on_hub(hub, warm_torch, tmp_path_factory):
    """Runs a program in a Python whose Hub is the stand-in, with caches of its own; returns its last line as JSON."""

    def run(program, *words, hidden=(), **environment):
        hide = (
            f"import sys; sys.modules.update(dict.fromkeys({list(hidden)!r}))\n"  # importing them raises ImportError
        )
        own = {"HF_HOME": str(tmp_path_factory.mktemp("home")), "PYTHONPATH": str(SOURCE) if not hidden else ""}
        done = warm_torch.run(
            "-c",
            hide + program,
            *words,
            env={**os.environ, **hub.environment(), **own, **environment},
            cwd=tmp_path_factory.mktemp("elsewhere"),
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1])

    return run
