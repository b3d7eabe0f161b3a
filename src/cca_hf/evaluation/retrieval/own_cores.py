"""Work in threads that compute on one core each: a matrix product, and then other work.

If PyTorch's threads shared a product instead, they would slow down the other work, because OpenMP threads spin for
milliseconds after a product.
"""

import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue

import torch


def run_on_own_cores(work: Callable[[int], None], items: Iterable[int], num_threads: int) -> None:
    """Call `work` for each item, in `num_threads` threads in which PyTorch computes on one core.

    If the system allows fewer threads, those that start do all of the work; if none starts, this thread does it. The
    first exception of `work` stops all threads and is raised here.

    PyTorch stores a number of threads for each thread, and a default for threads that have not computed yet. The
    default is 1 for about a millisecond while the threads start.
    """
    waiting: SimpleQueue[int | None] = SimpleQueue()
    for item in (*items, *[None] * num_threads):  # None ends a thread
        waiting.put(item)
    failures: list[BaseException] = []
    stop, configured = threading.Event(), threading.Semaphore(0)

    def do_all() -> None:
        try:
            while not stop.is_set() and (item := waiting.get()) is not None:
                work(item)
        except BaseException as error:
            failures.append(error)
            stop.set()

    def compute_alone() -> None:
        torch.get_num_threads()  # the first call copies the default: it must come before the next line
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
    finally:  # also after an interrupt
        stop.set()
        torch.set_num_threads(before)
    if failures:
        raise failures[0]
