"""A catalogue large enough for a graph: what it finds, in every form that it is stored in."""

import numpy as np
import pytest

from cca_hf.search import AttributeIndex, CheckpointId, IndexSchema, LanceSettings

MADE_BY = CheckpointId("me/cca-shoes", "5c" * 32)
SCHEMA = IndexSchema(("colour", "shape"), 32, {"price": "number"}, MADE_BY)


@pytest.mark.parametrize("vectors", ["float32", "float16"])
@pytest.mark.parametrize("graph", ["exact", "8-bit"])
def test_finds_what_numpy_finds(vectors, graph, tmp_path):
    rng = np.random.default_rng(0)
    items = rng.normal(size=(3000, 2, 32)).astype(np.float32)
    items /= np.linalg.norm(items, axis=2, keepdims=True)
    settings = LanceSettings(vectors=vectors, graph=graph, index_from=1000)
    with AttributeIndex.create_from_schema(tmp_path / "index", SCHEMA, settings=settings) as index:
        index.add(list(range(3000)), embeddings=items, columns={"price": list(range(3000))})
        index.optimize()
    kinds = {path.name for path in (tmp_path / "index").rglob("auxiliary.idx")}
    assert kinds, "there is no graph"
    with AttributeIndex.open(tmp_path / "index", MADE_BY) as index:  # it remembers how it was made
        for where, allowed in [(None, np.arange(3000)), ("price < 300", np.arange(300))]:
            recall, error = [], 0.0
            for query in items[:40, 1] + 0.1:
                exact = items[:, 1] @ (query / np.linalg.norm(query))
                hits = index.search(embedding=query, attribute="shape", top=10, where=where)
                best = allowed[np.argsort(-exact[allowed])[:10]]
                recall.append(len({int(hit.item_id) for hit in hits} & set(best.tolist())) / 10)
                error = max(error, *(abs(hit.similarity - exact[int(hit.item_id)]) for hit in hits))
            assert np.mean(recall) >= 0.98
            assert error < (1e-6 if vectors == "float32" else 1e-3)


def test_wrong_settings():
    with pytest.raises(ValueError, match="graph must be 'exact' or '8-bit'; got 'int8'"):
        LanceSettings(graph="int8")
    with pytest.raises(ValueError, match="vectors must be 'float32' or 'float16'; got 'int8'"):
        LanceSettings(vectors="int8")
