"""Two processes with gloo: together they do what one does with the joined batch."""

import pytest
import torch

from cca_hf.training.distributed import gather_with_gradient

from .conftest import child_environment


def test_alone_there_is_nothing_to_gather():
    tensor = torch.ones(3, 2, requires_grad=True)
    assert gather_with_gradient(tensor) is tensor


def test_two_processes(warm_python, shapes_folder, tmp_path, repository):
    """Gradients of every loss, batches, evaluation, resuming within an epoch; `two_processes.py` says what is held."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    script = repository / "tests" / "training" / "processes" / "two_processes.py"
    environment = child_environment(repository)
    printed = warm_python.run_on_ranks(2, script, shapes_folder, tmp_path, env=environment)
    assert "rank 0: all held" in printed and "rank 1: all held" in printed
