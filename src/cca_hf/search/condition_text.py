"""Filters as text in Python's syntax: `price < 50 and base_colour not in ('red', 'pink')`.

Python's own parser reads the text. Nothing in it is executed.
"""

import ast
from collections.abc import Callable
from typing import NoReturn, TypeAlias

from .conditions import MOST_LEVELS, And, Condition, Not, Or, column

_Compare: TypeAlias = Callable[[column, object], Condition]
# sign -> the comparison of a column with a value, and of a value with a column
_COMPARISONS: dict[type[ast.cmpop], tuple[_Compare, _Compare]] = {
    ast.Eq: (column.__eq__, column.__eq__),
    ast.NotEq: (column.__ne__, column.__ne__),
    ast.Lt: (column.__lt__, column.__gt__),
    ast.LtE: (column.__le__, column.__ge__),
    ast.Gt: (column.__gt__, column.__lt__),
    ast.GtE: (column.__ge__, column.__le__),
}
_IDENTITIES: dict[type[ast.cmpop], _Compare] = {ast.Is: column.__eq__, ast.IsNot: column.__ne__}
_ALLOWED = (
    "a filter compares columns with values: price < 50, 10 <= price < 50, colour == 'red', season in ('Fall', "
    "'Winter'), in_stock, year is None, joined by and, or, not; write column('heel height') for a name with a space"
)
_LONGEST_SHOWN = 200


def parse(text: str) -> Condition:
    """Reads a condition from text.

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
                terms = [left, *rights]
                parts = tuple(map(self.comparison, terms, operators, rights))
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
        if isinstance(sign, (ast.Is, ast.IsNot)):
            if self.value(right) is not None:
                self.refuse(right)
            return _IDENTITIES[type(sign)](self.column(left), None)
        compare, flipped = _COMPARISONS[type(sign)]
        if not isinstance(left, (ast.Name, ast.Call)):  # 10 < price
            left, right, compare = right, left, flipped
        value = self.value(right)
        if value is None and not isinstance(sign, (ast.Eq, ast.NotEq)):
            self.refuse(right)
        return compare(self.column(left), value)

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
