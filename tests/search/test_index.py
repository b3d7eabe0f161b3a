"""One file for both engines: the same calls on the same data, against plain numpy and plain Python."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from cca_hf.search import AttributeIndex, CheckpointId, IndexSchema, NoIndexError, QdrantSettings, column
from cca_hf.search.conditions import Condition

from .conftest import ATTRIBUTES, CHECKPOINT, COLUMNS, make_catalogue

CONDITIONS = [
    ("price < 50", lambda row: row["price"] is not None and row["price"] < 50),
    ("10 <= price <= 20.5", lambda row: row["price"] is not None and 10 <= row["price"] <= 20.5),
    ("not price > 50", lambda row: row["price"] is None or not row["price"] > 50),
    ("colour == 'red'", lambda row: row["colour"] == "red"),
    ("colour = 'red' and 10 <= price", lambda row: row["colour"] == "red" and (row["price"] or 0) >= 10),
    ("colour != 'red'", lambda row: row["colour"] != "red"),
    ("colour in ('red', 'it\\'s \"odd\"')", lambda row: row["colour"] in ("red", 'it\'s "odd"')),
    ("colour not in ('red', 'blue')", lambda row: row["colour"] not in ("red", "blue")),
    ("colour in ()", lambda row: False),
    ("colour not in ()", lambda row: True),
    ("colour is None", lambda row: row["colour"] is None),
    ("price is not None", lambda row: row["price"] is not None),
    ("year in (2011, 2012.0, 2013.5)", lambda row: row["year"] in (2011, 2012)),
    ("year > 2014.5 and year <= 2017", lambda row: row["year"] is not None and 2014.5 < row["year"] <= 2017),
    ("year == 2011", lambda row: row["year"] == 2011),
    ("price in (1.5, 2)", lambda row: row["price"] in (1.5, 2)),
    ("in_stock", lambda row: row["in_stock"] is True),
    ("not in_stock", lambda row: row["in_stock"] is not True),
    ("in_stock == False", lambda row: row["in_stock"] is False),
    ("in_stock in (True, False)", lambda row: row["in_stock"] is not None),
    (column("heel height") == "low", lambda row: row["heel height"] == "low"),
    (
        "not (colour == 'red' or year < 2015) and (in_stock or price < 30)",
        lambda row: (
            not (row["colour"] == "red" or (row["year"] is not None and row["year"] < 2015))
            and (row["in_stock"] is True or (row["price"] is not None and row["price"] < 30))
        ),
    ),
    (
        ~((column("price") < 50) & ~column("colour").is_in(["red", "blue"])) | (column("shape") == None),  # noqa: E711
        lambda row: (
            not ((row["price"] is not None and row["price"] < 50) and row["colour"] not in ("red", "blue"))
            or row["shape"] is None
        ),
    ),
]


@pytest.mark.parametrize(("where", "expected"), CONDITIONS, ids=[str(where) for where, _ in CONDITIONS])
def test_filters_are_those_of_python(index, catalogue, where, expected):
    """On counting and on searching, missing values included."""
    rows = catalogue.rows(expected)
    assert index.count(where) == rows.sum()
    query = catalogue.embeddings[7, 0]
    found = index.search(embedding=query, attribute="colour", where=where, top=15)
    similarity = np.where(rows, catalogue.similarities(query, "colour"), -np.inf)
    nearest = np.argsort(-similarity)[: min(15, rows.sum())]
    assert [hit.item_id for hit in found] == [catalogue.item_ids[row] for row in nearest]


def assert_same(hits, others):
    """But for the last bit of the similarities."""
    assert [(hit.item_id, hit.columns) for hit in hits] == [(other.item_id, other.columns) for other in others]
    assert [hit.similarity for hit in hits] == pytest.approx([other.similarity for other in others], abs=1e-5)


def test_search_returns_the_nearest_with_their_columns(index, catalogue):
    query = catalogue.embeddings[3] * 7  # length is no matter
    for attribute in ATTRIBUTES:
        found = index.search(embedding=query, attribute=attribute, top=20)
        similarity = catalogue.similarities(query[ATTRIBUTES.index(attribute)], attribute)
        nearest = np.argsort(-similarity)[:20]
        assert [hit.item_id for hit in found] == [catalogue.item_ids[row] for row in nearest]
        np.testing.assert_allclose([hit.similarity for hit in found], similarity[nearest], atol=1e-5)
        for hit, row in zip(found, nearest, strict=True):
            assert hit.columns == {name: values[row] for name, values in catalogue.columns.items()}


def test_an_item_finds_others_but_not_itself(index, catalogue):
    found = index.search(item="item-00003", attribute="shape", top=400)
    assert len(found) == 399 and "item-00003" not in {hit.item_id for hit in found}
    by_vector = index.search(embedding=catalogue.embeddings[3], attribute="shape", top=6)
    assert [hit.item_id for hit in found[:5]] == [hit.item_id for hit in by_vector[1:]]


def test_many_queries_are_the_single_ones(index, catalogue):
    asked = {"attribute": "colour", "top": 4, "where": "price < 50"}
    together = index.search_many(embeddings=catalogue.embeddings[:70], **asked)
    for query, hits in zip(catalogue.embeddings[:70], together, strict=True):
        assert_same(hits, index.search(embedding=query, **asked))
    items, weights = catalogue.item_ids[:3], {"colour": 1, "shape": 2}
    for item, hits in zip(items, index.search_many(items=items, weights=weights, top=4), strict=True):
        assert_same(hits, index.search(item=item, weights=weights, top=4))


@pytest.mark.parametrize("weights", [{"colour": 1, "shape": 1}, {"colour": 3, "shape": 1, "heel height": 0.5}])
@pytest.mark.parametrize(
    "where", [None, "price < 50 and colour != 'green'", "year == 2011 and in_stock", "year == 1900"]
)
def test_a_mixture_is_the_weighted_mean(index, catalogue, weights, where):
    expected = dict(CONDITIONS)
    rows = {
        None: np.ones(400, dtype=bool),
        "price < 50 and colour != 'green'": catalogue.rows(
            lambda row: expected["price < 50"](row) and row["colour"] != "green"
        ),
        "year == 2011 and in_stock": catalogue.rows(lambda row: row["year"] == 2011 and row["in_stock"] is True),
        "year == 1900": np.zeros(400, dtype=bool),
    }[where]
    query = catalogue.embeddings[11]
    total = sum(weights.values())
    similarity = sum(
        weight / total * catalogue.similarities(query[ATTRIBUTES.index(name)], name)
        for name, weight in weights.items()
    )
    nearest = np.argsort(-np.where(rows, similarity, -np.inf))[: min(10, rows.sum())]
    found = index.search(embedding=query, weights=weights, where=where)
    assert [hit.item_id for hit in found] == [catalogue.item_ids[row] for row in nearest]
    np.testing.assert_allclose([hit.similarity for hit in found], similarity[nearest], atol=1e-5)
    for hit, row in zip(found, nearest, strict=True):
        assert hit.columns == {name: values[row] for name, values in catalogue.columns.items()}


def test_a_value_is_a_query(index, catalogue):
    """A value alone finds its items; in place of one attribute of a picture it leaves the others alone."""
    red = catalogue.rows(lambda row: row["colour"] == "red")
    centre = catalogue.embeddings[red, 0].mean(axis=0)
    np.testing.assert_allclose(index.centroid("colour", "red"), centre / np.linalg.norm(centre), atol=1e-5)
    found = index.search(values={"colour": "red"}, top=10)
    assert [hit.item_id for hit in found] == [
        catalogue.item_ids[row] for row in np.argsort(-catalogue.similarities(centre, "colour"))[:10]
    ]
    query, weights = catalogue.embeddings[5], {"colour": 2, "shape": 1}
    similarity = (2 * catalogue.similarities(centre, "colour") + catalogue.similarities(query[1], "shape")) / 3
    found = index.search(embedding=query, values={"colour": "red"}, weights=weights, top=10)
    assert [hit.item_id for hit in found] == [catalogue.item_ids[row] for row in np.argsort(-similarity)[:10]]
    both = index.search(values={"colour": "red", "shape": "round"}, top=10)
    assert {hit.columns["colour"] for hit in both} <= {"red", None}
    assert {hit.columns["shape"] for hit in both} <= {"round", None}
    everything = index.search(item="item-00005", values={"colour": "red"}, top=3)
    equally = index.search(item="item-00005", values={"colour": "red"}, weights=dict.fromkeys(ATTRIBUTES, 1), top=3)
    assert everything == equally


@pytest.mark.parametrize(
    ("kind", "stored", "name"),
    [
        ("number", [38.0, 9.5, None, 38.0], "38"),
        ("number", [9.5, 38.0, 38.0, 9.5], "9.5"),
        ("integer", [38, 9, None, 38], "38"),
        ("integer", [-1, 9, 38, 9], "9"),
        ("boolean", [True, False, None, True], "true"),
        ("boolean", [True, False, False, True], "TRUE"),
        ("text", ["038", "38", None, "038"], "038"),
    ],
)
def test_a_value_is_called_as_in_the_model(kind, stored, name, location):
    """A column of numbers or booleans knows the values of its attribute by their names, "38" for 38.0."""
    schema = IndexSchema(("size",), 4, {"size": kind}, CHECKPOINT)
    rows = np.eye(4, dtype=np.float32)[:, None]
    value = {"38": 38, "9": 9, "9.5": 9.5, "true": True, "TRUE": True}.get(name, name)
    wanted = [row for row, cell in enumerate(stored) if cell == value]
    assert len(wanted) == 2
    with AttributeIndex.create_from_schema(location, schema) as index:
        index.add(list("abcd"), embeddings=rows, columns={"size": stored})
        expected = rows[wanted, 0].sum(axis=0) / np.sqrt(2)
        np.testing.assert_allclose(index.centroid("size", name), expected, atol=1e-6)
        np.testing.assert_allclose(index.centroid("size", value), expected, atol=1e-6)
        assert {hit.item_id for hit in index.search(values={"size": name}, top=2)} == {"abcd"[row] for row in wanted}
        with pytest.raises(ValueError, match="'other'"):
            index.centroid("size", "other")


def test_adding_again_changes_nothing_and_over_it_changes_that(small_index, few):
    index = small_index
    before = index.search(embedding=few.embeddings[0], attribute="colour", top=30)
    index.add(few.item_ids[:9], embeddings=few.embeddings[:9], columns={
        name: values[:9] for name, values in few.columns.items()
    })  # fmt: skip
    assert index.count() == 40
    assert_same(index.search(embedding=few.embeddings[0], attribute="colour", top=30), before)
    index.add(["item-00000", 7], embeddings=-few.embeddings[:2], columns={"price": [np.float32(1.5), float("nan")]})
    assert index.count() == 41 and index.count("price == 1.5") == 1
    (hit,) = index.search(embedding=-few.embeddings[0], attribute="colour", top=1)
    assert hit.item_id == "item-00000" and hit.columns == {**dict.fromkeys(COLUMNS), "price": 1.5}
    assert index.search(item=7, attribute="shape", top=1)[0].item_id != "7"


def test_delete(small_index, few):
    small_index.delete(["item-00003", "item-00004", "nothing"])
    assert small_index.count() == 38
    small_index.delete(where="price < 50")
    left = few.rows(lambda row: row["price"] is None or row["price"] >= 50)
    left[[3, 4]] = False
    assert small_index.count() == left.sum()
    found = {hit.item_id for hit in small_index.search(embedding=few.embeddings[3], attribute="colour", top=40)}
    assert found == {few.item_ids[row] for row in np.flatnonzero(left)}


def test_what_is_closed_opens_again(location, few):
    with AttributeIndex.create_from_schema(location, few.schema) as index:
        index.add(few.item_ids, embeddings=few.embeddings, columns=few.columns)
        index.optimize()
        before = index.search(item="item-00001", attribute="shape", top=5)
    with AttributeIndex.open(location) as index:
        assert index.schema == few.schema
        assert index.count() == 40
        assert_same(index.search(item="item-00001", attribute="shape", top=5), before)


def test_both_engines_find_the_same(tmp_path, catalogue):
    found = []
    for location in (tmp_path / "lance", "qdrant-local:shoes"):
        with AttributeIndex.create_from_schema(location, catalogue.schema) as index:
            index.add(catalogue.item_ids, embeddings=catalogue.embeddings, columns=catalogue.columns)
            found.append(
                [
                    index.search_many(items=catalogue.item_ids[:50], attribute="heel height", where="price < 70"),
                    index.search_many(items=catalogue.item_ids[:10], weights={"colour": 1, "shape": 0.2}),
                ]
            )
    for first, second in zip(*found, strict=True):
        for hits, others in zip(first, second, strict=True):
            assert_same(hits, others)


def nested(levels: int) -> Condition:
    """Levels of `or` and `and` in turn; in_stock decides."""
    condition = column("in_stock") == True  # noqa: E712
    for level in range(levels):
        other = column("price") == -1
        condition = condition | other if level % 2 else ~other & condition
    return condition


def test_filters_of_40_levels_and_a_thousand_parts(small_index, few):
    """On few items: the imitation of a Qdrant server compares each of them with each part."""
    index = small_index
    in_stock = few.rows(lambda row: row["in_stock"] is True).sum()
    assert index.count(nested(39)) == in_stock
    assert index.count(~nested(38)) == 40 - in_stock
    chain = column("price") == -1
    for number in range(1000, 2200):
        chain = chain | (column("year") == number)
    years = few.rows(lambda row: row["year"] is not None).sum()
    assert index.count(chain) == years
    assert index.count("year >= -9223372036854775808 and year <= 9223372036854775807") == years


def test_no_queries_have_no_results(index):
    for queries in (
        {"embeddings": []},
        {"embeddings": np.empty((0, 3, 16))},
        {"items": []},
        {"images": []},
        {"items": [], "values": {"colour": "red"}},
    ):
        assert index.search_many(**queries, attribute="colour") == []
        assert index.search_many(**queries, weights={"colour": 1, "shape": 2}) == []
    with pytest.raises(ValueError, match="no attribute 'color'"):
        index.search_many(items=[], attribute="color")
    assert index.get([]) == []


QUERY = {"embedding": np.ones((3, 16)), "attribute": "colour"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"attribute": "color"}, r"the index has no attribute 'color' \(did you mean 'colour'\?\)"),
        ({"attribute": None, "weights": {"colour": 1, "form": 1}}, "no attribute 'form'"),
        ({"weights": {"colour": 1}}, "either attribute or weights"),
        ({"attribute": None}, "give an attribute, or weights"),
        ({"attribute": None, "weights": {"colour": -1, "shape": 2}}, "weights must be numbers of at least 0"),
        ({"attribute": None, "weights": {"colour": 0}}, "one must be above 0"),
        ({"item": "item-00001"}, "a query is an image, an embedding, an item or values; got embeddings, items"),
        ({"embedding": None}, "got none"),
        ({"embedding": None, "item": "item-x"}, "the index has no item 'item-x'"),
        ({"embedding": np.ones(15)}, "must have shape|dimensions"),
        ({"embedding": np.ones((2, 16))}, r"must have shape \(3, 16\), or \(16,\) for one attribute; got \(2, 16\)"),
        ({"embedding": np.zeros((3, 16))}, "finite and not zero"),
        ({"embedding": np.full((3, 16), np.nan)}, "finite and not zero"),
        ({"embedding": None, "image": "query.jpg"}, "cannot be loaded; open the index with its model.*me/cca-shoes"),
        ({"embedding": None, "image": np.ones((3, 16))}, r"an array of shape \(3, 16\) is an embedding, not an image"),
        ({"top": 0}, "top must be an integer of at least 1; got 0"),
        ({"top": 3, "top_k": 3}, "top and top_k mean the same, give one of them; got 3 and 3"),
        ({"where": "prise < 3"}, r"no column 'prise' \(did you mean 'price'\?\)"),
        ({"where": "price < 'x'"}, "the column 'price' contains numbers; got 'x'"),
        ({"where": "colour < 'x'"}, "< compares numbers, but 'colour' contains text"),
        ({"where": "price <"}, "cannot parse the filter"),
        ({"where": column("colour") == 3}, "the column 'colour' contains text; got 3"),
        ({"attribute": []}, r"attribute must be one name; got \[\]"),
        ({"attribute": ["colour"]}, "For several attributes use weights"),
        ({"attribute": None, "weights": ["colour"]}, "weights must be a dict"),
        ({"attribute": None, "weights": {"colour": "1"}}, "weights must be numbers"),
        ({"attribute": None, "weights": {"colour": None}}, "weights must be numbers"),
        ({"attribute": None, "weights": {3: 1}}, "the index has no attribute '3'"),
        ({"attribute": None, "values": ["red"]}, "values must be a dict"),
        ({"values": {"colour": []}}, r"the column 'colour' contains text; got \[\]"),
        ({"top": 2.5}, "top must be an integer of at least 1; got 2.5"),
        ({"top": "3"}, "top must be an integer of at least 1; got '3'"),
        ({"top": 2**63}, "top must be an integer"),
        ({"where": "price < 1" + "0" * 400}, "the number at character 9 is outside the range of 64-bit floats"),
        ({"where": " year == 0x" + "f" * 5000}, "the number at character 10 is outside the range of 64-bit floats"),
        ({"where": "price in (2, -1e999)"}, "the number at character 14 is outside the range of 64-bit floats"),
        ({"where": "not " * 3000 + "in_stock"}, "nested too deep: at most 40 levels"),
        ({"where": "-" * 3000 + "1 < price"}, "nested too deep: at most 40 levels"),
        ({"where": "(" * 3000 + "in_stock" + ")" * 3000}, "cannot parse the filter|nested too deep"),
        ({"where": nested(41)}, "nested too deep: at most 40 levels"),
        ({"where": nested(3000)}, "nested too deep: at most 40 levels"),
        ({"where": "colour == '\ud800'"}, "a character that is not Unicode"),
        ({"values": {"shape": "round"}}, "values contains shape, but the weight of this attribute is 0 or missing"),
        ({"values": {"colour": "rd"}}, r"no item whose colour is 'rd' \(did you mean 'red'\?\)"),
        ({"embedding": None, "attribute": None, "values": {"colour": "red"}, "weights": {"shape": 1, "colour": 1}},
         "the query says nothing about shape"),
    ],
)  # fmt: skip
def test_a_wrong_query_is_explained(index, asked, message):
    with pytest.raises(ValueError, match=message):
        index.search(**{**QUERY, **asked})


@pytest.mark.parametrize(
    ("item_ids", "given", "message"),
    [
        (["a", "a"], {}, "the item id 'a' is given twice"),
        (["a", ""], {}, "a non-empty string or an integer"),
        (["a", None], {}, "got None"),
        (["a"], {}, r"shape \(items, attributes, dim\) = \(1, 3, 16\).*got \(2, 3, 16\)"),
        (["a", "b"], {"embeddings": np.ones((2, 3, 8))}, r"got \(2, 3, 8\)"),
        (
            ["a", "b"],
            {"embeddings": np.zeros((2, 3, 16))},
            "the embedding of 'a' for 'colour' is zero or not finite, as are 5 others",
        ),
        (["a", "b"], {"embeddings": None}, "either images or embeddings"),
        (["a", "b"], {"columns": {"prize": [1, 2]}}, r"no column 'prize' \(did you mean 'price'\?\)"),
        (["a", "b"], {"columns": {"price": [1]}}, "got 2 item_ids, but 1 values for the column 'price'"),
        (["a", "b"], {"columns": {"price": ["x", "y"]}}, "the column 'price' has the type double"),
        (["a", "b"], {"columns": {"colour": [1, 2]}}, "the column 'colour' has the type string"),
        (["a", "b"], {"columns": {"year": [1.5, 2]}}, "the column 'year' has the type int64"),
        (["a", "b"], {"columns": {"year": [1, 2**63]}}, "the column 'year' has the type int64"),
        (["a", "b"], {"columns": {"price": [1, 2**70]}}, "the column 'price' has the type double"),
        (["a", True], {}, "got True"),
        (["a", "b"], {"columns": {"in_stock": [0, 1]}}, "the column 'in_stock' has the type bool"),
    ],
)
def test_bad_items_are_not_written(index, item_ids, given, message):
    with pytest.raises(ValueError, match=message):
        index.add(item_ids, **{"embeddings": np.ones((2, 3, 16)), **given})
    assert index.count() == 400


def test_vectors_of_another_checkpoint_are_refused(location, few):
    AttributeIndex.create_from_schema(location, few.schema).close()
    other = CheckpointId(CHECKPOINT.name, "ab" * 32)
    with pytest.raises(
        ValueError,
        match=r"embeddings of me/cca-shoes \(fingerprint 5c5c5c5c5c5c\).*of me/cca-shoes \(fingerprint abab",
    ):
        AttributeIndex.open(location, other, writable=True)
    moved = CheckpointId("elsewhere/copy", CHECKPOINT.fingerprint)
    with AttributeIndex.open(location, moved, writable=True) as index:
        index.add(few.item_ids, embeddings=few.embeddings)
    with AttributeIndex.open(location, writable=True) as index:
        with pytest.raises(ValueError, match="name the checkpoint of your embeddings"):
            index.add(["x"], embeddings=few.embeddings[:1])
        with pytest.raises(ValueError, match="name the checkpoint of your embeddings"):
            index.search(embedding=few.embeddings[0], attribute="colour")
        assert index.search(item="item-00001", attribute="colour", top=1)


def test_length_text_and_words(index, catalogue):
    assert len(index) == 400
    assert str(index).startswith("AttributeIndex('") and str(index).endswith(
        "': 400 items; attributes: colour, shape, heel height; columns: colour (text), shape (text), heel height "
        "(text), price (number), year (integer), in_stock (boolean); model: me/cca-shoes (fingerprint 5c5c5c5c5c5c))"
    )
    query = {"embedding": catalogue.embeddings[3], "attribute": "colour"}
    assert_same(index.search(**query, top_k=3), index.search(**query, top=3))
    assert len(index.search(**query)) == 10
    for word, message in (
        ("k", "search has no parameter 'k'. The number of items is top or top_k. Its parameters are image"),
        ("attributes", "'attributes'. Compare by one attribute='colour', or by several with weights="),
        ("wher", "'wher'. Did you mean 'where'"),
    ):
        with pytest.raises(TypeError, match=message):
            index.search(**query, **{word: 3})
    with pytest.raises(TypeError, match="search_many has no parameter 'limit'. The number of items is top or top_k"):
        index.search_many(items=["item-00001"], attribute="colour", limit=3)


def test_places_that_hold_no_index(location, catalogue):
    with pytest.raises(NoIndexError, match="there is no index at"):
        AttributeIndex.open(location)
    AttributeIndex.create_from_schema(location, catalogue.schema).close()
    with pytest.raises(FileExistsError, match="there is an? (index|collection) at"):
        AttributeIndex.create_from_schema(location, catalogue.schema)


def test_an_index_opened_for_reading_is_not_written(location, catalogue):
    AttributeIndex.create_from_schema(location, catalogue.schema).close()
    with AttributeIndex.open(location, CHECKPOINT) as index:
        for write in (
            lambda: index.add(["x"], embeddings=catalogue.embeddings[:1]),
            lambda: index.delete(["x"]),
            index.optimize,
        ):
            with pytest.raises(ValueError, match="opened for reading; open it with writable=True"):
                write()


def test_optimize_on_a_server_ends(few, monkeypatch):
    """A server that never finishes its graphs: a clear error after the timeout, and the items are stored."""
    settings = QdrantSettings(optimize_timeout=0)
    with AttributeIndex.create_from_schema("qdrant-local:shoes", few.schema, settings=settings) as index:
        index.add(few.item_ids, embeddings=few.embeddings)
        index.optimize()  # finished at once

        class Busy:
            status = "yellow"

        monkeypatch.setattr(index._store._client, "get_collection", lambda name: Busy)
        with pytest.raises(TimeoutError, match=r"has not finished its graphs after 0 s.*optimize_timeout=\.\.\."):
            index.optimize()
        assert index.count() == 40


def test_an_empty_index_finds_nothing(location, catalogue):
    with AttributeIndex.create_from_schema(location, catalogue.schema) as index:
        index.optimize()
        assert index.count() == 0
        assert index.search(embedding=catalogue.embeddings[0], attribute="colour") == []
        assert (
            index.search(embedding=catalogue.embeddings[0], weights={"colour": 1, "shape": 1}, where="price < 3") == []
        )


@pytest.mark.parametrize(
    ("location", "module", "extra"),
    [
        ("shoes.index", "lancedb", "search"),
        ("shoes.index", "lance", "search"),
        ("http://localhost:6333/shoes", "qdrant_client", "qdrant"),
    ],
)
def test_the_extra_is_named_when_it_is_missing(location, module, extra, catalogue, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    with pytest.raises(ImportError, match=rf'pip install "cca_hf\[{extra}\]"'):
        AttributeIndex.create_from_schema(location, catalogue.schema)
    assert not any(tmp_path.rglob("*.manifest"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": "text"}, "two columns called item_id"),
        ({"embedding_colour": "text"}, "two columns called embedding_colour"),
        ({"a.b": "text"}, "a column cannot be called 'a.b'"),
        ({"when": "date"}, "cannot be 'date'"),
    ],
)
def test_columns_that_cannot_be(columns, message):
    with pytest.raises(ValueError, match=message):
        IndexSchema(ATTRIBUTES, 16, columns, CHECKPOINT)


@pytest.mark.parametrize("engine", ["lance", "qdrant"])
def test_more_items_than_one_request_takes(engine, tmp_path):
    """In several requests, pages and batches, and nothing lost between them."""
    many = make_catalogue(1100, dim=512)
    location = tmp_path / "shoes.index" if engine == "lance" else "qdrant-local:shoes"
    with AttributeIndex.create_from_schema(location, many.schema) as index:
        index.add(many.item_ids, embeddings=many.embeddings)
        assert index.count() == 1100
        found = index.search(embedding=many.embeddings[0], attribute="colour", top=1100)
        assert sorted(hit.item_id for hit in found) == many.item_ids
        centre = many.embeddings[:, 0].sum(axis=0)
        index.add(many.item_ids, embeddings=many.embeddings, columns={"colour": ["red"] * 1100})
        np.testing.assert_allclose(index.centroid("colour", "red"), centre / np.linalg.norm(centre), atol=1e-5)


def test_a_notebook_shows_what_the_index_contains(index, catalogue):
    html = index._repr_html_()
    facts = dict(re.findall(r"<th [^>]*>(.*?)</th>\s*<td [^>]*>(.*?)</td>", html))
    _, location = re.findall(r"<th [^>]*>(.*?)</th>", html)[:2]
    if Path(location).is_dir():
        assert 0 < float(facts.pop("size").removesuffix(" MB")) < 100
    assert facts == {
        "items": f"{len(catalogue.item_ids):,}",
        "attributes": f"colour, shape, heel height; {catalogue.schema.dim} numbers for each",
        "columns": ", ".join(f"{name} ({kind})" for name, kind in COLUMNS.items()),
        "model": f"me/cca-shoes (fingerprint {CHECKPOINT.fingerprint[:12]})",
    }
