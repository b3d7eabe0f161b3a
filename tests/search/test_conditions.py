"""Filters at the ends of their types, against Python itself, in every engine; and the limits of a filter."""

import numpy as np
import pyarrow as pa
import pytest

from cca_hf.search import AttributeIndex, CheckpointId, IndexSchema, LanceSettings, column, parse
from cca_hf.search.conditions import Comparison, Condition, Not, Or, check
from cca_hf.search.lance_queries import _QUERIES_BEFORE

COLUMNS = {"price": "number", "year": "integer", "name": "text", "in_stock": "boolean"}
SCHEMA = IndexSchema(("colour",), 4, COLUMNS, CheckpointId("me/cca-shoes", "5c" * 32))
ROWS = [
    {"price": 0.0, "year": 0, "name": "a", "in_stock": True},
    {"price": -0.0, "year": -(2**63), "name": "", "in_stock": False},
    {"price": 1.5, "year": 2**63 - 1, "name": "it's", "in_stock": None},
    {"price": None, "year": None, "name": None, "in_stock": True},
    {"price": 2.0**53, "year": 2**53, "name": "B", "in_stock": True},
    {"price": 2.0**53 + 2, "year": 2**53 + 1, "name": "back\\slash", "in_stock": True},
    {"price": -1.5, "year": -1, "name": "a", "in_stock": True},
    {"price": 5e-324, "year": 1, "name": "\U0001f45f %_", "in_stock": True},
    {"price": 1.7976931348623157e308, "year": 2**53 - 1, "name": "line\nbreak", "in_stock": True},
    {"price": -(2.0**63), "year": -(2**53) - 1, "name": "a\x00b", "in_stock": True},
]
SIGNS = ("==", "!=", "<", "<=", ">", ">=")
FILTERS = [
    *(f"price {sign} {value}" for sign in SIGNS for value in (0, -0.0, 2**53 + 1, 5e-324)),
    *(f"year {sign} {value}" for sign in SIGNS for value in (
        -(2**63), 2**63 - 1, -(2**63) - 1, 2**63, 2**53 + 1, 2.0**53, -(2**53) - 1, 1e300, -1e300, 0.5, -0.5,
    )),
    "price not in (0,)",
    "price in (-0.0, 1.5)",
    "price in (0, 1, 2, 3, 4, 5, 6, 7)",
    "price > 1e308",
    "price >= -9223372036854775808",
    "price == 9223372036854775808",
    "price < -9223372036854775809",
    "year in (-9223372036854775808, 3)",
    "year not in (-9223372036854775809, 9223372036854775807, 0.5)",
    "year in ()",
    "name in (None, 'a')",
    "name not in (None, 'a')",
    "name not in (None,)",
    "name == ''",
    "name in (\"it's\", 'back\\\\slash', 'line\\nbreak', 'b', '%')",
    "name == '\U0001f45f %_'",
    "in_stock != True",
    "in_stock in (False, None)",
]  # fmt: skip


def expected(where: str) -> list[int]:
    """The rows that Python's own `eval` selects. A missing value fulfils no comparison, and its negation is true."""
    code = compile(where, "filter", "eval")
    (name,) = code.co_names
    negated = "!=" in where
    ordered = any(f" {sign} " in where for sign in ("<", "<=", ">", ">="))
    return [
        row
        for row, values in enumerate(ROWS)
        if (negated if values[name] is None and (ordered or negated) else eval(code, {}, values))
    ]


@pytest.fixture(scope="module", params=["files", "indexed", "memory", "qdrant"])
def index(request, tmp_path_factory):
    """In the files of Lance, with its indexes of columns, with the columns in memory, and in Qdrant."""
    is_lance = request.param != "qdrant"
    place = tmp_path_factory.mktemp("index") / "shoes.index" if is_lance else "qdrant-local:shoes"
    settings = LanceSettings(index_from=5 if request.param == "indexed" else 20_000) if is_lance else None
    with AttributeIndex.create_from_schema(place, SCHEMA, settings=settings) as index:
        embeddings = np.random.default_rng(0).normal(size=(len(ROWS), 1, 4))
        columns = {name: [row[name] for row in ROWS] for name in COLUMNS}
        index.add(range(len(ROWS)), embeddings=embeddings, columns=columns)
        index.optimize()
        if request.param == "memory":
            for _ in range(_QUERIES_BEFORE + 1):
                search(index, "price == 1 or year == 1 or name == 'a' or in_stock")
            assert index._store._queries.newest()._columns is not None
        yield index


def search(index, where) -> list[int]:
    hits = index.search(embedding=np.ones(4), attribute="colour", where=where, top=len(ROWS))
    return sorted(int(hit.item_id) for hit in hits)


@pytest.mark.parametrize("where", FILTERS)
def test_all_engines_read_a_filter_as_python_does(index, where):
    assert search(index, where) == expected(where)
    assert index.count(where) == len(expected(where))
    assert search(index, ~parse(where)) == sorted(set(range(len(ROWS))) - set(expected(where)))


@pytest.mark.parametrize("location", ["lance", "qdrant-local:prices"])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_a_filter_names_the_number_that_a_short_float_prints(kind, location, tmp_path):
    prices = np.array([19.99, 0.1, np.nan, 2.5], dtype=kind)
    with AttributeIndex.create_from_schema(tmp_path / "lance" if location == "lance" else location, SCHEMA) as index:
        index.add(range(4), embeddings=np.ones((4, 1, 4)), columns={"price": pa.array(prices)})
        printed = [None if np.isnan(price) else float(str(price)) for price in prices]
        assert [hit.columns["price"] for hit in index.get(range(4))] == printed
        assert search(index, f"price == {prices[0]!s}") == search(index, column("price") == prices[0]) == [0]
        assert search(index, column("price") == pa.scalar(prices[0], pa.from_numpy_dtype(kind))) == [0]
        assert search(index, f"price < {prices[0]!s}") == [1, 3]
        assert search(index, "price in (0.1, 2.5)") == [1, 3]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("name = 'a'", "name == 'a'"),
        ("(name='it = \"x\"' or\n year  =\n3)", "(name == 'it = \"x\"' or year == 3)"),
        ("3 = year and not (name = '''a'='b''')", "3 == year and not (name == \"a'='b\")"),
        ("column('name') = 'a' and year >= 2", "column('name') == 'a' and year >= 2"),
        ("name = '\U0001f45f' and price = -1.5", "name == '\U0001f45f' and price == -1.5"),
    ],
)
def test_one_equals_sign_means_two(text, same):
    assert parse(text) == parse(same)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 'a' and prise.x = 3", r"'prise\.x' at character 16 is not allowed"),
        (
            " name = 'a' and year = ",
            r"cannot parse the filter \"name = 'a' and year =\" \(invalid syntax at character 23\)",
        ),
        ("year =< 3", "invalid syntax at character 7"),
        ("year += 3", "invalid syntax at character 6"),
        ("year := 3", "invalid syntax at character 6"),
        ("name = 'a", "unterminated string literal"),
        ("column('a' = 'b')", r"at character 1 is not allowed"),
    ],
)
def test_an_error_names_the_place_in_the_text_that_was_given(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


TOO_DEEP = "nested too deep: at most 40 levels of 'and', 'or' and 'not'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("in_stock or " * 40_000 + "in_stock", "has 480008 characters: at most 100000 are allowed"),
        ("in_stock or " * 5_000 + "in_stock", r"more than 5000 comparisons.*at character 60001; write a list"),
        (" not" * 41 + " in_stock", rf"{TOO_DEEP} at character 166"),
        ("not " * 20_000 + "in_stock", rf"{TOO_DEEP} at character 164"),
        ("year == " + "-" * 20_000 + "1", rf"{TOO_DEEP} at character 49"),
        ("(" * 201 + "in_stock" + ")" * 201, r"too many nested parentheses at character 20\d"),
        (" year < (\n1e999)", "the number at character 11 is outside the range of 64-bit floats"),
        ("name == '\U0001f45f' or prise.x", r"'prise\.x' at character 16 is not allowed"),
        ("year ==", r"invalid syntax at character 8"),
        ("name == 'a\\ud800'", "contains a character that is not Unicode"),
    ],
)  # fmt: skip
def test_a_filter_beyond_the_limits_is_refused_with_the_place(text, message):
    with pytest.raises(ValueError, match=message):
        check(parse(text), COLUMNS)


def chain(comparisons: int) -> Condition:
    return Or(tuple(Comparison("year", "==", year) for year in range(comparisons)))


def deep(levels: int) -> Condition:
    condition: Condition = column("year") == 1
    for _ in range(levels):
        condition = Not(condition)
    return condition


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (chain(40_000), "has 40000 comparisons: at most 5000 are allowed; write a list of values with 'in'"),
        (chain(3_000) & ~chain(2_001), "has 5001 comparisons"),
        (column("year").is_in(range(100_001)), "have 100001 values: at most 100000 are allowed"),
        (deep(41), "nested too deep: at most 40 levels"),
        (deep(100_000), "nested too deep: at most 40 levels"),
    ],
    ids=lambda value: "" if isinstance(value, Condition) else None,
)
def test_a_condition_made_in_python_has_the_same_limits(condition, message):
    with pytest.raises(ValueError, match=message):
        check(condition, COLUMNS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, -(10**400), np.float32("inf")])
def test_a_condition_made_in_python_takes_finite_numbers(value):
    with pytest.raises(ValueError, match="NaN, infinity or a number outside the range of 64-bit floats"):
        column("price") < value  # noqa: B015


def test_the_largest_filters_are_answered(tmp_path):
    """40,000 comparisons ended the process."""
    with AttributeIndex.create_from_schema(tmp_path / "shoes.index", SCHEMA) as index:
        index.add(range(3), embeddings=np.ones((3, 1, 4)), columns={"year": [-1, 4999, None]})
        assert search(index, chain(5_000)) == [1]
        assert index.count(column("year").is_in(range(-1, 50_000))) == 2
