"""Catalogues large enough for a graph: what it finds, in every form that it is stored in."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cca_hf.search import AttributeIndex, CheckpointId, IndexSchema, LanceSettings, lance_queries

MADE_BY = CheckpointId("me/cca-shoes", "5c" * 32)
SCHEMA = IndexSchema(("colour", "shape"), 32, {"price": "number"}, MADE_BY)
ITEMS = 3000
TOPS = (1, 24, 25, 67, 100, 101, 200, 1000, 3000, 2**63 - 1)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@contextlib.contextmanager
def an_index(folder: Path, items: np.ndarray, **settings: str) -> Iterator[AttributeIndex]:
    """Items with a graph; their price is their number."""
    where = folder / "index"
    with AttributeIndex.create_from_schema(
        where, SCHEMA, settings=LanceSettings(index_from=1000, **settings)
    ) as index:
        index.add(range(len(items)), embeddings=items, columns={"price": range(len(items))})
        index.optimize()
    assert list(where.rglob("auxiliary.idx")), "there is no graph"
    with AttributeIndex.open(where, MADE_BY) as index:  # it remembers how it was made
        yield index


RANDOM = unit(np.random.default_rng(0).normal(size=(ITEMS, 2, 32)))


@pytest.fixture(
    scope="module",
    params=[("exact", "float32"), ("exact", "float16"), ("8-bit", "float32"), ("8-bit", "float16")],
    ids="-".join,
)
def made(request, tmp_path_factory):
    graph, vectors = request.param
    with an_index(tmp_path_factory.mktemp("index"), RANDOM, graph=graph, vectors=vectors) as index:
        yield index, 1e-6 if vectors == "float32" else 1e-3


def test_finds_what_numpy_finds(made):
    index, most = made
    for where, allowed in [(None, np.arange(ITEMS)), ("price < 300", np.arange(300))]:
        recall, error = [], 0.0
        for query in RANDOM[:40, 1] + 0.1:
            exact = RANDOM[:, 1] @ (query / np.linalg.norm(query))
            hits = index.search(embedding=query, attribute="shape", top=10, where=where)
            best = allowed[np.argsort(-exact[allowed])[:10]]
            recall.append(len({int(hit.item_id) for hit in hits} & set(best.tolist())) / 10)
            error = max(error, *(abs(hit.similarity - exact[int(hit.item_id)]) for hit in hits))
        assert np.mean(recall) >= 0.98
        assert error < most


@pytest.mark.parametrize(
    ("where", "matching"), [(None, ITEMS), ("price < 2500", 2500), ("price < 900", 900), ("price < 20", 20)]
)
@pytest.mark.parametrize("kind", ["embedding", "embeddings", "item", "mixture"])
@pytest.mark.parametrize("made", [("exact", "float32"), ("8-bit", "float32")], indirect=True, ids="-".join)
def test_any_number_of_hits(made, kind, where, matching):
    """The limits of Lance follow from `top`: the effort of a search, and the memory that it reserves."""
    index, _ = made
    weights = np.array([0.5, 0.5]) if kind == "mixture" else np.array([1.0, 0.0])
    exact = (RANDOM @ RANDOM[7, 0] if kind != "mixture" else np.einsum("iad,ad->ia", RANDOM, RANDOM[7])) @ weights
    for top in TOPS if kind != "mixture" else (1, 25, 100, 1000, 2**63 - 1):
        searched = {"attribute": None if kind == "mixture" else "colour", "top": top, "where": where}
        if kind == "embeddings":
            hits, others, _ = index.search_many(embeddings=RANDOM[[7, 8, 9]], **searched)
            assert len(others) == len(hits)
        elif kind == "mixture":
            hits = index.search(embedding=RANDOM[7], weights={"colour": 1, "shape": 1}, **searched)
        else:
            hits = index.search(**{kind: 7 if kind == "item" else RANDOM[7]}, **searched)
        available = np.delete(np.arange(matching), 7) if kind == "item" else np.arange(matching)
        assert len(hits) == min(top, len(available))
        best = set(available[np.argsort(-exact[available])[:top]].tolist())
        assert len({int(hit.item_id) for hit in hits} & best) >= 0.9 * len(hits)
        similarities = [hit.similarity for hit in hits]
        assert similarities == sorted(similarities, reverse=True)


def equal_vectors(share: float) -> np.ndarray:
    """The first items are equal."""
    items = RANDOM.copy()
    items[: int(share * ITEMS)] = unit(np.random.default_rng(1).normal(size=32))
    return items


def clusters() -> np.ndarray:
    random = np.random.default_rng(2)
    centres = random.normal(size=(20, 1, 32))
    return unit(centres[random.integers(0, 20, ITEMS)] + 0.02 * random.normal(size=(ITEMS, 2, 32)))


MISLEADING = {"30% equal": equal_vectors(0.3), "99% equal": equal_vectors(0.99), "clusters": clusters()}


@pytest.fixture(scope="module")
def misleading(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of an index with these items, whose graph leads a search astray."""

    @functools.cache
    def make(items: str) -> Path:
        folder = tmp_path_factory.mktemp("misleading")
        with an_index(folder, MISLEADING[items]):
            return folder / "index"

    return make


@pytest.fixture
def small_effort(monkeypatch):
    """Shows with 3,000 items what the usual effort shows with more."""
    monkeypatch.setattr(lance_queries, "_SEARCH_EFFORT", 15)
    monkeypatch.setattr(lance_queries, "_FILTERED_EFFORT", 15)


def recall_of(folder: Path, items: np.ndarray, where: str | None, first: int, top: int) -> list[float]:
    """The recall of 80 queries; items before the first do not fulfil the filter."""
    queries = unit(np.random.default_rng(4).normal(size=(60, 32)))
    queries = np.concatenate([queries, unit(items[:20, 1] + 0.1 * queries[:20])])
    recall = []
    with AttributeIndex.open(folder, MADE_BY) as index:
        for query in queries:
            exact = items[:, 1] @ query
            hits = index.search(embedding=query, attribute="shape", top=top, where=where)
            assert len(hits) == top
            least = np.sort(exact[first:])[-top] - 2e-5  # the rounding of a distance, and of this product
            recall.append(float(np.mean([exact[int(hit.item_id)] >= least for hit in hits])))
    return recall


@pytest.mark.parametrize(
    ("items", "where", "first", "top"),
    [
        ("30% equal", "price >= 900", 900, 10),
        ("99% equal", None, 0, 10),
        ("99% equal", None, 0, 1),
        ("clusters", None, 0, 10),
        ("clusters", "price >= 600", 600, 10),
    ],
)
def test_no_nearer_row_of_the_sample_is_missing(misleading, small_effort, monkeypatch, items, where, first, top):
    """The threads that build a graph make another one each time, and what it finds varies: on average 41 to 96 % of
    the nearest items in these five cases. The comparison with the sample does not depend on the graph. If all rows are
    in the sample and none may be missing, every result is exact."""
    monkeypatch.setattr(lance_queries, "_SAMPLE", ITEMS)
    monkeypatch.setattr(lance_queries, "_MOST_MISSED", 0.0)
    assert recall_of(misleading(items), MISLEADING[items], where, first, top) == [1.0] * 80


@pytest.mark.parametrize(("where", "first"), [(None, 0), ("price >= 600", 600)])
def test_the_usual_sample_suffices_for_clusters(misleading, small_effort, where, first):
    """In 15 graphs, the mean was 0.991 to 0.998 and the minimum 0.9; without the sample, 0.77 to 0.85 and 0."""
    recall = recall_of(misleading("clusters"), MISLEADING["clusters"], where, first, 10)
    assert np.mean(recall) >= 0.95
    assert np.min(recall) >= 0.5


def test_wrong_settings():
    with pytest.raises(ValueError, match="graph must be 'exact' or '8-bit'; got 'int8'"):
        LanceSettings(graph="int8")
    with pytest.raises(ValueError, match="vectors must be 'float32' or 'float16'; got 'int8'"):
        LanceSettings(vectors="int8")
