"""Threads side by side, each computing on one core: for work of which every part is a product and then something else.

Where PyTorch's threads share every product instead, and other threads the rest, they are in each other's way: OpenMP's
go on spinning for milliseconds after the product. Ranking 100,000 candidates took a fifth longer so.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def own_cores(count: int) -> Iterator[ThreadPoolExecutor]:
    """`count` threads, in each of which PyTorch computes alone; the setting of the calling thread stays.

    PyTorch keeps its number of threads for each thread, and one for those that have not computed yet. While the
    threads start, for about a millisecond, that is 1.
    """
    before = torch.get_num_threads()
    started = threading.Barrier(count + 1)

    def compute_alone() -> None:
        torch.get_num_threads()  # asked for the first time, it takes over the common one: not after the next line
        torch.set_num_threads(1)
        started.wait()

    with ThreadPoolExecutor(count, initializer=compute_alone) as threads:
        for _ in range(count):
            threads.submit(int)  # starts a thread
        started.wait()
        torch.set_num_threads(before)
        yield threads
