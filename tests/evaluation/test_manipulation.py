"""Searches for changed images: figures against plain loops, scikit-learn and random rankings; what else changes."""

from itertools import permutations

import numpy as np
import pytest
import torch

from cca_hf.data.value_changes import Changes, enumerate_changes
from cca_hf.evaluation.change_search import ChangeSearch, value_centroids
from cca_hf.evaluation.manipulation import evaluate_manipulation
from cca_hf.evaluation.manipulation_result import ManipulationResult
from cca_hf.evaluation.retrieval.embeddings import Gallery

ATTRIBUTES = {"colour": ["blue", "green", "red"], "sleeve": ["long", "short"], "pattern": ["dots", "plain"]}
SIZES = np.array([len(values) for values in ATTRIBUTES.values()])


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def some_images(count=60, missing=0.0, seed=0, noise=0.6):
    """Embeddings (N, 3, 4) near a vector of their value, and labels (N, 3)."""
    random = np.random.default_rng(seed)
    labels = random.integers(SIZES, size=(count, 3))
    vectors = unit(np.random.default_rng(9).normal(size=(3, 3, 4)))
    embeddings = vectors[np.arange(3), labels] + noise * random.normal(size=(count, 3, 4))
    labels[random.random(labels.shape) < missing] = -1
    return unit(embeddings).astype(np.float32), labels


def evaluate(embeddings, labels, changes, **settings):
    centroids = value_centroids(embeddings, labels, ATTRIBUTES)
    return evaluate_manipulation(embeddings, labels, ATTRIBUTES, changes, *centroids[:2], **settings)


def ranking_of(embeddings, labels, changes, query, keep=1.0):
    """The candidates of one query, the nearest first, with their similarities."""
    centroids = value_centroids(embeddings, labels, ATTRIBUTES)
    changed, target = changes.changed[query], changes.target_labels[query]
    own = embeddings[changes.reference[query]]
    blocks = [centroids.vectors[place, target[place]] if changed[place] else keep * own[place] for place in range(3)]
    candidates = [row for row in range(len(labels)) if all(labels[row, a] >= 0 for a in range(3) if target[a] >= 0)]
    similarities = {row: float(sum(blocks[a] @ embeddings[row, a] for a in range(3))) for row in candidates}
    return sorted(candidates, key=lambda row: -similarities[row]), similarities


def shares(labels, changes, query, row):
    """The relevance of an image: by all labels, by the changed ones, and by the rest; None without a label."""
    target, changed = changes.target_labels[query], changes.changed[query]
    sets = [
        [a for a in range(3) if target[a] >= 0 and keep(changed[a])] for keep in (lambda _: True, bool, np.logical_not)
    ]
    return [np.mean([labels[row, a] == target[a] for a in places]) if places else None for places in sets]


@pytest.mark.parametrize(("missing", "keep"), [(0.0, 0.4), (0.15, 1.0)])
def test_figures_equal_those_of_loops_and_of_scikit_learn(missing, keep):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn computes the NDCG to compare with")
    embeddings, labels = some_images(missing=missing)
    changes = Changes.concatenate([enumerate_changes(labels, None, number, max_queries=10) for number in (1, 2, 3)])
    expected = {name: [] for name in ("top_1", "top_3", "top_10", "ndcg", "ndcg_target", "ndcg_others")}
    for query in range(len(changes)):
        ranking, similarities = ranking_of(embeddings, labels, changes, query, keep)
        relevance = {row: shares(labels, changes, query, row) for row in ranking}
        for k in (1, 3, 10):
            expected[f"top_{k}"].append(any(relevance[row][0] == 1 for row in ranking[:k]))
        for place, name in enumerate(("ndcg", "ndcg_target", "ndcg_others")):
            if relevance[ranking[0]][place] is not None:
                gains = [relevance[row][place] for row in ranking]
                scores = [similarities[row] for row in ranking]
                expected[name].append(metrics.ndcg_score([gains], [scores], k=30))
    result = evaluate(embeddings, labels, changes, keep=keep, k=(1, 3))
    assert list(result.overall.scores) == list(expected) and result.overall.queries == len(changes) == 30
    for name, figures in expected.items():
        assert result.overall.scores[name] == pytest.approx(np.mean(figures), abs=1e-9), name


def test_chance_is_the_mean_over_all_orders():
    labels = np.array([[0, 0, 0], [1, 0, 0], [1, 0, 0], [2, 0, 1], [0, 1, 0]])
    changes = enumerate_changes(labels).select([0])
    assert changes.target_labels.tolist() == [[0, 1, 0]] and changes.reference.tolist() == [0]
    discounts = 1 / np.log2(np.arange(2, 7))
    matches = [shares(labels, changes, 0, row) for row in range(5)]
    sums = {"ndcg": 0.0, "ndcg_target": 0.0, "ndcg_others": 0.0, "top_2": 0.0}
    orders = list(permutations(range(5)))
    for order in orders:
        for place, name in enumerate(("ndcg", "ndcg_target", "ndcg_others")):
            gains = np.array([matches[row][place] for row in order])
            sums[name] += gains @ discounts / (np.sort(gains)[::-1] @ discounts)
        sums["top_2"] += any(matches[row][0] == 1 for row in order[:2])
    chance = evaluate(some_images(5)[0], labels, changes, k=(2,)).overall.chance
    assert chance["top_10"] == 1  # there are only five images
    for name, total in sums.items():
        assert chance[name] == pytest.approx(total / len(orders), abs=1e-12), name


def test_random_embeddings_are_as_good_as_chance():
    random = np.random.default_rng(0)
    (labels, embeddings), (others, gallery) = (
        (random.integers(SIZES, size=(400, 3)), unit(random.normal(size=(400, 3, 8))).astype(np.float32)) for _ in "ab"
    )
    changes = enumerate_changes(labels, others, max_queries=1500)
    vectors = unit(random.normal(size=(3, 3, 8)))
    part = evaluate_manipulation(
        embeddings, labels, ATTRIBUTES, changes, vectors, np.ones((3, 3)), gallery=Gallery(gallery, others)
    ).overall
    for name in ("top_10", "ndcg", "ndcg_target", "ndcg_others"):
        assert part.scores[name] == pytest.approx(part.chance[name], abs=0.03), name


def test_separate_embeddings_find_every_change_and_change_nothing_else():
    embeddings, labels = some_images(200, noise=0.01)
    changes = Changes.concatenate([enumerate_changes(labels, num_changes=number) for number in (1, 2)])
    result = evaluate(embeddings, labels, changes)
    assert result.overall.scores["top_1"] == 1
    assert set(result.by_changes) == {1, 2} and list(result.by_attribute) == list(ATTRIBUTES)
    assert sum(part.queries for part in result.by_attribute.values()) == result.by_changes[1].queries
    assert result.leakage is not None and (result.leakage.shows_new > 0.9).all()
    off_diagonal = result.leakage.added[~np.eye(3, dtype=bool)]
    assert np.isnan(np.diag(result.leakage.added)).all() and abs(off_diagonal).max() < 0.02


def test_leakage_against_loops():
    embeddings, labels = some_images(50)
    embeddings[:, 0] = unit(embeddings[:, 0] + 1.5 * embeddings[:, 1])  # a change of colour changes the sleeve too
    changes = enumerate_changes(labels)
    expected, new = [], []
    for query in np.flatnonzero(changes.changed[:, 0]).tolist():
        row = changes.reference[query]
        before = sorted(range(50), key=lambda other: -sum(embeddings[other, a] @ embeddings[row, a] for a in range(3)))
        after = ranking_of(embeddings, labels, changes, query)[0]
        differ = [
            np.mean([labels[other, 1] != labels[row, 1] for other in [each for each in order if each != row][:10]])
            for order in (before, after)
        ]
        expected.append(differ[1] - differ[0])
        nearest = [each for each in after if each != row][:10]
        new.append(np.mean([labels[other, 0] == changes.target_labels[query, 0] for other in nearest]))
    leakage = evaluate(embeddings, labels, changes).leakage
    assert leakage is not None and leakage.attributes == tuple(ATTRIBUTES)
    assert leakage.added[0, 1] == pytest.approx(np.mean(expected), abs=1e-9) and leakage.added[0, 1] > 0.02
    assert leakage.shows_new[0] == pytest.approx(np.mean(new), abs=1e-9)


def test_one_embedding_of_all_attributes_is_moved_by_the_difference_of_centroids():
    embeddings, labels = some_images()
    together = unit(embeddings.reshape(60, 12))
    centroids = value_centroids(together, labels, ATTRIBUTES)
    changes = enumerate_changes(labels)
    row, new, old = changes.reference[0], changes.target_labels[0], labels[changes.reference[0]]
    place = int(changes.changed[0].argmax())
    moved = together[row] + centroids.vectors[place, new[place]] - centroids.vectors[place, old[place]]
    expected = np.argsort(-(together @ moved), kind="stable")[:5]
    search = ChangeSearch(together, labels, centroids)
    assert search.nearest(changes.select([0]), 5).tolist() == [expected.tolist()]
    assert evaluate(together, labels, changes).overall.scores["top_10"] > 0.8


def test_equal_similarities_are_in_the_order_of_the_gallery():
    labels = np.array([[0, 0, 0], [1, 0, 0]] * 10)
    embeddings = np.ones((20, 3, 4), dtype=np.float32) / 2
    embeddings[7] *= -1
    changes = enumerate_changes(labels)
    search = ChangeSearch(embeddings, labels, value_centroids(embeddings, labels, ATTRIBUTES))
    assert search.nearest(changes.select([0, 1]), 9).tolist() == [[0, 1, 2, 3, 4, 5, 6, 8, 9]] * 2
    assert search.nearest(changes.select([0]), 22).tolist() == [[*range(7), *range(8, 20), 7, -1, -1]]


def test_queries_against_a_gallery():
    embeddings, labels = some_images(40, noise=0.01)
    queries, gallery = slice(0, 10), slice(10, 40)
    changes = enumerate_changes(labels[queries], labels[gallery])
    centroids = value_centroids(embeddings[gallery], labels[gallery], ATTRIBUTES)
    apart = Gallery(torch.as_tensor(embeddings[gallery]), labels[gallery])
    result = evaluate_manipulation(
        embeddings[queries], labels[queries], ATTRIBUTES, changes, *centroids[:2], gallery=apart
    )
    assert result.images == 30 and result.overall.scores["top_1"] == 1


def test_the_result_survives_json_and_prints_its_tables(tmp_path):
    embeddings, labels = some_images(missing=0.1)
    changes = Changes.concatenate([enumerate_changes(labels, num_changes=number) for number in (1, 2)])
    result = evaluate(embeddings, labels, changes, values_from="centroids of the gallery")
    again = ManipulationResult.load_json(result.save_json(tmp_path / "manipulation.json"))
    assert again.table() == result.table() and again.metrics() == pytest.approx(result.metrics(), nan_ok=True)
    lines = result.table().splitlines()
    assert lines[0].split("  ")[0] == "% (chance)" and lines[0].endswith("NDCG target  NDCG others")
    assert [line.split("  ")[0] for line in lines[2:5]] == list(ATTRIBUTES)
    assert [line.split("  ")[0] for line in lines[6:9]] == ["one change", "two changes", "all queries"]
    assert lines[9].startswith(
        "Search among 60 images; centroids of the gallery; the attributes that stay have weight 1"
    )
    assert lines[11].split() == ["changed", "show", "new", "value,", "%", *ATTRIBUTES]
    metrics = result.metrics()
    assert metrics[result.primary_metric] == result.overall.scores["top_10"]
    assert metrics["ndcg_target_colour"] == result.by_attribute["colour"].scores["ndcg_target"]
    assert metrics["chance_top_10_2_changes"] == result.by_changes[2].chance["top_10"]
    assert "<table" in result._repr_html_() and "| colour |" in result.card().markdown


def test_bad_input():
    embeddings, labels = some_images()
    changes = enumerate_changes(labels)
    vectors, known, _ = value_centroids(embeddings, labels, ATTRIBUTES)
    known[0, 2] = False
    with pytest.raises(ValueError, match="'red' of 'colour' has no prototype, and no image of the gallery has it$"):
        evaluate_manipulation(embeddings, labels, ATTRIBUTES, changes, vectors, known)
    with pytest.raises(ValueError, match="there is no query: no image has the labels of another image but for"):
        evaluate(embeddings, labels, changes.select([]))
    red = Changes(np.array([0]), np.array([[True, False, False]]), np.array([[2, 0, 0]]))
    plain = np.zeros_like(labels)
    with pytest.raises(ValueError, match="1 of 1 changes have no image with exactly their target labels .* image 0$"):
        evaluate_manipulation(embeddings, plain, ATTRIBUTES, red, vectors, np.ones((3, 3)))
    with pytest.raises(ValueError, match="k must be an integer of at least 1, got 0"):
        evaluate(embeddings, labels, changes, k=(0,))
