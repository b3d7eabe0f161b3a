"""Re-identification against a plain loop over torchreid's formulae, and the queries and galleries of a split."""

import numpy as np
import pytest
from PIL import Image

from cca_hf.data.reidentification import SearchImages, load_reidentification
from cca_hf.evaluation.reidentification import Sightings, evaluate_reidentification, score_search
from cca_hf.evaluation.reidentification_result import ReidentificationResult
from cca_hf.evaluation.results import load_result, save_result


def by_loop(queries, gallery, ks=(1, 5, 10)):
    """`eval_market1501` of torchreid, and mINP of fast-reid; `parts` restrict the gallery."""
    precisions, penalties, hits = [], [], {k: [] for k in ks}
    for vector, identity, camera, part in zip(*queries, strict=True):
        similarities = gallery[0] @ vector
        order = np.argsort(-similarities, kind="stable")
        kept = [
            i
            for i in order
            if not (gallery[1][i] == identity and gallery[2][i] == camera)
            and gallery[1][i] >= 0
            and gallery[3][i] == part
        ]
        matches = [gallery[1][i] == identity for i in kept]
        if not any(matches):
            continue
        places = [place for place, match in enumerate(matches, start=1) if match]
        precisions.append(sum(number / place for number, place in enumerate(places, start=1)) / len(places))
        penalties.append(len(places) / places[-1])
        for k in ks:
            hits[k].append(places[0] <= k)
    figures = {"map": np.mean(precisions), "minp": np.mean(penalties)}
    return {**figures, **{f"cmc@{k}": np.mean(hits[k]) for k in ks}}, len(precisions)


def random_side(random, count, identities, cameras):
    """Unit vectors, ids and parts; identities are nearer to themselves, and a few are unknown."""
    ids = random.integers(-1, identities, count)
    centres = np.random.default_rng(7).normal(size=(identities + 1, 6))
    vectors = centres[ids] + 1.5 * random.normal(size=(count, 6))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return vectors, ids, random.integers(0, cameras, count), random.integers(0, 2, count)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("in_parts", [False, True])
def test_it_equals_a_loop_over_the_published_formulae(seed: int, in_parts: bool) -> None:
    random = np.random.default_rng(seed)
    queries, gallery = random_side(random, 60, 25, 3), random_side(random, 150, 30, 3)
    queries = tuple(array[queries[1] >= 0] for array in queries)
    if not in_parts:
        queries, gallery = ((*side[:3], np.zeros(len(side[0]), int)) for side in (queries, gallery))
    expected, count = by_loop(queries, gallery)
    result = evaluate_reidentification(Sightings(*queries), Sightings(*gallery))
    assert result.figures == pytest.approx(expected, abs=1e-9)
    assert result.queries == count and result.queries + result.left_out == len(queries[0])
    assert result.left_out > 0


def test_counts_and_chance() -> None:
    """Two queries of one identity; one of another that only its own camera has seen."""
    queries = Sightings(np.eye(3, 4), [0, 0, 1], [0, 1, 0])
    gallery = Sightings(np.ones((6, 4)), [0, 0, 1, 2, 3, -1], [0, 1, 0, 0, 0, 0])
    result = evaluate_reidentification(queries, gallery, ks=(1, 2))
    assert (result.queries, result.left_out, result.identities) == (2, 1, 1)
    assert (result.gallery, result.distractors) == (5, 3)
    # one of 4 candidates is right, and all are equally similar
    expected = {"map": np.mean([1, 1 / 2, 1 / 3, 1 / 4]), "cmc@1": 1 / 4, "cmc@2": 1 / 2}
    expected["minp"] = expected["map"]
    assert result.figures == pytest.approx(expected) and result.chance == pytest.approx(expected)
    assert result.interval is None
    assert "1 queries have no match in another camera" in result.table()


def test_the_expected_penalty_of_ties() -> None:
    """Two right ones among four equal candidates behind a better one: the last is number 2, 3 or 4 of them."""
    queries = Sightings([[1.0, 0.0]], [0], [0])
    gallery = Sightings([[2.0, 0.0]] + [[1.0, 1.0]] * 4, [1, 0, 0, 2, 3], [1] * 5)
    orders = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    result = evaluate_reidentification(queries, gallery)
    assert result.figures["minp"] == pytest.approx(np.mean([2 / (2 + max(pair)) for pair in orders]))


def test_no_query_has_a_match() -> None:
    queries, gallery = Sightings(np.eye(2), [0, 1], [0, 0]), Sightings(np.eye(2), [0, 2], [0, 1])
    with pytest.raises(ValueError, match="none of the 2 queries of the split 'test' has a match by another camera"):
        evaluate_reidentification(queries, gallery)
    with pytest.raises(ValueError, match="gallery cameras must have shape"):
        evaluate_reidentification(queries, gallery._replace(cameras=[0]))


def test_a_result_is_saved_whole(tmp_path) -> None:
    random = np.random.default_rng(0)
    sides = [Sightings(*random_side(random, 60, 9, 3)[:3]) for _ in range(2)]
    result = evaluate_reidentification(*sides)
    assert load_result(save_result(result, tmp_path / "result.json"), ReidentificationResult) == result
    low, high = result.interval
    assert low < result.figures["map"] < high
    assert result.card().metrics[0] == ("map", "mAP", round(100 * result.figures["map"], 2))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [Image.new("RGB", (8, 16), (10 * number, 0, 0)) for number in range(12)]


def make_splits(images, **columns):
    from datasets import Dataset, DatasetDict

    count = len(columns["person"])
    test = Dataset.from_dict({"image": images[:count], **columns})
    train = Dataset.from_dict(
        {"image": images[:4], **{name: values[:4] for name, values in columns.items()}}
        | {"person": ["x", "x", "y", "y"]}
    )
    return DatasetDict({"train": train, "validation": test, "test": test})


def test_the_first_camera_asks(images) -> None:
    """cam2 is before cam10; c has one camera, and d has no known one."""
    columns = {
        "person": ["a", "a", "a", "b", "b", "c", "d", None],
        "camera": ["cam10", "cam2", "cam2", "1", "3", "1", None, "1"],
    }
    data = load_reidentification(make_splits(images, **columns), "person", "camera")
    search = data.search("valid")
    assert search.split == "validation"
    assert search.rows["validation"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert search.is_query.tolist() == [False, True, True, True, False, False, False]
    assert search.cameras[-1] == -1 and len(set(search.identities.tolist())) == 4


def test_roles_and_parts(images) -> None:
    """An image without a role is not used, and neither are images of a part without a query."""
    columns = {
        "person": ["a", "a", "b", "b", "c", "c"],
        "camera": [1, 2, 1, 2, 1, 2],
        "role": ["query", "gallery", "gallery", None, "gallery", "gallery"],
        "place": ["p", "p", "p", "p", "q", "q"],
    }
    splits = make_splits(images, **columns)
    data = load_reidentification(splits, "person", "camera", role_column="role", within_column="place")
    search = data.search("test")
    assert search.rows["test"].tolist() == [0, 1, 2] and search.is_query.tolist() == [True, False, False]
    found = SearchImages(data, "test")
    assert len(found) == 3 and found[2]["image"][0, 0, 0] == 20
    result = score_search(found, np.array([[1, 0], [1, 0.1], [0, 1]], np.float32))
    assert (result.queries, result.gallery, result.distractors) == (1, 2, 1) and result.figures["map"] == 1
    splits["test"] = splits["test"].remove_columns("role").add_column("role", ["asks"] + ["gallery"] * 5)
    data = load_reidentification(splits, "person", "camera", role_column="role")
    with pytest.raises(ValueError, match="'role' are query and gallery; the split 'test' has 'asks'"):
        data.search("test")


def test_query_and_gallery_are_splits(images) -> None:
    splits = make_splits(images, person=["a", "a", "b", "b"], camera=[1, 2, 1, 2])
    test = splits.pop("test")
    splits |= {"test_query": test.select([0, 2]), "test_gallery": test.select([1, 3])}
    search = load_reidentification(splits, "person", "camera").search("test")
    assert search.is_query.tolist() == [True, True, False, False]
    assert {name: rows.tolist() for name, rows in search.rows.items()} == {
        "test_query": [0, 1],
        "test_gallery": [0, 1],
    }


def test_columns_and_splits_that_do_not_fit(images) -> None:
    splits = make_splits(images, person=["a", "a", "b", "b"], camera=[1, 1, 2, 2])
    with pytest.raises(ValueError, match=r"no camera column 'cameras' \(did you mean 'camera'\?\)"):
        load_reidentification(splits, "person", "cameras")
    with pytest.raises(ValueError, match=r"no identity column 'persons' \(did you mean 'person'\?\)"):
        load_reidentification(splits, "persons", "camera")
    data = load_reidentification(splits, "person", "camera")
    with pytest.raises(ValueError, match="no identity of the split 'test' was taken by two cameras"):
        data.search("test")
    with pytest.raises(KeyError, match="no split 'tests'"):
        data.search("tests")
