"""retrieval_metrics against the libraries that others use, on the same queries and galleries.

Our names are those of metric learning: recall@k is the share of queries with a relevant candidate among the first k,
which other libraries call success, hit rate or precision at 1. The docstrings say which conventions differ.
"""

import itertools
from typing import NamedTuple

import numba
import numpy as np
import pytest
import pytrec_eval
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import average_precision_score, precision_score
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP, RetrievalRPrecision

from cca_hf.evaluation import AttributeRetrieval, retrieval_metrics

KS = (1, 5, 10)


class Drawn(NamedTuple):
    """Unit vectors and labels; no candidate is relevant to the queries of the last value."""

    queries: np.ndarray  # (40, 16)
    labels: np.ndarray  # (40,)
    gallery: np.ndarray  # (150, 16)
    gallery_labels: np.ndarray  # (150,)

    @property
    def similarities(self) -> np.ndarray:
        return self.queries.astype(np.float64) @ self.gallery.astype(np.float64).T

    @property
    def relevant(self) -> np.ndarray:
        return self.labels[:, None] == self.gallery_labels

    def ours(self) -> AttributeRetrieval:
        return retrieval_metrics(self.queries, self.labels, self.gallery, self.gallery_labels, ks=KS)


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    generator = np.random.default_rng(7)
    values = generator.normal(size=(7, 16))
    labels, gallery_labels = generator.integers(0, 7, 40), generator.integers(0, 6, 150)
    rows = np.concatenate([values[labels], values[gallery_labels]]) + 1.5 * generator.normal(size=(190, 16))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    made = Drawn(rows[:40], labels, rows[40:], gallery_labels)
    # no ties, and every gap is far above the rounding of float32: all libraries see the same order
    assert np.diff(np.sort(made.similarities, axis=1)).min() > 1e-6
    assert 0 < (~made.relevant.any(axis=1)).sum() < 10
    return made


def as_run(similarities: np.ndarray) -> dict[str, dict[str, float]]:
    return {
        f"q{query}": {f"d{place:03}": float(score) for place, score in enumerate(row)}
        for query, row in enumerate(similarities)
    }


def as_qrels(relevant: np.ndarray) -> dict[str, dict[str, int]]:
    return {
        f"q{query}": {f"d{place:03}": int(each) for place, each in enumerate(row)}
        for query, row in enumerate(relevant)
    }


def test_pytrec_eval(drawn):
    """trec_eval breaks ties by the names of the documents; here they count as the mean over all orders.

    Without ties nothing has to be evened out: trec_eval scores a query without a relevant document with 0, too. With
    ties, the mean of trec_eval over all orders of the equal candidates must be our figure.
    """
    names = {"map", "Rprec", "success.1,5,10"}
    scores = pytrec_eval.RelevanceEvaluator(as_qrels(drawn.relevant), names).evaluate(as_run(drawn.similarities))
    ours = drawn.ours().scores
    theirs = [scores[f"q{query}"] for query in range(40)]
    np.testing.assert_allclose(ours.average_precision, [each["map"] for each in theirs], atol=1e-12)
    np.testing.assert_allclose(ours.r_precision, [each["Rprec"] for each in theirs], atol=1e-12)
    for k in KS:
        np.testing.assert_allclose(ours.recall[k], [each[f"success_{k}"] for each in theirs], atol=1e-12)

    cosines = np.array([0.6, 0.8, 0.6, 0.0, 0.6, 0.0])  # three equal candidates, and two
    relevant = np.array([[True, False, False, True, True, False]])
    gallery = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)
    tied = retrieval_metrics([[1.0, 0.0]], [0], gallery, np.where(relevant[0], 0, 1), ks=KS).scores
    # every order of the six names breaks the ties in one way, and all ways are equally frequent
    orders = np.array(list(itertools.permutations(range(6))))
    runs = as_run(cosines - 1e-3 * orders)
    evaluator = pytrec_eval.RelevanceEvaluator(as_qrels(relevant.repeat(len(orders), axis=0)), names)
    means = {name: np.mean([each[name] for each in evaluator.evaluate(runs).values()]) for name in ("map", "Rprec")}
    assert tied.average_precision[0] == pytest.approx(means["map"], abs=1e-12)
    assert tied.r_precision[0] == pytest.approx(means["Rprec"], abs=1e-12)


def test_ranx(drawn, monkeypatch):
    """ranx reads only the relevant documents of its qrels; a query without one must be listed with irrelevant ones."""
    ours = drawn.ours().scores
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)  # compiling the functions of ranx takes minutes
    import ranx

    qrels, run = ranx.Qrels.from_dict(as_qrels(drawn.relevant)), ranx.Run.from_dict(as_run(drawn.similarities))
    scores = ranx.evaluate(qrels, run, ["map", "r-precision", "hit_rate@5"], return_mean=False)
    order = np.argsort([f"q{query}" for query in range(40)])  # ranx sorts the queries by their names
    np.testing.assert_allclose(ours.average_precision[order], scores["map"], atol=1e-12)
    np.testing.assert_allclose(ours.r_precision[order], scores["r-precision"], atol=1e-12)
    np.testing.assert_allclose(ours.recall[5][order], scores["hit_rate@5"], atol=1e-12)


def test_torchmetrics(drawn):
    """torchmetrics takes candidates with a score of 0 or less for irrelevant, so 2 is added to the cosines.

    It computes in float32. Its default `empty_target_action="neg"` gives a query without a relevant candidate 0.
    """
    scores = torch.from_numpy(drawn.similarities).flatten() + 2
    target = torch.from_numpy(drawn.relevant).flatten()
    indexes = torch.arange(40).repeat_interleave(150)
    ours = drawn.ours()

    def measure(metric) -> float:
        return metric(scores, target, indexes=indexes).item()

    assert ours.map == pytest.approx(measure(RetrievalMAP()), abs=1e-6)
    assert ours.scores.r_precision.mean() == pytest.approx(measure(RetrievalRPrecision()), abs=1e-6)
    for k in KS:
        assert ours.scores.recall[k].mean() == pytest.approx(measure(RetrievalHitRate(top_k=k)), abs=1e-6)


def test_pytorch_metric_learning(drawn):
    """pytorch-metric-learning leaves queries without a relevant candidate out of its means; ours count as 0.

    It ranks by Euclidean distance, which is the same order for unit vectors. `k` is the length of the list: by default
    the list is as long as the most frequent value, and `mean_average_precision` is then cut off.
    """
    names = ("precision_at_1", "r_precision", "mean_average_precision")
    tensors = [torch.from_numpy(array) for array in drawn]

    def measure(k: int, *args: torch.Tensor, **settings: bool) -> dict[str, float]:
        return AccuracyCalculator(include=names, k=k, **settings).get_accuracy(*args)

    def compare(ours: AttributeRetrieval, theirs: dict[str, float]) -> None:
        answerable = ours.num_relevant > 0
        assert 0 < (~answerable).sum()
        means = (ours.scores.recall[1], ours.scores.r_precision, ours.scores.average_precision)
        for name, scores in zip(names, means, strict=True):
            assert scores[answerable].mean() == pytest.approx(theirs[name], abs=1e-12), name

    compare(drawn.ours(), measure(150, *tensors))
    by_value = measure(150, *tensors, avg_of_avgs=True)  # ours is the macro mean
    per_value = [score for value, score in drawn.ours().per_value.items() if value < 6]
    assert np.mean(per_value) == pytest.approx(by_value["mean_average_precision"], abs=1e-12)

    # leave-one-out: the queries are their own gallery; the last image has a value of its own
    labels = drawn.gallery_labels.copy()
    labels[-1] = 6
    ours = retrieval_metrics(drawn.gallery, labels)
    compare(ours, measure(149, tensors[2], torch.from_numpy(labels)))


def test_scikit_learn(drawn):
    """scikit-learn scores a ranking as a classifier: a candidate is a sample, the similarity its score.

    `average_precision_score` gives equal scores one threshold, which ours replaces by the mean over their orders, and
    warns about a query without a relevant candidate. R-precision is the precision at a threshold after R candidates.
    """
    ours = drawn.ours()
    answerable = np.flatnonzero(drawn.relevant.any(axis=1))
    assert not ours.scores.average_precision[~drawn.relevant.any(axis=1)].any()
    similarities = drawn.similarities
    precision = [average_precision_score(drawn.relevant[query], similarities[query]) for query in answerable]
    np.testing.assert_allclose(ours.scores.average_precision[answerable], precision, atol=1e-12)
    for query in answerable:
        threshold = np.sort(similarities[query])[-drawn.relevant[query].sum()]
        expected = precision_score(drawn.relevant[query], similarities[query] >= threshold)
        assert ours.scores.r_precision[query] == pytest.approx(expected, abs=1e-12)
