"""Queries with some values replaced or left out: with the model's prototypes, and with centroids where it has none."""

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from cca_hf.search import AttributeIndex, IndexSchema, LanceSettings, copy_index
from cca_hf.search.lance_store import LanceStore

from .conftest import ATTRIBUTES, CHECKPOINT, ENGINES, Catalogue, a_place

DIM = 16
RED, PURPLE, LOW = np.linalg.qr(np.random.default_rng(5).normal(size=(DIM, DIM)))[0][:3].astype(np.float32)
PROTOTYPES = {"colour": {"red": RED, "purple": PURPLE}, "heel height": {"1": LOW}}


@pytest.fixture(params=ENGINES, scope="module")
def known(request: pytest.FixtureRequest, few: Catalogue, tmp_path_factory) -> Iterator[AttributeIndex]:
    """The items of `few`, in the index of a model with prototypes of some values; to be read and not written."""
    schema = replace(few.schema, prototypes=PROTOTYPES)
    with (
        a_place(request.param, tmp_path_factory.mktemp("known"), "qdrant-local:known") as place,
        AttributeIndex.create_from_schema(place, schema) as index,
    ):
        index.add(few.item_ids, embeddings=few.embeddings, columns=few.columns)
        yield index


def ranked(catalogue: Catalogue, targets: dict[str, np.ndarray], weights: dict[str, float], leave_out: int | None):
    """Ids and similarities of the ten best items, by plain numpy."""
    total = sum(weights.values())
    similarity = sum(weight / total * catalogue.similarities(targets[name], name) for name, weight in weights.items())
    order = [row for row in np.argsort(-similarity) if row != leave_out][:10]
    return [catalogue.item_ids[row] for row in order], similarity[order]


def assert_found(hits, expected) -> None:
    ids, similarities = expected
    assert [hit.item_id for hit in hits] == ids
    np.testing.assert_allclose([hit.similarity for hit in hits], similarities, atol=1e-6)


def test_a_value_is_the_prototype_of_the_model(known, few):
    own = dict(zip(ATTRIBUTES, few.embeddings[3], strict=True))
    equal = dict.fromkeys(ATTRIBUTES, 1)
    assert_found(
        known.search(item=few.item_ids[3], values={"colour": "red"}), ranked(few, own | {"colour": RED}, equal, 3)
    )
    # a value that no item has, but the model; the name of a value as a number; several at once
    both = {"colour": PURPLE, "heel height": LOW}
    found = known.search(item=few.item_ids[3], values={"colour": "purple", "heel height": 1.0})
    assert_found(found, ranked(few, own | both, equal, 3))
    # a value that the model has no prototype of: the centroid of the items
    green = known.centroid("colour", "green")
    found = known.search(item=few.item_ids[3], values={"colour": "green"})
    assert_found(found, ranked(few, own | {"colour": green}, equal, 3))
    # the centroid stays the centroid
    rows = few.rows(lambda row: row["colour"] == "red")
    centre = few.embeddings[rows, 0].mean(axis=0)
    np.testing.assert_allclose(known.centroid("colour", "red"), centre / np.linalg.norm(centre), atol=1e-5)


def test_left_out_and_weighted(known, few):
    own = dict(zip(ATTRIBUTES, few.embeddings[3], strict=True))
    item = few.item_ids[3]
    found = known.search(item=item, values={"shape": None})
    assert_found(found, ranked(few, own, {"colour": 1, "heel height": 1}, 3))
    found = known.search(item=item, values={"colour": "red", "shape": None}, keep=0.5)
    assert_found(found, ranked(few, own | {"colour": RED}, {"colour": 1, "heel height": 0.5}, 3))
    found = known.search(item=item, values={"colour": "red"}, weights={"colour": 3, "shape": 2}, keep=0.25)
    assert_found(found, ranked(few, own | {"colour": RED}, {"colour": 3, "shape": 0.5}, 3))
    found = known.search(item=item, values={"colour": "red"}, keep=0)
    assert_found(found, ranked(few, {"colour": RED}, {"colour": 1}, 3))
    found = known.search(item=item, values={"shape": None}, weights={"colour": 1, "shape": 5})
    assert_found(found, ranked(few, own, {"colour": 1}, 3))


def test_a_changed_embedding_is_a_changed_item(known, few):
    """What `model.manipulate` returns: a block that is replaced, and a block of zeros that takes no part."""
    changed = few.embeddings[[3, 4]].copy()
    changed[0, 0], changed[0, 1], changed[1, 2] = RED, 0, 0
    together = known.search_many(embeddings=changed, weights=dict.fromkeys(ATTRIBUTES, 1), top=40)
    change = [{"colour": "red", "shape": None}, {"heel height": None}]
    for row, hits, values in zip((3, 4), together, change, strict=True):
        hits = [hit for hit in hits if hit.item_id != few.item_ids[row]]
        expected = known.search(item=few.item_ids[row], values=values, top=39)
        assert [hit.item_id for hit in hits] == [hit.item_id for hit in expected]
        similarities = [hit.similarity for hit in expected]
        np.testing.assert_allclose([hit.similarity for hit in hits], similarities, atol=1e-6)
    alone = np.zeros((3, DIM), np.float32)
    alone[2] = few.embeddings[3, 2]
    (found,) = known.search_many(embeddings=alone[None], weights=dict.fromkeys(ATTRIBUTES, 1))
    assert_found(found, ranked(few, {"heel height": alone[2]}, {"heel height": 1}, None))


def test_an_index_without_a_column_is_searched_by_value(location, few):
    schema = IndexSchema(ATTRIBUTES, DIM, {}, CHECKPOINT, PROTOTYPES)
    with AttributeIndex.create_from_schema(location, schema) as index:
        index.add(few.item_ids, embeddings=few.embeddings)
        found = index.search(values={"colour": "purple"})
        assert_found(found, ranked(few, {"colour": PURPLE}, {"colour": 1}, None))
        with pytest.raises(
            ValueError, match=r"knows no colour 'purpel' \(did you mean 'purple'\?\); .*: purple, red$"
        ):
            index.search(values={"colour": "purpel"})
        with pytest.raises(ValueError, match="the index has no column 'shape' with the items' labels"):
            index.search(values={"shape": "round"})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"values": {"colour": "purpel"}},
            r"knows no colour 'purpel' \(did you mean 'purple'\?\); there are: blue, green, it.s .odd., purple, red$",
        ),
        ({"values": {"colour": "gren"}}, r"no colour 'gren' \(did you mean 'green'\?\)"),
        ({"values": {"shape": "rond"}}, r"no item whose shape is 'rond' \(did you mean 'round'\?\)"),
        ({"values": {"colour": "red"}, "keep": -1}, "keep must be a number of at least 0; got -1"),
        ({"values": {"colour": "red"}, "keep": "half"}, "keep must be a number of at least 0; got 'half'"),
        ({"values": {"colour": None}, "keep": 0.5}, "keep is the weight of what stays of a query beside the values"),
        ({"attribute": "colour", "keep": 0.5}, "keep is the weight of what stays"),
        ({"item": None, "values": {"colour": "red"}, "keep": 0.5}, "keep is the weight of what stays"),
        (
            {"values": dict.fromkeys(ATTRIBUTES)},
            "leaves out colour, shape, heel height, and the search compares by noth",
        ),
        ({"attribute": "colour", "values": {"colour": None}}, "leaves out colour, and the search compares by nothing"),
        (
            {"item": None, "values": {"colour": None}},
            "only leaves out colour: give an image, an item, an embedding or",
        ),
        ({"values": {"color": None}}, r"no attribute 'color' \(did you mean 'colour'\?\)"),
        ({"item": None, "embedding": np.zeros((3, DIM)), "weights": {"colour": 1, "shape": 1}}, "finite and not zero"),
        (
            {
                "item": None,
                "embedding": np.zeros(DIM),
                "weights": {"colour": 1, "shape": 1},
                "values": {"shape": "flat"},
            },
            "finite and not zero",
        ),
    ],
)
def test_a_wrong_change_is_explained(known, asked, message):
    with pytest.raises(ValueError, match=message):
        known.search(**{"item": "item-00003", **asked})


def test_prototypes_stay_when_an_index_is_moved(location, few, tmp_path):
    AttributeIndex.create_from_schema(location, replace(few.schema, prototypes=PROTOTYPES)).close()
    target = str(tmp_path / "copy") if "qdrant" in location else f"qdrant-local:{tmp_path}/copies/shoes"
    assert copy_index(location, target, show_progress=False) == 0
    for place in (location, target):
        with AttributeIndex.open(place) as index:
            prototypes = index.schema.prototypes
            assert {name: list(vectors) for name, vectors in prototypes.items()} == {
                "colour": ["red", "purple"],
                "heel height": ["1"],
            }
            np.testing.assert_array_equal(prototypes["colour"]["purple"], PURPLE)


def test_an_index_of_version_01(tmp_path, few):
    """It has no prototypes in its description, and the centroids serve."""
    old = json.loads(few.schema.to_json())
    assert sorted(old) == ["attributes", "checkpoint", "columns", "dim", "format"]
    assert IndexSchema.from_json(json.dumps(old)) == few.schema
    with AttributeIndex.create_from_schema(tmp_path / "old", few.schema, settings=LanceSettings()) as index:
        index.add(few.item_ids, embeddings=few.embeddings, columns=few.columns)
        red = index.centroid("colour", "red")
        assert_found(index.search(values={"colour": "red"}), ranked(few, {"colour": red}, {"colour": 1}, None))


@pytest.mark.parametrize(
    ("prototypes", "message"),
    [
        ({"color": {"red": RED}}, r"no attribute 'color' \(did you mean 'colour'\?\)"),
        ({"colour": {"red": RED[:3]}}, r"the prototype of colour 'red' .* of 16 numbers; got the shape \(3,\)"),
        ({"colour": {"red": 2 * RED}}, r"vector of 16 numbers; got the shape \(16,\) and the length 2.000"),
    ],
)
def test_prototypes_that_cannot_be(prototypes, message):
    with pytest.raises(ValueError, match=message):
        IndexSchema(ATTRIBUTES, DIM, {}, CHECKPOINT, prototypes)


def test_contradictory_values_are_compared_with_all_items(tmp_path, monkeypatch):
    """Red items and round items, but none that is both: lists of the nearest items never suffice."""
    rng = np.random.default_rng(2)
    centres, groups = rng.normal(size=(2, 2, DIM)), np.repeat([0, 1], 700)
    vectors = np.stack([centres[groups, 0], centres[groups, 1]], axis=1) + 0.05 * rng.normal(size=(1400, 2, DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).astype(np.float32)
    schema = IndexSchema(("colour", "shape"), DIM, {"price": "number"}, CHECKPOINT)
    query = np.stack([vectors[0, 0], vectors[-1, 1]])
    prices = np.arange(1400.0)

    def expected(rows: np.ndarray) -> list[str]:
        similarity = np.einsum("iad,ad->i", vectors, query) / 2
        return [str(row) for row in sorted(rows, key=lambda row: -similarity[row])[:10]]

    with AttributeIndex.create_from_schema(tmp_path / "index", schema) as index:
        index.add(list(range(1400)), embeddings=vectors, columns={"price": prices})

        def found(**asked: object) -> list[str]:
            return [hit.item_id for hit in index.search(embedding=query, weights={"colour": 1, "shape": 1}, **asked)]

        assert found() == expected(np.arange(1400))
        with monkeypatch.context() as without_lists:  # the vectors are in memory now
            without_lists.setattr(LanceStore, "nearest", None)
            assert found() == expected(np.arange(1400))
            assert found(where="price >= 700") == expected(np.arange(700, 1400))
            assert found(where="price < 0") == []
        first = found()[:3]
        index.delete(first)
        assert found() == expected(np.setdiff1d(np.arange(1400), np.array(first, int)))
