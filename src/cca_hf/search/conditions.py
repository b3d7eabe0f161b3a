"""Which items may be found: conditions on columns, in Python's own words.

    column("price") < 50
    (column("price") < 50) & ~column("base_colour").is_in(["red", "pink"])
    "price < 50 and base_colour not in ('red', 'pink')"         # the same as a text, see `parse`

A missing value equals nothing and is neither less nor greater than anything; `== None` finds it. `not` is Python's:
what does not fulfil a condition fulfils its opposite, so "not red" includes items whose colour is not known.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeAlias

Value: TypeAlias = str | int | float | bool
ColumnType: TypeAlias = Literal["text", "integer", "number", "boolean"]
Operator: TypeAlias = Literal["==", "<", "<=", ">", ">="]

_KINDS: dict[ColumnType, str] = {
    "text": "texts",
    "integer": "whole numbers",
    "number": "numbers",
    "boolean": "True or False",
}


class Condition:
    """What `&`, `|` and `~` join: made by `column(...)` and `parse`."""

    def __and__(self, other: "Condition") -> "Condition":
        return And((self, other))

    def __or__(self, other: "Condition") -> "Condition":
        return Or((self, other))

    def __invert__(self) -> "Condition":
        return Not(self)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "join conditions with &, | and ~ (each in brackets), not with and, or, not, or a chain a < b < c"
        )


@dataclass(frozen=True)
class Comparison(Condition):
    column: str
    operator: Operator
    value: Value


@dataclass(frozen=True)
class AnyOf(Condition):
    """Equal to one of the values; to none if there are none."""

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


class column:  # noqa: N801 - reads as a function, as `col` does in other libraries
    """A column of the index, to be compared with a value: `column("price") < 50`."""

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
        """Equal to any of `values`."""
        if isinstance(values, str):
            raise TypeError(f"is_in takes a list of values; got the string {values!r}, write [{values!r}]")
        return AnyOf(self.name, tuple(_plain(self.name, value) for value in values))


def _plain(name: str, value: object) -> Value:
    """Numpy's and Arrow's scalars as Python's own."""
    if not isinstance(value, (str, int, float, bool)):
        import numpy as np
        import pyarrow as pa  # type: ignore[import-untyped]

        value = value.item() if isinstance(value, np.generic) else value
        value = value.as_py() if isinstance(value, pa.Scalar) else value
    if not isinstance(value, (str, int, float, bool)):
        raise TypeError(
            f"column({name!r}) can be compared with a text, a number, True or False; got {type(value).__name__}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"column({name!r}) cannot be compared with {value}; a missing value is found by == None")
    return value


def check(condition: Condition, columns: Mapping[str, ColumnType]) -> Condition:
    """The same condition with values of the columns' own types, or the reason why it makes no sense.

    Raises:
        ValueError: for an unknown column (names the closest) or a value that the column cannot have.
    """
    match condition:
        case And(parts):
            return And(tuple(check(part, columns) for part in parts))
        case Or(parts):
            return Or(tuple(check(part, columns) for part in parts))
        case Not(part):
            return Not(check(part, columns))
        case Missing(name):
            _type_of(name, columns)
            return condition
        case AnyOf(name, values):
            exact = (_compared(name, "==", value, columns) for value in values)
            return AnyOf(name, tuple(part.value for part in exact if isinstance(part, Comparison)))
        case Comparison(name, operator, value):
            return _compared(name, operator, value, columns)
    raise TypeError(f"a condition is made by column(...) or parse(...); got {type(condition).__name__}")


def columns_of(condition: Condition | None) -> set[str]:
    """Those that it is about."""
    match condition:
        case And(parts) | Or(parts):
            return set().union(*map(columns_of, parts))
        case Not(part):
            return columns_of(part)
        case Comparison(column=name) | AnyOf(column=name) | Missing(column=name):
            return {name}
    return set()


def unknown(kind: str, name: str, available: Iterable[str]) -> str:
    """The words of an error: what there is not, the closest name, and all there are."""
    from cca_hf.data.columns import missing_message  # imports `datasets`, which no search needs

    return missing_message(kind, [name], available)


def _type_of(name: str, columns: Mapping[str, ColumnType]) -> ColumnType:
    if name not in columns:
        raise ValueError(f"in the filter: {unknown('column', name, columns)}")
    return columns[name]


def _compared(name: str, operator: Operator, value: Value, columns: Mapping[str, ColumnType]) -> Condition:
    kind = _type_of(name, columns)
    given: ColumnType = "text" if isinstance(value, str) else "boolean" if isinstance(value, bool) else "number"
    wanted = "number" if kind == "integer" else kind
    if given != wanted:
        raise ValueError(f"in the filter: the column {name!r} holds {_KINDS[kind]}, and {value!r} is none")
    if operator != "==" and wanted != "number":
        raise ValueError(f"in the filter: {name!r} holds {_KINDS[kind]}; {operator} is for numbers, use == or 'in'")
    if kind == "number":
        return Comparison(name, operator, float(value))
    if kind == "integer" and isinstance(value, float):
        if value.is_integer():
            return Comparison(name, operator, int(value))
        if operator == "==":
            return AnyOf(name, ())  # no whole number equals a fraction
        return (
            Comparison(name, "<=", math.floor(value))
            if operator[0] == "<"
            else Comparison(name, ">=", math.ceil(value))
        )
    return Comparison(name, operator, value)
