"""Catalogues large enough for a graph: what it finds, in every form that it is stored in."""

import contextlib
from collections.abc import Iterator
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


@pytest.mark.parametrize(
    ("items", "where", "first", "top"),
    [
        (equal_vectors(0.3), "price >= 900", 900, 10),
        (equal_vectors(0.99), None, 0, 10),
        (equal_vectors(0.99), None, 0, 1),
        (clusters(), None, 0, 10),
        (clusters(), "price >= 600", 600, 10),
    ],
    ids=["30% equal, filtered", "99% equal", "99% equal, one hit", "clusters", "clusters, filtered"],
)
def test_equal_vectors_and_clusters_do_not_hide_nearer_items(items, where, first, top, tmp_path, monkeypatch):
    """A small effort shows with 3,000 items what the usual effort shows with more."""
    monkeypatch.setattr(lance_queries, "_SEARCH_EFFORT", 15)
    monkeypatch.setattr(lance_queries, "_FILTERED_EFFORT", 15)
    with an_index(tmp_path, items) as index:
        queries = unit(np.random.default_rng(4).normal(size=(60, 32)))
        queries = np.concatenate([queries, unit(items[:20, 1] + 0.1 * queries[:20])])
        recall = []
        for query in queries:
            exact = items[:, 1] @ query
            hits = index.search(embedding=query, attribute="shape", top=top, where=where)
            least = np.sort(exact[first:])[-top]
            recall.append(np.mean([exact[int(hit.item_id)] >= least - 1e-5 for hit in hits]))
            assert len(hits) == top
    assert np.mean(recall) >= 0.97
    assert np.min(recall) >= 0.5 * (top > 1)


def test_wrong_settings():
    with pytest.raises(ValueError, match="graph must be 'exact' or '8-bit'; got 'int8'"):
        LanceSettings(graph="int8")
    with pytest.raises(ValueError, match="vectors must be 'float32' or 'float16'; got 'int8'"):
        LanceSettings(vectors="int8")
