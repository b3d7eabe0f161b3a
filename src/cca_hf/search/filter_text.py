"""Reads a filter from text in Python's syntax: `"price < 50 and base_colour not in ('red', 'pink')"`.

Python's parser makes a syntax tree of the text, and only a few kinds of its nodes are accepted. Nothing is executed.
SQL's `=` is read as `==`: a filter assigns nothing, so it has no other meaning.
"""

import ast
import io
import operator
import re
import sys
import tokenize
from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NoReturn

from .conditions import MOST_COMPARISONS, MOST_LEVELS, And, Condition, Or, column

MOST_CHARACTERS = 100_000
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
_TOO_DEEP = f"is nested too deep: at most {MOST_LEVELS} levels of 'and', 'or' and 'not'"
_PREFIXES = re.compile(rf"(?:(?:\bnot\b|[-+~])\s*){{{MOST_LEVELS + 1}}}")
_LONGEST_SHOWN = 200


def parse(text: str) -> Condition:
    """Reads a condition from text in Python's syntax. Nothing in the text is executed.

    Raises:
        ValueError: for text that is no filter, or a filter that is too long or nested too deep; names the part or the
            character, and what is allowed.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(
            f"the filter {_shown(text)} has {len(text)} characters: at most {MOST_CHARACTERS} are allowed"
        )
    return _Reader(text.strip(), start=len(text) - len(text.lstrip())).read()


class _Reader:
    def __init__(self, text: str, start: int) -> None:
        self.text = text
        self.given = text
        self.start = start  # characters before `text` in the text of the caller
        self.doubled: list[int] = []  # the places in `text` of the second characters of `==` that was given as `=`
        self.comparisons = 0

    def read(self) -> Condition:
        try:
            try:
                tree = ast.parse(self.text, mode="eval")
            except SyntaxError:
                self.text, self.doubled = _with_double_equals(self.text)
                tree = ast.parse(self.text, mode="eval")
        except SyntaxError as error:
            offset = error.offset or len(self.text) + 1  # 0 if the end of the text is missing
            why = f"{error.msg} at character {self.place(error.lineno or 1, offset - 1)}"
            raise ValueError(f"cannot parse the filter {_shown(self.given)} ({why}); {_ALLOWED}") from error
        except (RecursionError, MemoryError) as error:  # Python's parser stops at some thousand levels
            many = _PREFIXES.search(self.text)
            place = f" at character {self.start + many.end()}" if many else ""
            raise ValueError(f"the filter {_shown(self.given)} {_TOO_DEEP}{place}") from error
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the filter {self.given[:_LONGEST_SHOWN]!a} contains a character that is not Unicode"
            ) from error
        return self.condition(tree.body)

    def condition(self, node: ast.expr, levels: int = 0) -> Condition:
        if levels > MOST_LEVELS:
            raise ValueError(f"the filter {_shown(self.given)} {_TOO_DEEP} {self.at(node)}")
        match node:
            case ast.BoolOp(ast.And(), values):
                return And(tuple(self.condition(value, levels + 1) for value in values))
            case ast.BoolOp(ast.Or(), values):
                return Or(tuple(self.condition(value, levels + 1) for value in values))
            case ast.UnaryOp(ast.Not(), operand):
                return ~self.condition(operand, levels + 1)
            case ast.Compare(left, operators, rights):
                parts = tuple(map(self.comparison, [left, *rights], operators, rights))
                return parts[0] if len(parts) == 1 else And(parts)
            case ast.Name() | ast.Call():
                self.count(node)
                return self.column(node) == True  # noqa: E712 - makes a condition
        self.refuse(node)

    def comparison(self, left: ast.expr, sign: ast.cmpop, right: ast.expr) -> Condition:
        self.count(left)
        if isinstance(sign, (ast.In, ast.NotIn)):
            if not isinstance(right, (ast.Tuple, ast.List, ast.Set)):
                self.refuse(right)
            found = self.column(left).is_in([self.value(element) for element in right.elts])
            return ~found if isinstance(sign, ast.NotIn) else found
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
        constant = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else node
        is_negative = constant is not node
        match constant:
            case ast.Constant(str() | bool() | None as value) if not is_negative:
                return value
            case ast.Constant(int() | float() as value) if not isinstance(value, bool):
                if value > sys.float_info.max:
                    raise ValueError(
                        f"in the filter {_shown(self.given)}, the number {self.at(node)} is outside the range of "
                        "64-bit floats"
                    )
                return -value if is_negative else value
        self.refuse(node)

    def count(self, node: ast.expr) -> None:
        self.comparisons += 1
        if self.comparisons > MOST_COMPARISONS:
            raise ValueError(
                f"the filter {_shown(self.given)} has more than {MOST_COMPARISONS} comparisons: the first too many is "
                f"{self.at(node)}; write a list of values with 'in'"
            )

    def refuse(self, node: ast.AST) -> NoReturn:
        part = ast.get_source_segment(self.text, node) or ""
        raise ValueError(
            f"in the filter {_shown(self.given)}, {_shown(part)} {self.at(node)} is not allowed; {_ALLOWED}"
        )

    def at(self, node: Any) -> str:
        line = self.text.split("\n")[node.lineno - 1].encode()
        return f"at character {self.place(node.lineno, len(line[: node.col_offset].decode()))}"

    def place(self, line: int, character: int) -> int:
        """The number of a character in the text of the caller, from 1."""
        place = sum(len(before) + 1 for before in self.text.split("\n")[: line - 1]) + character
        return self.start + place - bisect_left(self.doubled, place) + 1


def _with_double_equals(text: str) -> tuple[str, list[int]]:
    """The text with `==` for every `=` outside of quotes, and the places of the added characters."""
    if "\r" in text:  # the tokenizer may count other lines
        return text, []
    lengths = [len(line) + 1 for line in text.split("\n")]
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):  # such as a quote that is not closed
        return text, []
    equals = [token.start for token in tokens if token.string == "="]
    places = [sum(lengths[: line - 1]) + character for line, character in equals]
    for place in reversed(places):
        text = f"{text[:place]}={text[place:]}"
    return text, [place + 1 + number for number, place in enumerate(places)]


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "...")
