"""Translates conditions: to SQL for LanceDB, to filters for Qdrant, to masks for columns in memory."""

import math
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from .conditions import INT64, And, AnyOf, Comparison, Condition, Missing, Not, Or, Value, levels_of

# Qdrant compares integers with bounds as 64-bit floats. From here on several integers become the same float.
_EXACT_IN_FLOATS = 2**53


def to_sql(condition: Condition, opposite: bool = False) -> str:
    """The SQL filter for LanceDB. In SQL a condition on a missing value is NULL, and so is its negation: `opposite`
    writes the negation that selects missing values too."""
    match condition:
        case Not(part):
            return to_sql(part, not opposite)
        case And(parts) | Or(parts):
            word = " AND " if isinstance(condition, And) is not opposite else " OR "
            # deepest part first: the parser of LanceDB needs half as much recursion for brackets on the left
            deepest_first = sorted(parts, key=levels_of, reverse=True)
            return f"({word.join(to_sql(part, opposite) for part in deepest_first)})"
        case Missing(name):
            return f"`{name}` IS {'NOT ' if opposite else ''}NULL"
        case AnyOf(name, ()):
            return "true" if opposite else "false"
        case AnyOf(name, values):
            listed = ", ".join(map(_literal, values))
            return f"(`{name}` NOT IN ({listed}) OR `{name}` IS NULL)" if opposite else f"`{name}` IN ({listed})"
        case Comparison(name, operator, value):
            signs = {"==": "!=", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
            if opposite:
                return f"(`{name}` {signs[operator]} {_literal(value)} OR `{name}` IS NULL)"
            return f"`{name}` {'=' if operator == '==' else operator} {_literal(value)}"
    raise TypeError(f"not a condition: {condition!r}")


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value).lower()


def to_filter(condition: Condition | None) -> Any:
    """The filter for Qdrant, whose negation selects missing values too; None without a condition."""
    from qdrant_client import models

    def field(name: str, **test: Any) -> Any:
        return models.Filter(must=[models.FieldCondition(key=payload_path(name), **test)])

    match condition:
        case None:
            return None
        case Not(part):
            return models.Filter(must_not=[to_filter(part)])
        case And(parts):
            return models.Filter(must=[to_filter(part) for part in parts])
        case Or(parts):
            return models.Filter(should=[to_filter(part) for part in parts])
        case Missing(name):
            return models.Filter(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key=payload_path(name)))])
        case AnyOf(name, values):
            if all(isinstance(value, (str, int)) and not isinstance(value, bool) for value in values) and values:
                return field(name, match=models.MatchAny(any=list(values)))
            equal = [to_filter(Comparison(name, "==", value)) for value in values]
            return models.Filter(should=equal) if equal else models.Filter(must=[models.HasIdCondition(has_id=[])])
        case Comparison(name, "==", value) if not isinstance(value, float):
            return field(name, match=models.MatchValue(value=value))
        case Comparison(name, "<", int(value)) if abs(value) >= _EXACT_IN_FLOATS:
            below = math.nextafter(value, -math.inf)
            between = models.MatchAny(any=list(range(max(int(below) + 1, INT64.start), value)))
            return models.Filter(should=[field(name, range=models.Range(lte=below)), field(name, match=between)])
        case Comparison(name, ">=", int(value)) if abs(value) >= _EXACT_IN_FLOATS:
            return to_filter(Not(Or((Comparison(name, "<", value), Missing(name)))))
        case Comparison(name, operator, value) if not isinstance(value, str):
            bounds = {"==": ("gte", "lte"), "<": ("lt",), "<=": ("lte",), ">": ("gt",), ">=": ("gte",)}
            return field(name, range=models.Range(**dict.fromkeys(bounds[operator], value)))
    raise TypeError(f"not a condition: {condition!r}")


def to_mask(condition: Condition, rows: pa.Table) -> NDArray[np.bool_]:
    """(rows,) True for rows that fulfil the condition."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    match condition:
        case Not(part):
            return ~to_mask(part, rows)
        case And(parts):
            return np.logical_and.reduce([to_mask(part, rows) for part in parts])
        case Or(parts):
            return np.logical_or.reduce([to_mask(part, rows) for part in parts])
        case Missing(name):
            return pc.is_null(rows.column(name)).to_numpy()
        case AnyOf(name, values):
            kind = rows.schema.field(name).type
            return pc.is_in(rows.column(name), pa.array(values, kind)).to_numpy()
        case Comparison(name, operator, value):
            compare = {"==": pc.equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}
            fulfils = compare[operator](rows.column(name), pa.scalar(value, rows.schema.field(name).type))
            return fulfils.fill_null(False).to_numpy()
    raise TypeError(f"not a condition: {condition!r}")


def payload_path(column: str) -> str:
    """The key of a payload. Without quotes, Qdrant reads a space or a bracket as part of a path."""
    return column if column.isidentifier() and column.isascii() else f'"{column}"'
