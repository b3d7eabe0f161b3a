"""Queries of Lance itself: what they see of writes, and columns that are kept in memory after a while."""

import threading

import numpy as np
import pytest

from cca_hf.search import AttributeIndex, lance_queries
from cca_hf.search.lance_queries import _QUERIES_BEFORE

from .conftest import make_catalogue
from .test_index import CONDITIONS

CATALOGUE = make_catalogue(300)


@pytest.fixture
def location(tmp_path):
    where = tmp_path / "shoes.index"
    with AttributeIndex.create_from_schema(where, CATALOGUE.schema) as index:
        index.add(CATALOGUE.item_ids, embeddings=CATALOGUE.embeddings, columns=CATALOGUE.columns)
    return where


def ask(index, row=0, **more):
    return index.search(embedding=CATALOGUE.embeddings[row], attribute="colour", **more)


def test_columns_in_memory_are_those_of_the_files(location, monkeypatch):
    with AttributeIndex.open(location, CATALOGUE.schema.checkpoint) as index:
        read = [ask(index, row, where="price < 50") for row in range(_QUERIES_BEFORE)]
        monkeypatch.setattr(lance_queries, "_MOST_ROWS_KEPT", 0)  # asked when a version is opened: not of this one
        kept = [ask(index, row, where="price < 50") for row in range(_QUERIES_BEFORE)]
        many = index.search_many(
            embeddings=CATALOGUE.embeddings[:_QUERIES_BEFORE], attribute="colour", where="price < 50"
        )
        version = index._store._queries.newest()
        assert version._columns is not None
    assert read == kept == many
    with AttributeIndex.open(location, CATALOGUE.schema.checkpoint) as index:
        for row in range(_QUERIES_BEFORE + 5):
            ask(index, row)
        assert index._store._queries.newest()._columns is None  # too many rows to keep
        assert ask(index, 0, where="price < 50") == read[0]


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """An index that has been asked often enough to have its columns in memory."""
    location = tmp_path_factory.mktemp("warm") / "shoes.index"
    with AttributeIndex.create_from_schema(location, CATALOGUE.schema) as index:
        index.add(CATALOGUE.item_ids, embeddings=CATALOGUE.embeddings, columns=CATALOGUE.columns)
        for row in range(_QUERIES_BEFORE):
            ask(index, row)
        yield index


@pytest.mark.parametrize("top", [3, 400])
@pytest.mark.parametrize(("where", "expected"), CONDITIONS, ids=[str(where) for where, _ in CONDITIONS])
def test_filters_in_memory_are_those_of_python(warm, where, expected, top):
    rows = CATALOGUE.rows(expected)
    for query in (7, 8, 9):
        similarity = np.where(rows, CATALOGUE.similarities(CATALOGUE.embeddings[query, 0], "colour"), -np.inf)
        nearest = np.argsort(-similarity)[: min(top, rows.sum())]
        found = ask(warm, query, where=where, top=top)
        assert [hit.item_id for hit in found] == [CATALOGUE.item_ids[row] for row in nearest]


def test_a_filter_that_the_nearest_do_not_fulfil(warm, monkeypatch):
    """Two thirds of the items fulfil it, but of the nearest hardly one: those that do are found all the same."""
    asked = []
    ask_lance = lance_queries.Version._scan
    monkeypatch.setattr(lance_queries.Version, "_scan", lambda *given: asked.append(given[4]) or ask_lance(*given))
    colour = CATALOGUE.columns["colour"][7]
    rows = CATALOGUE.rows(lambda row: row["colour"] not in (colour, None))
    similarity = np.where(rows, CATALOGUE.similarities(CATALOGUE.embeddings[7, 0], "colour"), -np.inf)
    found = ask(warm, 7, where=f"colour != {colour!r} and colour != None")
    assert [hit.item_id for hit in found] == [CATALOGUE.item_ids[row] for row in np.argsort(-similarity)[:10]]
    assert asked[0] is None and asked[1] is not None  # first without the filter, then with it
    asked.clear()
    ask(warm, 7, where=f"colour == {colour!r}")
    assert asked == [None]


def test_columns_in_memory_are_of_the_version_that_is_asked(location):
    with AttributeIndex.open(location, CATALOGUE.schema.checkpoint, writable=True) as index:
        for _ in range(_QUERIES_BEFORE + 1):
            before = ask(index)
        nearest = before[0].item_id
        index.add([nearest], embeddings=CATALOGUE.embeddings[:1], columns={"price": [7.5]})
        for _ in range(_QUERIES_BEFORE + 1):
            (hit,) = [hit for hit in ask(index) if hit.item_id == nearest]
            assert hit.columns["price"] == 7.5
        index.delete([nearest])
        index.optimize()
        for _ in range(_QUERIES_BEFORE + 1):
            assert nearest not in [hit.item_id for hit in ask(index)]


def test_a_reader_sees_what_another_has_written_a_second_ago(location, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(lance_queries.time, "monotonic", lambda: clock[0])
    with AttributeIndex.open(location, CATALOGUE.schema.checkpoint) as reader:
        found = ask(reader)
        with AttributeIndex.open(location, CATALOGUE.schema.checkpoint, writable=True) as writer:
            writer.delete([found[0].item_id])
        assert ask(reader) == found
        clock[0] += 1.0
        assert ask(reader)[0] == found[1]


def test_threads_ask_while_another_writes(location):
    wrong: list[object] = []
    done = threading.Event()

    def search(index):
        try:
            while not done.is_set():
                hits = ask(index, 5)
                if not hits or any(hit.columns["year"] not in (1, 2) for hit in hits if hit.item_id == "item-00005"):
                    wrong.append(hits)
        except Exception as error:  # told apart below
            wrong.append(error)

    with AttributeIndex.open(location, CATALOGUE.schema.checkpoint, writable=True) as index:
        index.add(["item-00005"], embeddings=CATALOGUE.embeddings[5:6], columns={"year": [1]})
        threads = [threading.Thread(target=search, args=(index,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for change in range(20):
            year = 1 + change % 2
            index.add(["item-00005"], embeddings=CATALOGUE.embeddings[5:6], columns={"year": [year]})
            assert next(hit for hit in ask(index, 5) if hit.item_id == "item-00005").columns["year"] == year
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_version_keeps_the_graphs_of_the_one_before(location):
    with AttributeIndex.open(location, CATALOGUE.schema.checkpoint, writable=True) as index:
        ask(index)
        session = index._store._queries.newest().dataset.session()
        index.delete(["item-00001"])
        ask(index)
        assert index._store._queries.newest().dataset.session().is_same_as(session)
