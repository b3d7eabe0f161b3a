"""retrieval_metrics against plain double loops and scikit-learn."""

import sys
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from cca_hf.evaluation.retrieval import ranking
from cca_hf.evaluation.retrieval.metrics import AttributeRetrieval, retrieval_metrics


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


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def loop_scores(query, label, candidates, candidate_labels, ks) -> tuple[float, float, dict[int, float]]:
    """One query without ties: rank, walk down the list, by definition."""
    similarities = [float(np.dot(query.astype(np.float64), each.astype(np.float64))) for each in candidates]
    order = sorted(range(len(candidates)), key=lambda place: -similarities[place])
    relevance = [candidate_labels[place] == label for place in order]
    total = sum(relevance)
    if total == 0:
        return 0.0, 0.0, dict.fromkeys(ks, 0.0)
    found, precision_sum = 0, 0.0
    for rank, relevant in enumerate(relevance, start=1):
        if relevant:
            found += 1
            precision_sum += found / rank
    return precision_sum / total, sum(relevance[:total]) / total, {k: float(any(relevance[:k])) for k in ks}


def loop_retrieval(queries, labels, groups, gallery, gallery_labels, gallery_groups, ks, leave_one_out):
    rows = []
    for i in range(len(queries)):
        if labels[i] < 0:
            continue
        allowed = [
            j
            for j in range(len(gallery))
            if gallery_labels[j] >= 0
            and not (leave_one_out and i == j)
            and not (groups[i] >= 0 and groups[i] == gallery_groups[j])
        ]
        rows.append(
            (i, len(allowed), *loop_scores(queries[i], labels[i], gallery[allowed], gallery_labels[allowed], ks))
        )
    return rows


def assert_equal_to_loops(result: AttributeRetrieval, rows, ks) -> None:
    assert result.queries.tolist() == [row[0] for row in rows]
    assert result.num_candidates.tolist() == [row[1] for row in rows]
    np.testing.assert_allclose(result.scores.average_precision, [row[2] for row in rows], atol=1e-12)
    np.testing.assert_allclose(result.scores.r_precision, [row[3] for row in rows], atol=1e-12)
    for k in ks:
        np.testing.assert_allclose(result.scores.recall[k], [row[4][k] for row in rows], atol=1e-12)


@pytest.mark.parametrize("chunk_size", [None, 1, 7])
@pytest.mark.parametrize("grouped", [False, True])
def test_leave_one_out_equals_double_loops(grouped, chunk_size):
    generator = np.random.default_rng(3)
    embeddings, labels = unit(generator.normal(size=(60, 8))), generator.integers(-1, 6, 60)
    labels[17] = 6  # a value with one image: nothing to find
    groups = generator.integers(-1, 20, 60) if grouped else np.full(60, -1)
    ks = (1, 2, 5, 100)
    result = retrieval_metrics(
        embeddings, labels, query_groups=groups if grouped else None, ks=ks, chunk_size=chunk_size
    )
    rows = loop_retrieval(embeddings, labels, groups, embeddings, labels, groups, ks, leave_one_out=True)
    assert_equal_to_loops(result, rows, ks)
    assert result.scores.average_precision[result.labels == 6].tolist() == [0.0]


@pytest.mark.parametrize("grouped", [False, True])
def test_query_and_gallery_equal_double_loops(grouped):
    generator = np.random.default_rng(4)
    queries, gallery = unit(generator.normal(size=(25, 8))), unit(generator.normal(size=(70, 8)))
    labels, gallery_labels = (
        generator.integers(-1, 6, 25),
        generator.integers(-1, 5, 70),
    )  # value 5: none in the gallery
    groups = generator.integers(-1, 15, 25) if grouped else None
    gallery_groups = generator.integers(-1, 15, 70) if grouped else None
    ks = (1, 5, 10)
    result = retrieval_metrics(
        queries, labels, gallery, gallery_labels, query_groups=groups, gallery_groups=gallery_groups, chunk_size=4
    )
    none = [np.full(25, -1), np.full(70, -1)]
    members = [groups, gallery_groups] if grouped else none
    rows = loop_retrieval(queries, labels, members[0], gallery, gallery_labels, members[1], ks, leave_one_out=False)
    assert_equal_to_loops(result, rows, ks)


def test_equals_scikit_learn_without_ties():
    generator = np.random.default_rng(5)
    queries, gallery = unit(generator.normal(size=(40, 16))), unit(generator.normal(size=(900, 16)))
    labels, gallery_labels = generator.integers(0, 7, 40), generator.integers(0, 7, 900)
    result = retrieval_metrics(queries, labels, gallery, gallery_labels)
    similarities = queries.astype(np.float64) @ gallery.astype(np.float64).T
    # The smallest gap is far above the rounding of float32, so both see the same order.
    assert np.diff(np.sort(similarities, axis=1)).min() > 0
    reference = [
        average_precision_score(gallery_labels == label, row) for label, row in zip(labels, similarities, strict=True)
    ]
    np.testing.assert_allclose(result.scores.average_precision, reference, atol=1e-9, rtol=0)


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_constant_embedding_scores_exactly_chance(leave_one_out):
    """One vector for everything, in a size at which a plain matmul may round its columns unequally."""
    generator = np.random.default_rng(6)
    embeddings = np.repeat(generator.normal(size=(1, 131)), 503, axis=0)
    labels, groups = generator.integers(-1, 5, 503), generator.integers(-1, 60, 503)
    if leave_one_out:
        result = retrieval_metrics(embeddings, labels, query_groups=groups)
    else:
        result = retrieval_metrics(
            embeddings[:99], labels[:99], embeddings, labels, query_groups=groups[:99], gallery_groups=groups
        )
    assert 0.1 < result.chance_map < 0.4
    np.testing.assert_allclose(result.scores.average_precision, result.chance.average_precision, atol=1e-13)
    np.testing.assert_allclose(result.scores.r_precision, result.chance.r_precision, atol=1e-13)
    for k, chance in result.chance.recall.items():
        np.testing.assert_allclose(result.scores.recall[k], chance, atol=1e-13)
    # ... and chance is the formula of the protocol, over what is left after the exclusions
    for row in range(len(result.queries)):
        size, relevant = int(result.num_candidates[row]), int(result.num_relevant[row])
        harmonic = sum(1 / rank for rank in range(1, size + 1))
        expected = (harmonic + (relevant - 1) / (size - 1) * (size - harmonic)) / size
        assert result.chance.average_precision[row] == pytest.approx(expected, abs=1e-12)


def test_copies_tie_whatever_the_matmul_rounds():
    """A matmul sums its last rows and columns in another order; which sizes show it depends on the CPU."""
    generator = np.random.default_rng(11)
    for _ in range(120):
        queries, images, dim = generator.integers([1, 2, 2], [80, 200, 300])
        gallery = np.repeat(generator.normal(size=(1, dim)), images, axis=0)
        result = retrieval_metrics(
            generator.normal(size=(queries, dim)), np.zeros(queries, int), gallery, generator.integers(0, 2, images)
        )
        np.testing.assert_allclose(result.scores.average_precision, result.chance.average_precision, atol=1e-12)


def test_chance_is_what_random_embeddings_score():
    generator = np.random.default_rng(7)
    labels = generator.integers(0, 4, 1200)
    result = retrieval_metrics(generator.normal(size=(1200, 32)), labels)
    assert result.map == pytest.approx(result.chance_map, abs=0.01)
    assert result.scores.r_precision.mean() == pytest.approx(result.chance.r_precision.mean(), abs=0.01)


def test_copies_in_the_gallery_tie_exactly():
    """Every gallery vector twice, once relevant and once not: the order within a pair must not matter."""
    generator = np.random.default_rng(8)
    vectors = unit(generator.normal(size=(203, 67)))
    gallery, gallery_labels = np.concatenate([vectors, vectors]), np.repeat([0, 1], 203)
    result = retrieval_metrics(generator.normal(size=(5, 67)), np.zeros(5, int), gallery, gallery_labels)
    # pair p is at ranks 2p-1, 2p: its relevant one is met after p-1 others, first or second with equal probability
    expected = np.mean([(p / (2 * p - 1) + p / (2 * p)) / 2 for p in range(1, 204)])
    np.testing.assert_allclose(result.scores.average_precision, expected, atol=1e-12)
    assert result.scores.recall[1].tolist() == [0.5] * 5
    assert result.scores.recall[5].tolist() == [1.0] * 5


def test_embeddings_of_one_number():
    """Only their signs are left: relevant candidates of the same sign tie with the others of it."""
    result = retrieval_metrics([[3.0]], [0], [[1.0], [2.0], [-4.0]], [0, 1, 0])
    assert result.map == pytest.approx(((1 + 1 / 2) / 2 + 2 / 3) / 2)


def test_lengths_of_the_vectors_do_not_matter():
    generator = np.random.default_rng(9)
    embeddings, labels = generator.normal(size=(50, 8)), generator.integers(0, 4, 50)
    scaled = retrieval_metrics(embeddings * generator.uniform(0.1, 10, size=(50, 1)), labels)
    assert scaled.map == pytest.approx(retrieval_metrics(embeddings, labels).map, abs=1e-12)


def test_macro_weighs_values_alike():
    embeddings = unit(np.random.default_rng(10).normal(size=(30, 4)))
    labels = np.repeat([0, 2], [26, 4])
    result = retrieval_metrics(embeddings, labels)
    common, rare = result.scores.average_precision[:26].mean(), result.scores.average_precision[26:].mean()
    assert result.per_value == {0: pytest.approx(common), 2: pytest.approx(rare)}
    assert result.map == pytest.approx((26 * common + 4 * rare) / 30)
    assert result.map_macro == pytest.approx((common + rare) / 2)


def test_takes_torch_tensors_of_any_precision():
    embeddings = torch.nn.functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(20) % 3
    expected = retrieval_metrics(embeddings.bfloat16().float().numpy(), labels.numpy()).map
    assert retrieval_metrics(embeddings.bfloat16(), labels).map == pytest.approx(expected, abs=1e-12)


def test_gallery_without_a_labelled_image_scores_zero():
    result = retrieval_metrics(np.eye(3), [0, 1, -1], np.eye(3), [-1, -1, -1])
    assert (result.map, result.chance_map, result.num_candidates.tolist()) == (0.0, 0.0, [0, 0])


def test_does_not_change_its_input():
    embeddings, labels = np.full((4, 3), 2.0, dtype=np.float32), np.array([0, 0, 1, 1])
    retrieval_metrics(embeddings, labels)
    assert (embeddings == 2.0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_embeddings": np.ones(5)}, r"shape \(images, dim\), got \(5,\)"),
        ({"query_labels": [0, 1]}, r"query labels must have shape \(4,\)"),
        ({"query_labels": [0, 1, 1, -2]}, "got -2"),
        ({"query_labels": [0.0, 1.0, 1.0, 0.5]}, "must be integers"),
        ({"query_labels": [-1] * 4}, "none of the 4 queries is labelled"),
        ({"query_embeddings": [[1.0, 0], [0, 1], [np.nan, 0], [1, 1]]}, "1 of 4 query embeddings are not finite"),
        ({"gallery_embeddings": np.eye(4)}, "give both, or neither"),
        ({"gallery_groups": [0] * 4}, "without a gallery"),
        ({"gallery_embeddings": np.eye(4), "gallery_labels": [0] * 4}, "2 dimensions, gallery embeddings 4"),
        (
            {"gallery_embeddings": np.ones((1, 2)), "gallery_labels": [0], "query_groups": [0] * 4},
            "query_groups and gallery_groups go together",
        ),
        ({"ks": (0,)}, "at least 1"),
        ({"chunk_size": 0}, "chunk_size must be an integer of at least 1, got 0"),
        ({"chunk_size": 2.5}, "chunk_size must be an integer of at least 1, got 2.5"),
        ({"ks": (1.5,)}, "every k of ks must be an integer of at least 1, got 1.5"),
        ({"ks": (None,)}, "every k of ks must be an integer of at least 1, got None"),
        ({"ks": None}, "ks must be a list of integers, got None"),
        ({"query_embeddings": None}, "query embeddings must be real numbers, got object"),
        ({"query_embeddings": [["a", "b"]] * 4}, "query embeddings must be real numbers, got <U1"),
        ({"query_embeddings": np.full((4, 2), np.inf)}, "4 of 4 query embeddings are not finite, the first is 0"),
        ({"query_labels": None}, r"query labels must have shape \(4,\)"),
        ({"query_labels": [0, 1, None, 1]}, "query labels must be integers .* got object"),
        ({"query_labels": [0, 1, np.nan, 1]}, "query labels must be integers .* got float64"),
        ({"query_groups": [0, None, 1, 1]}, "query groups must be integers .* got object"),
    ],
)
def test_bad_input_says_what_was_given(arguments, message):
    good = {"query_embeddings": np.ones((4, 2)), "query_labels": [0, 1, 1, 0]}
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**(good | arguments))


def test_ks_may_be_an_array():
    assert set(retrieval_metrics(np.eye(4), [0, 1, 1, 0], ks=np.array([1, 3])).scores.recall) == {1, 3}


@pytest.mark.parametrize("num_threads", [2, 3, 8])
def test_threads_change_nothing(num_threads):
    """Fewer queries than threads in the last chunk included."""
    generator = np.random.default_rng(0)
    embeddings, labels = generator.normal(size=(52, 4)), generator.integers(0, 3, 52)
    expected = retrieval_metrics(embeddings, labels, chunk_size=10)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        found = retrieval_metrics(embeddings, labels, chunk_size=10)
    finally:
        torch.set_num_threads(before)
    for part in ("scores", "chance"):
        one, other = vars(found)[part], vars(expected)[part]
        np.testing.assert_array_equal(one.average_precision, other.average_precision)
        np.testing.assert_array_equal(one.r_precision, other.r_precision)
        np.testing.assert_array_equal(list(one.recall.values()), list(other.recall.values()))
    np.testing.assert_array_equal(found.num_candidates, expected.num_candidates)
