"""Threads that compute on one core each, and the settings that they leave behind."""

import threading
from queue import Empty

import numpy as np
import pytest
import torch

from cca_hf import retrieval_metrics
from cca_hf.evaluation.retrieval import metrics as retrieval
from cca_hf.evaluation.retrieval.metrics import run_on_own_cores


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def threads_that_compute(count: int) -> list[int]:
    """How many threads PyTorch uses in each of `count` threads that are at work at the same time."""
    together, used = threading.Barrier(count, timeout=60), []

    def compute(size: int) -> None:
        together.wait()  # in `count` threads, not `count` times in one
        torch.ones(size, size) @ torch.ones(size, size)
        used.append(torch.get_num_threads())

    run_on_own_cores(compute, [300] * count, count)
    return used


def test_each_computes_alone_and_the_setting_stays():
    assert threads_that_compute(4) == [1] * 4
    assert torch.get_num_threads() == 3
    of_new_thread = []
    thread = threading.Thread(target=lambda: of_new_thread.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert of_new_thread == [3]


def test_an_exception_is_raised_and_nothing_waits(monkeypatch):
    def fail(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(retrieval, "score_queries", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        retrieval_metrics(np.eye(50), np.arange(50) % 5, chunk_size=4)
    assert torch.get_num_threads() == 3


def test_no_item_is_lost_with_an_exception_of_an_empty_queue():
    """`queue.Empty` of the work itself is a failure, not the end of the items."""

    def fail(_):
        raise Empty

    with pytest.raises(Empty):
        run_on_own_cores(fail, range(3), 2)


@pytest.mark.parametrize("that_start", [0, 1, 2])
def test_threads_that_cannot_start(that_start, monkeypatch):
    """The result is right, from the threads that could start or from the calling one, and nothing waits for ever."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(90, 4)), generator.integers(0, 3, 90)
    expected = retrieval_metrics(*inputs, chunk_size=7)
    start, started, results = threading.Thread.start, [], []

    def start_some(thread: threading.Thread) -> None:
        if len(started) == that_start:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    def evaluate() -> None:
        torch.set_num_threads(3)
        results.append(retrieval_metrics(*inputs, chunk_size=7))
        results.append(torch.get_num_threads())

    caller = threading.Thread(target=evaluate, daemon=True)
    monkeypatch.setattr(threading.Thread, "start", start_some)
    start(caller)
    caller.join(timeout=120)
    assert not caller.is_alive()
    found, num_threads = results
    assert len(started) == that_start and num_threads == 3
    np.testing.assert_array_equal(found.scores.average_precision, expected.scores.average_precision)
