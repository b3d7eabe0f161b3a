"""How many threads a process gets that trains on a CPU."""

import os
import subprocess
import sys

import pytest

# a process of its own: the number of threads is a setting of the whole process
PROGRAM = """
import sys, torch
from cca_hf.training.threads import settle_threads
wanted = None if sys.argv[1] == "None" else int(sys.argv[1])
assert settle_threads(wanted) == torch.get_num_threads()
print(torch.get_num_threads())
"""
OF_ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}
CORES = os.cpu_count()


@pytest.mark.parametrize(
    ("wanted", "environment", "threads"),
    [
        ("None", OF_ACCELERATE, CORES),
        ("1", OF_ACCELERATE, 1),
        ("3", OF_ACCELERATE, 3),
        ("None", OF_ACCELERATE | {"OMP_NUM_THREADS": "2"}, 2),
        ("None", OF_ACCELERATE | {"LOCAL_WORLD_SIZE": "2"}, 1),
        ("None", {"OMP_NUM_THREADS": "1"}, 1),
    ],
)
def test_threads(wanted, environment, threads):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "OMP_"))}
    command = [sys.executable, "-c", PROGRAM, wanted]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == threads
