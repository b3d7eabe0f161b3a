"""Random filters: as text, in Lance (files, indexes, memory) and in Qdrant, against plain Python."""

import operator
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cca_hf.search import AttributeIndex, CheckpointId, IndexSchema, LanceSettings, parse
from cca_hf.search.lance_queries import _QUERIES_BEFORE

Row = dict[str, str | int | float | bool | None]
COLUMNS = {"price": "number", "year": "integer", "name": "text", "heel height": "text", "in_stock": "boolean"}
SCHEMA = IndexSchema(("colour",), 4, COLUMNS, CheckpointId("me/cca-shoes", "5c" * 32))
SIGNS = {
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
EDGES = [0, 1, -1, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**300]
FLOATS = [0.0, -0.0, 0.5, 1.0, 19.99, 5e-324, -5e-324, 2.0**53, 2.0**63, -(2.0**63), 1e300, -1.7976931348623157e308]
TEXTS = [
    "",
    "a",
    "A",
    "red",
    "it's",
    '"',
    "back\\slash",
    "%",
    "line\nbreak",
    "\x00",
    "\U0001f45f",
    "e\u0301",
    "\u00e9",
]
integers = st.sampled_from(EDGES) | st.integers(-(2**64), 2**64) | st.integers(-3, 3)
floats = st.sampled_from(FLOATS) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
LITERALS = {"price": integers | floats, "year": integers | floats, "in_stock": st.booleans()}


class Filter(NamedTuple):
    text: str
    selects: Callable[[Row], bool]


def name_of(column: str) -> str:
    return column if column.isidentifier() else f"column({column!r})"


@st.composite
def comparisons(draw: st.DrawFn) -> Filter:
    column = draw(st.sampled_from(list(COLUMNS)))
    name, literals = name_of(column), LITERALS.get(column, texts)
    kind = draw(st.sampled_from(["compared", "compared", "flipped", "differs", "in", "not in", "missing", "chain"]))
    if kind == "missing":
        return Filter(f"{name} is None", lambda row: row[column] is None)
    if kind in ("in", "not in"):
        values = draw(st.lists(literals | st.none(), max_size=6))
        return Filter(f"{name} {kind} {values!r}", lambda row: (row[column] in values) is (kind == "in"))
    value = draw(literals)
    if kind == "differs":
        return Filter(f"{name} != {value!r}", lambda row: row[column] is None or row[column] != value)
    sign = draw(st.sampled_from(list(SIGNS))) if column in ("price", "year") else "=="
    if kind == "flipped":
        return Filter(
            f"{value!r} {sign} {name}", lambda row: row[column] is not None and SIGNS[sign](value, row[column])
        )
    if kind == "chain" and column in ("price", "year"):
        last = draw(literals)
        return Filter(
            f"{value!r} <= {name} < {last!r}", lambda row: row[column] is not None and value <= row[column] < last
        )
    return Filter(f"{name} {sign} {value!r}", lambda row: row[column] is not None and SIGNS[sign](row[column], value))


def joined(filters: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    parts = st.lists(filters, min_size=2, max_size=3)
    return (
        st.builds(lambda part: Filter(f"not ({part.text})", lambda row: not part.selects(row)), filters)
        | st.builds(lambda many: Filter(" and ".join(f"({part.text})" for part in many),
                                        lambda row: all(part.selects(row) for part in many)), parts)
        | st.builds(lambda many: Filter(" or ".join(f"({part.text})" for part in many),
                                        lambda row: any(part.selects(row) for part in many)), parts)
    )  # fmt: skip


FILTERS = st.recursive(comparisons(), joined, max_leaves=6)


def make_rows() -> list[Row]:
    random = np.random.default_rng(0)
    years = [value for value in EDGES if -(2**63) <= value < 2**63]

    def one(values: list) -> object:
        return [None, *values][random.integers(len(values) + 1)]

    return [
        {"price": one([*FLOATS, float(random.normal())]), "year": one([*years, int(random.integers(-3, 4))]),
         "name": one(TEXTS), "heel height": one(TEXTS), "in_stock": one([True, False])}
        for _ in range(80)
    ]  # fmt: skip


ROWS = make_rows()


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """The same items in files, with indexes of the columns, with the columns in memory, and in Qdrant."""
    folder = tmp_path_factory.mktemp("fuzz")
    places = {"files": folder / "files", "indexed": folder / "indexed", "memory": folder / "memory",
              "qdrant": "qdrant-local:fuzz"}  # fmt: skip
    opened = {}
    for kind, place in places.items():
        settings = None if kind == "qdrant" else LanceSettings(index_from=20 if kind == "indexed" else 20_000)
        index = opened[kind] = AttributeIndex.create_from_schema(place, SCHEMA, settings=settings)
        embeddings = np.random.default_rng(1).normal(size=(len(ROWS), 1, 4))
        index.add(
            range(len(ROWS)), embeddings=embeddings, columns={name: [row[name] for row in ROWS] for name in COLUMNS}
        )
        index.optimize()
    for _ in range(_QUERIES_BEFORE + 1):
        every = " or ".join(f"{name_of(name)} is None" for name in COLUMNS)
        opened["memory"].search(embedding=np.ones(4), attribute="colour", where=every)
    yield opened
    for index in opened.values():
        index.close()


@settings(max_examples=150)
@given(FILTERS)
def test_a_filter_selects_what_python_selects(indexes, wanted: Filter):
    expected = [row for row, values in enumerate(ROWS) if wanted.selects(values)]
    condition = parse(wanted.text)
    for index in indexes.values():
        hits = index.search(embedding=np.ones(4), attribute="colour", where=condition, top=len(ROWS))
        assert sorted(int(hit.item_id) for hit in hits) == expected
    assert indexes["files"].count(wanted.text) == indexes["qdrant"].count(wanted.text) == len(expected)


WORDS = ["price", "year", "name", "in_stock", "column", "not", "and", "or", "in", "is", "None", "True", "(", ")", "[",
         "]", ",", "==", "<", ">=", "-", "'", '"', "1", "1e999", "9" * 400, "x", ".", "lambda", ":", "\\", "\n",
         "\ud800", "\x00", "\U0001f45f", "if", "else", "**", "{", "}", "f'", "#", ";", "="]  # fmt: skip


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # such as 1in(2,)
@settings(max_examples=300)
@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.text(max_size=30), st.integers(0, 12))
def test_any_text_is_a_filter_or_a_value_error(indexes, text: str, doublings: int):
    """Texts of up to about 200,000 characters."""
    for where in (text, text * 2**doublings):
        try:
            indexes["memory"].count(where)
        except ValueError as error:
            assert str(error)
