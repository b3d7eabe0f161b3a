"""The memory that retrieval_metrics may use, in a process of its own."""

import sys

import pytest

MEMORY_SCRIPT = """
import resource, sys
import numpy as np
from cca_hf.evaluation.retrieval.metrics import retrieval_metrics
queries, gallery = int(sys.argv[1]), int(sys.argv[2])
generator = np.random.default_rng(0)
vectors = generator.standard_normal((queries + gallery, 32), dtype=np.float32)
labels = generator.integers(0, 20, queries + gallery)
retrieval_metrics(vectors[:9], labels[:9], vectors[:3000], labels[:3000])  # compiles, if nothing is cached
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
# The address space may grow by 384 MiB, one copy of the gallery and the chunk; all similarities at once would be 400.
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 384 * 2**20, used + 384 * 2**20))
result = retrieval_metrics(vectors[:queries], labels[:queries], vectors[queries:], labels[queries:])
assert abs(result.map - result.chance_map) < 0.01
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets RLIMIT_AS")
def test_memory_does_not_grow_with_queries_times_gallery(warm_python):
    done = warm_python.run("-c", MEMORY_SCRIPT, 2000, 50000, check=True)
    assert float(done.stdout) < 300  # MiB
