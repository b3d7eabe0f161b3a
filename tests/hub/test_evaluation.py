"""A checkpoint on the Hub is evaluated on the splits of its training, which its run.json records."""

import json

import pytest
from datasets import concatenate_datasets

from cca_hf.data.shapes import generate_shapes_dataset
from cca_hf.recipes.attribute_retrieval import DataArguments, ModelArguments, run_training
from cca_hf.training.arguments import CCATrainingArguments

from .conftest import VIT

PROGRAM = """
import contextlib, io, json, sys
from cca_hf.cli.main import main

errors, results = io.StringIO(), io.StringIO()
with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(results):
    codes = [main(words) for words in json.loads(sys.argv[1])]
print(json.dumps([codes, results.getvalue(), errors.getvalue()]))
"""


def test_the_splits_of_the_training(hub, run_on_hub, tmp_path):
    data, model = tmp_path / "catalogue", tmp_path / "cca-catalogue"
    data.mkdir()
    splits = generate_shapes_dataset(num_images=150, image_size=32, seed=0)
    concatenate_datasets([*splits.values()]).to_parquet(data / "train.parquet")
    args = CCATrainingArguments(
        output_dir=str(model),
        use_cpu=True,
        bf16=False,
        max_steps=1,
        per_device_train_batch_size=16,
        images_per_value=2,
    )
    data_args = DataArguments(str(data), ["shape", "colour"], split_seed=3)
    run = run_training(ModelArguments(backbone_config=json.dumps(VIT)), data_args, args)
    evaluate = ["evaluate", "--model", "me/evaluated", "--dataset", str(data)]
    steps = [
        ["push", "--model", str(model), "--repo", "me/evaluated"],
        [*evaluate, "--split_seed", "1"],
        [*evaluate, "--json"],
    ]
    codes, results, errors = run_on_hub(PROGRAM, json.dumps(steps))
    assert codes == [0, 1, 0]
    assert "me/evaluated was trained with --split_seed 3" in errors
    metrics = json.loads(results[results.index("{") :])
    assert metrics == pytest.approx(run.result.intervals() | run.result.metrics(), abs=1e-6)
