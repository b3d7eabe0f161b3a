"""Sets of values in the ranking: several values a picture, and values it may show, against plain loops."""

import sys
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from cca_hf.evaluation.retrieval import ranking
from cca_hf.evaluation.retrieval.metrics import retrieval_metrics

NUM_VALUES = 5


@pytest.fixture(params=["compiled", "sorting", "accelerator"], autouse=True)
def all_ways(request, monkeypatch):
    """Every test here holds for compiled loops, for sorting on the CPU, and for the path of an accelerator."""
    device = None
    if request.param == "compiled":
        pytest.importorskip("numba", reason="the extra [fast] is not installed")
        monkeypatch.setattr(ranking, "_FEW", 0)
    elif request.param == "sorting":
        monkeypatch.setitem(sys.modules, "cca_hf.evaluation.retrieval.compiled_counting", None)
    else:
        device = "cpu"
    monkeypatch.setitem(globals(), "retrieval_metrics", partial(retrieval_metrics, device=device))


def draw(images: int, seed: int):
    """Embeddings, labels (some -1), groups (some -1), shown and maybe sets."""
    generator = np.random.default_rng(seed)
    embeddings = generator.normal(size=(images, 8)).astype(np.float32)
    labels = generator.integers(-1, NUM_VALUES, images)
    groups = generator.integers(-1, images // 3, images)
    shown = generator.random((images, NUM_VALUES)) < 0.15
    maybe = generator.random((images, NUM_VALUES)) < 0.2
    return embeddings, labels, groups, shown, maybe


def loops(queries, gallery, *, by_set: bool, without_maybe: bool, leave_one_out: bool):
    """(row, candidates, relevant, average precision) of every labelled query, by the words of the definition."""
    results = []
    for q, (vector, label, group, shown, _) in enumerate(zip(*queries, strict=True)):
        if label < 0:
            continue
        mine = {label, *np.flatnonzero(shown).tolist()} if by_set else {label}
        similarities, relevance = [], []
        for c, (other, its_label, its_group, its_shown, its_maybe) in enumerate(zip(*gallery, strict=True)):
            if its_label < 0 or (leave_one_out and c == q) or (group >= 0 and group == its_group):
                continue
            its = {its_label, *np.flatnonzero(its_shown).tolist()} if by_set else {its_label}
            relevant = bool(mine & its)
            if without_maybe and its_maybe[label] and not relevant:
                continue
            lengths = np.linalg.norm(vector.astype(float)) * np.linalg.norm(other.astype(float))
            similarities.append(float(np.dot(vector.astype(float), other.astype(float)) / lengths))
            relevance.append(relevant)
        precision = average_precision_score(relevance, similarities) if any(relevance) else 0.0
        results.append((q, len(relevance), sum(relevance), precision))
    return results


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize(("by_set", "without_maybe"), [(False, False), (True, False), (False, True), (True, True)])
def test_equals_plain_loops(by_set, without_maybe, leave_one_out, chunk_size):
    queries, gallery = draw(40, 1), draw(70, 2)
    if leave_one_out:
        gallery = queries
    embeddings, labels, groups, shown, _ = queries
    sets = {"query_values": shown, "gallery_values": gallery[3]} if by_set else {}
    sets |= {"maybe_values": gallery[4]} if without_maybe else {}
    if leave_one_out:
        sets.pop("gallery_values", None)
        result = retrieval_metrics(embeddings, labels, query_groups=groups, chunk_size=chunk_size, **sets)
    else:
        result = retrieval_metrics(
            embeddings, labels, *gallery[:2], query_groups=groups, gallery_groups=gallery[2],
            chunk_size=chunk_size, **sets,
        )  # fmt: skip
    rows = loops(queries, gallery, by_set=by_set, without_maybe=without_maybe, leave_one_out=leave_one_out)
    assert result.queries.tolist() == [row[0] for row in rows]
    assert result.num_candidates.tolist() == [row[1] for row in rows]
    assert result.num_relevant.tolist() == [row[2] for row in rows]
    np.testing.assert_allclose(result.scores.average_precision, [row[3] for row in rows], atol=1e-9, rtol=0)


def test_sets_change_the_figures_and_only_those_they_should():
    """A guard of the test above: the drawn sets matter, and a set that says no more than the label does not."""
    embeddings, labels, _, shown, maybe = draw(60, 3)
    plain = retrieval_metrics(embeddings, labels)
    by_set = retrieval_metrics(embeddings, labels, query_values=shown)
    without = retrieval_metrics(embeddings, labels, maybe_values=maybe)
    assert by_set.num_relevant.sum() > plain.num_relevant.sum()
    assert (by_set.num_candidates == plain.num_candidates).all()
    assert without.num_candidates.sum() < plain.num_candidates.sum()
    assert (without.num_relevant == plain.num_relevant).all()
    assert (without.scores.average_precision >= plain.scores.average_precision).all()
    nothing = np.zeros_like(shown)
    for same in (
        retrieval_metrics(embeddings, labels, query_values=nothing),
        retrieval_metrics(embeddings, labels, maybe_values=nothing),
    ):
        np.testing.assert_array_equal(same.scores.average_precision, plain.scores.average_precision)
        np.testing.assert_array_equal(same.num_candidates, plain.num_candidates)


def test_sets_of_one_side_are_enough():
    """If only the gallery has sets of values, a query shows its label; and the other way round."""
    embeddings, labels, _, shown, _ = draw(50, 4)
    others, its_labels, _, its_shown, _ = draw(60, 5)
    none, its_none = np.zeros_like(shown), np.zeros_like(its_shown)
    for given, complete in (
        ({"gallery_values": its_shown}, {"query_values": none, "gallery_values": its_shown}),
        ({"query_values": shown}, {"query_values": shown, "gallery_values": its_none}),
    ):
        partly = retrieval_metrics(embeddings, labels, others, its_labels, **given)
        fully = retrieval_metrics(embeddings, labels, others, its_labels, **complete)
        np.testing.assert_array_equal(partly.scores.average_precision, fully.scores.average_precision)


def test_a_constant_embedding_scores_chance_with_sets_too():
    _, labels, groups, shown, maybe = draw(80, 6)
    constant = np.ones((80, 2))
    for sets in ({"query_values": shown}, {"maybe_values": maybe}, {"query_values": shown, "maybe_values": maybe}):
        result = retrieval_metrics(constant, labels, query_groups=groups, **sets)
        np.testing.assert_allclose(result.scores.average_precision, result.chance.average_precision, atol=1e-13)
        np.testing.assert_allclose(result.scores.recall[5], result.chance.recall[5], atol=1e-13)


def test_a_gallery_that_is_taken_out_whole():
    """Every candidate may show the value: there is nobody left to rank."""
    maybe = np.ones((3, 2), dtype=bool)
    result = retrieval_metrics(np.eye(3), [0, 0, 0], np.eye(3), [1, 1, 1], maybe_values=maybe)
    assert result.num_candidates.tolist() == [0, 0, 0]
    assert (result.map, result.chance_map) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"query_values": np.ones((4, 2))}, r"query values must be booleans of shape \(4, values\).*got float64"),
        ({"query_values": np.ones((3, 2), dtype=bool)}, r"a row for each embedding; got bool of shape \(3, 2\)"),
        ({"maybe_values": np.ones(4, dtype=bool)}, r"maybe values must be booleans"),
        ({"maybe_values": np.ones((4, 1), dtype=bool)}, "1 wide .* the labels go up to 1"),
        (
            {"query_values": np.ones((4, 2), dtype=bool), "maybe_values": np.ones((4, 3), dtype=bool)},
            r"widths of \[2, 3\]",
        ),
        ({"gallery_values": np.ones((4, 2), dtype=bool)}, "gallery_values without a gallery"),
    ],
)
def test_bad_sets_say_what_was_given(sets, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(np.eye(4), [0, 1, 1, 0], **sets)
