"""The speed benchmarks with tiny settings: all figures of training are in one file with the others."""

import json
import os
from pathlib import Path

import pytest

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def run(repository, tmp_path, warm_python):
    def run(script: str, *arguments: object) -> dict:
        """Returns the content of the result file."""
        command = [repository / "scripts" / script, "--threads", 1, "--output", tmp_path, *arguments]
        path = os.pathsep.join([str(repository / "src"), os.environ.get("PYTHONPATH", "")])
        warm_python.run(*command, env={**os.environ, "PYTHONPATH": path}, check=True)
        (file,) = Path(tmp_path).glob("speed_*.json")
        return json.loads(file.read_text())

    return run


def test_training(run):
    few = ("--evaluation_rounds", 1, "--queries", 20, "--gallery", 3000, "--peer_queries", 2)
    evaluation = run("benchmark_speed.py", "--sections", "evaluation", *few)["evaluation"]
    assert evaluation["gallery"] == 3000
    assert {"scikit-learn_over_ours_for_2_queries", "pytorch-metric-learning_over_ours_for_2_queries"} <= {
        *evaluation["10 values"]
    }

    vit, mobilenet = {**VIT, "image_size": 32, "patch_size": 8}, {"image_size": 32, "depth_multiplier": 0.35}
    sizes = ("--batch_size", 16, "--loss_batch_size", 128, "--peer_batch_size", 32, "--pictures", 32, "--rounds", 1)
    backbones = ("--vit", json.dumps(vit), "--mobilenet", json.dumps(mobilenet))
    figures = run("benchmark_training_speed.py", *sizes, *backbones)
    assert figures["evaluation"]["gallery"] == 3000  # from the other script

    training = figures["training"]
    assert training["batch_size"] == 16 and training["setting"]["threads"] == 1
    assert 0.1 < training["throughput_over_bare_loop"] < 10 and 0 < training["flops_over_matmul_peak"] < 1
    triplets = training["triplets_per_pass_over_three_pass_recipe"]
    assert 50 < triplets["one label a picture"] < triplets["all labels"]
    assert 0 < figures["loss"]["share_of_step"] < 10
    for peer in ("loss", "loss_and_miner"):
        assert figures["loss"][f"{peer}_of_pytorch_metric_learning_over_ours"] > 0
    # at least the similarities, their gradient and the sorted rows for mining, each (8, 128, 128) with 4 bytes
    assert 3 * 0.5 < figures["loss"]["peak_memory_mib"] < 100
    small = figures["micro_batches"]
    assert small["micro_batch_size"] == 2 and 0.5 < small["time_over_plain"] < 20
    assert all(memory > 0 for memory in small["peak_memory_mib"].values())
    for backbone in ("vit", "mobilenet_v2"):
        for flips in ("with", "without"):
            assert 0 < figures["token_cache"][f"{backbone} {flips} flips"]["later_epochs_over_first"] < 1
