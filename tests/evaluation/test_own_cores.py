"""Threads that compute on one core each, and what they leave behind."""

import threading

import numpy as np
import pytest
import torch

from cca_hf import retrieval_metrics
from cca_hf.evaluation.retrieval import metrics as retrieval
from cca_hf.evaluation.retrieval.own_cores import own_cores


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_each_computes_alone_and_the_setting_stays():
    together = threading.Barrier(4)

    def compute(size: int) -> int:
        together.wait()  # on four threads, not four times on one
        torch.ones(size, size) @ torch.ones(size, size)
        return torch.get_num_threads()

    with own_cores(4) as threads:
        assert torch.get_num_threads() == 3
        assert list(threads.map(compute, [300] * 4)) == [1] * 4
    assert torch.get_num_threads() == 3
    of_new_thread = []
    thread = threading.Thread(target=lambda: of_new_thread.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert of_new_thread == [3]


def test_what_fails_in_one_is_raised_and_nothing_waits(monkeypatch):
    def fail(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(retrieval, "score_by_counting", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        retrieval_metrics(np.eye(50), np.arange(50) % 5, chunk_size=4)
    assert torch.get_num_threads() == 3
