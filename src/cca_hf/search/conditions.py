"""Filters: conditions on the columns of an index, with the semantics of Python.

    column("price") < 50
    (column("price") < 50) & ~column("base_colour").is_in(["red", "pink"])
    "price < 50 and base_colour not in ('red', 'pink')"         # the same as text, for `parse`

A missing value equals nothing and is neither less nor greater than anything; `== None` selects missing values. `not`
selects every item that the condition does not select: "not red" includes items whose colour is unknown.
"""

import ast
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias

Value: TypeAlias = str | int | float | bool
ColumnType: TypeAlias = Literal["text", "integer", "number", "boolean"]
Operator: TypeAlias = Literal["==", "<", "<=", ">", ">="]

MOST_LEVELS = 40  # the SQL parser of LanceDB stops at 45 nested pairs of brackets
INT64 = range(-(2**63), 2**63)
_ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.eq,
    ast.IsNot: operator.ne,
    **dict(zip(_ORDER, (operator.lt, operator.le, operator.gt, operator.ge), strict=True)),
}
_ALLOWED = (
    "a filter compares columns with values: price < 50, 10 <= price < 50, colour == 'red', season in ('Fall', "
    "'Winter'), in_stock, year is None, joined by and, or, not; write column('heel height') for a name with a space"
)
_LONGEST_SHOWN = 200
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
        return AnyOf(self.name, tuple(_plain(self.name, value) for value in values))


def _parts(condition: Condition, kind: type[And] | type[Or]) -> tuple[Condition, ...]:
    """The parts of an And or Or of this kind: a chain of `|` over thousands of conditions stays one flat Or."""
    return condition.parts if isinstance(condition, kind) else (condition,)


def _plain(name: str, value: object) -> Value:
    """Converts scalars of numpy and Arrow to Python's types."""
    if not isinstance(value, (str, int, float, bool)):
        import numpy as np
        import pyarrow as pa  # type: ignore[import-untyped]

        value = value.item() if isinstance(value, np.generic) else value
        value = value.as_py() if isinstance(value, pa.Scalar) else value
    if not isinstance(value, (str, int, float, bool)):
        raise TypeError(
            f"column({name!r}) can be compared with text, a number, True or False; got {type(value).__name__}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"column({name!r}) cannot be compared with {value}; use == None to select missing values")
    return value


def parse(text: str) -> Condition:
    """Reads a condition from text in Python's syntax. Nothing in the text is executed.

    Raises:
        ValueError: for text that is no filter; names the part, and what is allowed.
    """
    text = text.strip()
    try:
        return _Reader(text).condition(ast.parse(text, mode="eval").body)
    except SyntaxError as error:
        raise ValueError(f"cannot parse the filter {_shown(text)} ({error.msg}); {_ALLOWED}") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError(
            f"the filter {_shown(text)} is nested too deep: at most {MOST_LEVELS} levels of 'and', 'or' and 'not'"
        ) from error
    except UnicodeEncodeError as error:
        raise ValueError(f"the filter {text[:_LONGEST_SHOWN]!a} contains a character that is not Unicode") from error


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text

    def condition(self, node: ast.expr) -> Condition:
        match node:
            case ast.BoolOp(ast.And(), values):
                return And(tuple(map(self.condition, values)))
            case ast.BoolOp(ast.Or(), values):
                return Or(tuple(map(self.condition, values)))
            case ast.UnaryOp(ast.Not(), operand):
                return ~self.condition(operand)
            case ast.Compare(left, operators, rights):
                parts = tuple(map(self.comparison, [left, *rights], operators, rights))
                return parts[0] if len(parts) == 1 else And(parts)
            case ast.Name() | ast.Call():
                return self.column(node) == True  # noqa: E712 - makes a condition
        self.refuse(node)

    def comparison(self, left: ast.expr, sign: ast.cmpop, right: ast.expr) -> Condition:
        if isinstance(sign, (ast.In, ast.NotIn)):
            if not isinstance(right, (ast.Tuple, ast.List, ast.Set)):
                self.refuse(right)
            found = self.column(left).is_in([self.value(element) for element in right.elts])
            return Not(found) if isinstance(sign, ast.NotIn) else found
        is_identity = isinstance(sign, (ast.Is, ast.IsNot))
        is_flipped = not is_identity and not isinstance(left, (ast.Name, ast.Call))  # 10 < price
        name, constant = (right, left) if is_flipped else (left, right)
        value = self.value(constant)
        if is_identity and value is not None or value is None and isinstance(sign, _ORDER):
            self.refuse(constant)
        pair = (value, self.column(name)) if is_flipped else (self.column(name), value)
        return _COMPARISONS[type(sign)](*pair)

    def column(self, node: ast.expr) -> column:
        match node:
            case ast.Name(name):
                return column(name)
            case ast.Call(ast.Name("column"), [ast.Constant(str(name))], []):
                return column(name)
        self.refuse(node)

    def value(self, node: ast.expr) -> object:
        match node:
            case ast.Constant(str() | int() | float() | None as value):
                return value
            case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)) if not isinstance(value, bool):
                return -value
        self.refuse(node)

    def refuse(self, node: ast.AST) -> NoReturn:
        part = ast.get_source_segment(self.text, node) or ast.unparse(node)
        raise ValueError(f"in the filter {_shown(self.text)}, {_shown(part)} is not allowed; {_ALLOWED}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "...")


def check(condition: Condition, columns: Mapping[str, ColumnType], levels: int = 0) -> Condition:
    """Returns the condition with each value converted to the type of its column.

    Args:
        columns: column -> type.
        levels: how deep this condition is nested in another.

    Raises:
        ValueError: for an unknown column (names the closest), a value that the column cannot contain, or a condition
            nested more than `MOST_LEVELS` deep.
    """
    if levels > MOST_LEVELS:
        raise ValueError(f"the filter is nested too deep: at most {MOST_LEVELS} levels of 'and', 'or' and 'not'")
    match condition:
        case And(parts) | Or(parts):
            return type(condition)(tuple(check(part, columns, levels + 1) for part in parts))
        case Not(part):
            return Not(check(part, columns, levels + 1))
        case Missing(name):
            _type_of(name, columns)
            return condition
        case AnyOf(name, values):
            exact = (_compared(name, "==", value, columns) for value in values)
            return AnyOf(name, tuple(part.value for part in exact if isinstance(part, Comparison)))
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
    if kind == "number":
        try:
            return Comparison(name, operator, float(value))
        except OverflowError as error:
            raise ValueError(f"in the filter: a value for {name!r} is outside the range of 64-bit floats") from error
    if math.floor(value) not in INT64:
        raise ValueError(f"in the filter: a value for {name!r} is outside the range of 64-bit integers")
    if isinstance(value, int) or value.is_integer():
        return Comparison(name, operator, int(value))
    if operator == "==":
        return AnyOf(name, ())  # no integer equals a fraction
    return Comparison(name, "<=", math.floor(value)) if "<" in operator else Comparison(name, ">=", math.ceil(value))
