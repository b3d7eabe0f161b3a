"""Filters: conditions on the columns of an index, with the semantics of Python.

    column("price") < 50
    (column("price") < 50) & ~column("base_colour").is_in(["red", "pink"])
    "price < 50 and base_colour not in ('red', 'pink')"         # the same as text, see filter_text.py

A missing value equals nothing and is neither less nor greater than anything; `== None` selects missing values. `not`
selects every item that the condition does not select: "not red" includes items whose colour is unknown.

The engines differ at the ends of their types: -0.0, integers next to 2**63, integers that are no float. `check`
therefore rewrites a condition so that it contains only values that all engines compare as Python does.
"""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeAlias

Value: TypeAlias = str | int | float | bool
ColumnType: TypeAlias = Literal["text", "integer", "number", "boolean"]
Operator: TypeAlias = Literal["==", "<", "<=", ">", ">="]

MOST_LEVELS = 40  # the SQL parser of LanceDB stops at 45 nested pairs of brackets
MOST_COMPARISONS = 5_000  # LanceDB ends the process between 20,000 and 40,000
MOST_VALUES = 100_000  # in lists: LanceDB reads as many in a second
INT64 = range(-(2**63), 2**63)
_KINDS = {"text": "text", "integer": "integers", "number": "numbers", "boolean": "True or False"}


class Condition:
    """A filter, made by `column(...)` or `parse`; joined with `&`, `|` and `~`."""

    def __and__(self, other: "Condition") -> "Condition":
        return And((*_parts(self, And), *_parts(other, And)))

    def __or__(self, other: "Condition") -> "Condition":
        return Or((*_parts(self, Or), *_parts(other, Or)))

    def __invert__(self) -> "Condition":
        return self.part if isinstance(self, Not) else Not(self)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "join conditions with &, | and ~ (each condition in brackets), not with and, or, not, or a chain a < b < c"
        )


@dataclass(frozen=True)
class Comparison(Condition):
    column: str
    operator: Operator
    value: Value


@dataclass(frozen=True)
class AnyOf(Condition):
    """Equality with any of the values. Without values, no item fulfils it."""

    column: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Missing(Condition):
    column: str


@dataclass(frozen=True)
class Not(Condition):
    part: Condition


@dataclass(frozen=True)
class And(Condition):
    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class Or(Condition):
    parts: tuple[Condition, ...]


class column:  # noqa: N801 - used like a function, as `col` is in other libraries
    """A column of the index, to compare with a value: `column("price") < 50`."""

    __hash__ = None  # type: ignore[assignment]  # == makes a condition

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, value: object) -> Condition:  # type: ignore[override]
        return Missing(self.name) if value is None else Comparison(self.name, "==", _plain(self.name, value))

    def __ne__(self, value: object) -> Condition:  # type: ignore[override]
        return Not(self == value)

    def __lt__(self, value: object) -> Condition:
        return Comparison(self.name, "<", _plain(self.name, value))

    def __le__(self, value: object) -> Condition:
        return Comparison(self.name, "<=", _plain(self.name, value))

    def __gt__(self, value: object) -> Condition:
        return Comparison(self.name, ">", _plain(self.name, value))

    def __ge__(self, value: object) -> Condition:
        return Comparison(self.name, ">=", _plain(self.name, value))

    def is_in(self, values: Iterable[object]) -> Condition:
        """Equality with any of `values`."""
        if isinstance(values, str):
            raise TypeError(f"is_in takes a list of values; got the string {values!r}, write [{values!r}]")
        listed = list(values)
        present = AnyOf(self.name, tuple(_plain(self.name, value) for value in listed if value is not None))
        return present | Missing(self.name) if any(value is None for value in listed) else present


def _parts(condition: Condition, kind: type[And] | type[Or]) -> tuple[Condition, ...]:
    """The parts of an And or Or of this kind: a chain of `|` over thousands of conditions stays one flat Or."""
    return condition.parts if isinstance(condition, kind) else (condition,)


def _plain(name: str, value: object) -> Value:
    """Converts scalars of numpy and Arrow to Python's types."""
    if not isinstance(value, (str, int, float, bool)):
        import numpy as np
        import pyarrow as pa  # type: ignore[import-untyped]

        if isinstance(value, pa.Scalar):
            is_short = pa.types.is_float16(value.type) or pa.types.is_float32(value.type)
            value = value.type.to_pandas_dtype()(value.as_py()) if is_short else value.as_py()
        # the number that a shorter float prints, as `item_table` stores it: 19.99, not 19.989999771118164
        value = float(str(value)) if isinstance(value, np.floating) else value
        value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, (str, int, float, bool)):
        raise TypeError(
            f"column({name!r}) can be compared with text, a number, True or False; got {type(value).__name__}"
        )
    if not isinstance(value, str) and not -sys.float_info.max <= value <= sys.float_info.max:
        raise ValueError(
            f"column({name!r}) cannot be compared with NaN, infinity or a number outside the range of 64-bit floats; "
            "use == None to select missing values"
        )
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"column({name!r}): {value!r} contains a character that is not Unicode")
    return value


def check(condition: Condition, columns: Mapping[str, ColumnType]) -> Condition:
    """Returns an equal condition with values of the type of their column, which all engines compare as Python does.

    Args:
        columns: column -> type.

    Raises:
        ValueError: for an unknown column (names the closest), a value that the column cannot contain, or a condition
            with more than `MOST_LEVELS` levels, `MOST_COMPARISONS` comparisons or `MOST_VALUES` values in lists.
    """
    comparisons, values = _size(condition)
    if comparisons > MOST_COMPARISONS:
        raise ValueError(
            f"the filter has {comparisons} comparisons: at most {MOST_COMPARISONS} are allowed; write a list of "
            "values with 'in'"
        )
    if values > MOST_VALUES:
        raise ValueError(f"the lists of the filter have {values} values: at most {MOST_VALUES} are allowed")
    return _exact(condition, columns)


def _size(condition: Condition, levels: int = 0) -> tuple[int, int]:
    """The number of comparisons, and of values in lists."""
    if levels > MOST_LEVELS:
        raise ValueError(f"the filter is nested too deep: at most {MOST_LEVELS} levels of 'and', 'or' and 'not'")
    match condition:
        case And(parts) | Or(parts):
            sizes = [_size(part, levels + 1) for part in parts]
            return sum(comparisons for comparisons, _ in sizes), sum(values for _, values in sizes)
        case Not(part):
            return _size(part, levels + 1)
        case AnyOf(_, values):
            return 1, len(values)
    return 1, 0


def _exact(condition: Condition, columns: Mapping[str, ColumnType]) -> Condition:
    """See `check`."""
    match condition:
        case And(parts) | Or(parts):
            return type(condition)(tuple(_exact(part, columns) for part in parts))
        case Not(part):
            return Not(_exact(part, columns))
        case Missing(name):
            _type_of(name, columns)
            return condition
        case AnyOf(name, given):
            _type_of(name, columns)
            values, others = list[Value](), list[Condition]()
            for value in given:
                match _compared(name, "==", value, columns):
                    case Comparison(_, "==", exact):
                        values.append(exact)
                    case AnyOf(_, several):
                        values += several
                    case other:
                        others.append(other)
            listed = AnyOf(name, tuple(values))
            return Or((listed, *others)) if others else listed
        case Comparison(name, operator, value):
            return _compared(name, operator, value, columns)
    raise TypeError(f"a condition is made by column(...) or parse(...); got {type(condition).__name__}")


def levels_of(condition: Condition) -> int:
    """How deep And, Or and Not are nested in a condition."""
    match condition:
        case And(parts) | Or(parts):
            return 1 + max(map(levels_of, parts), default=0)
        case Not(part):
            return 1 + levels_of(part)
    return 0


def columns_of(condition: Condition | None) -> set[str]:
    """The columns that a condition reads."""
    match condition:
        case And(parts) | Or(parts):
            return set().union(*map(columns_of, parts))
        case Not(part):
            return columns_of(part)
        case Comparison(column=name) | AnyOf(column=name) | Missing(column=name):
            return {name}
    return set()


def unknown(kind: str, name: object, available: Iterable[str]) -> str:
    """The text of an error for an unknown name, with the closest name and all names."""
    from cca_hf.data.columns import missing_message  # imports `datasets`, which a search does not need

    return missing_message(kind, [str(name)], available)


def _type_of(name: str, columns: Mapping[str, ColumnType]) -> ColumnType:
    if name not in columns:
        raise ValueError(f"in the filter: {unknown('column', name, columns)}")
    return columns[name]


def _compared(name: str, operator: Operator, value: Value, columns: Mapping[str, ColumnType]) -> Condition:
    kind = _type_of(name, columns)
    given: ColumnType = "text" if isinstance(value, str) else "boolean" if isinstance(value, bool) else "number"
    wanted = "number" if kind == "integer" else kind
    if given != wanted:
        raise ValueError(f"in the filter: the column {name!r} contains {_KINDS[kind]}; got {value!r}")
    if operator != "==" and wanted != "number":
        raise ValueError(
            f"in the filter: {operator} compares numbers, but {name!r} contains {_KINDS[kind]}; use == or 'in'"
        )
    if isinstance(value, (str, bool)):
        return Comparison(name, operator, value)
    return _on_integers(name, operator, value) if kind == "integer" else _on_floats(name, operator, value)


def _present(name: str) -> Condition:
    return Not(Missing(name))


def _nothing(name: str) -> Condition:
    return AnyOf(name, ())


def _on_integers(name: str, operator: Operator, value: int | float) -> Condition:
    """Only `<`, `>=` and `==`, with integers above the least one: it is no integer literal in SQL."""
    least, end = INT64.start, INT64.stop
    if operator == "==":
        if value != math.floor(value) or not least <= value < end:
            return _nothing(name)
        return Comparison(name, "==", int(value)) if value > least else Comparison(name, "<", least + 1)
    bound = math.ceil(value) if operator in ("<", ">=") else math.floor(value) + 1
    is_below = operator in ("<", "<=")
    if bound >= end:
        return _present(name) if is_below else _nothing(name)
    if bound <= least:
        return _nothing(name) if is_below else _present(name)
    return Comparison(name, "<" if is_below else ">=", bound)


def _on_floats(name: str, operator: Operator, value: int | float) -> Condition:
    """An integer that is no float lies between two floats. -0.0 equals 0.0, but some engines order it before 0.0."""
    nearest = float(value)
    is_below = operator in ("<", "<=")
    if operator == "==":
        if nearest != value:
            return _nothing(name)
        return AnyOf(name, (-0.0, 0.0)) if value == 0 else Comparison(name, "==", nearest)
    if nearest != value:
        is_included = (nearest < value) == is_below
        operator = ("<=" if is_included else "<") if is_below else (">=" if is_included else ">")
    if nearest == 0:
        nearest = -0.0 if operator in ("<", ">=") else 0.0
    return Comparison(name, operator, nearest)
