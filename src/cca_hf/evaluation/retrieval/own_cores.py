"""Work in threads that compute on one core each, where a part of the work is a matrix product and then something else.

If PyTorch's threads shared each product instead, they would disturb the threads that do the rest: OpenMP threads spin
for milliseconds after a product. Ranking 100,000 candidates took a fifth longer that way.
"""

import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue

import torch


def run_on_own_cores(work: Callable[[int], None], items: Iterable[int], num_threads: int) -> None:
    """Call `work` for each item, in `num_threads` threads in which PyTorch computes on one core.

    If the system allows fewer threads, those that could start do all of the work; without any, this thread does it.
    The first exception of `work` stops all threads and is raised here.

    PyTorch has a number of threads for each thread, and one for threads that have not computed yet. The second one is
    1 for about a millisecond while the threads start.
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    for item in items:
        waiting.put(item)
    failures: list[BaseException] = []
    stop, configured = threading.Event(), threading.Semaphore(0)

    def do_all() -> None:
        while not stop.is_set() and (item := _next(waiting)) is not None:
            try:
                work(item)
            except BaseException as error:
                failures.append(error)
                stop.set()

    def compute_alone() -> None:
        torch.get_num_threads()  # the first call adopts the common number: it must come before the next line
        torch.set_num_threads(1)
        configured.release()
        do_all()

    before = torch.get_num_threads()
    threads: list[threading.Thread] = []
    try:
        for _ in range(num_threads):
            thread = threading.Thread(target=compute_alone)
            thread.start()
            threads.append(thread)
    except RuntimeError:  # can't start new thread
        pass
    try:
        for _ in threads:
            configured.acquire()
        torch.set_num_threads(before)
        if not threads:
            do_all()
        for thread in threads:
            thread.join()
    finally:  # after an interrupt, too
        stop.set()
        torch.set_num_threads(before)
    if failures:
        raise failures[0]


def _next(waiting: SimpleQueue[int]) -> int | None:
    try:
        return waiting.get_nowait()
    except Empty:
        return None
