"""Two processes with gloo: together they do what one does with the joined batch."""

import pytest
import torch

from cca_hf.training.distributed import gather_with_gradient


def test_alone_there_is_nothing_to_gather():
    tensor = torch.ones(3, 2, requires_grad=True)
    assert gather_with_gradient(tensor) is tensor


def test_two_processes(run_python, shapes_folder, tmp_path, repository):
    """Gradients of every loss, batches, evaluation, resuming within an epoch; `two_processes.py` says what is held."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    done = run_python(
        *("-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"),
        *("--rdzv_endpoint", "localhost:0"),
        repository / "tests" / "training" / "processes" / "two_processes.py",
        *(shapes_folder, tmp_path),
    )
    assert "rank 0: all held" in done.stdout and "rank 1: all held" in done.stdout
