"""Conditions in the words of the engines: SQL for LanceDB, filters for Qdrant, masks for what is in memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from .conditions import And, AnyOf, Comparison, Condition, Missing, Not, Or, Value


def to_sql(condition: Condition, opposite: bool = False) -> str:
    """As a filter of LanceDB. A condition on a missing value is NULL there, and its opposite is NULL too: hence the
    `opposite`, which finds what the condition does not, missing values included."""
    match condition:
        case Not(part):
            return to_sql(part, not opposite)
        case And(parts) | Or(parts):
            word = " AND " if isinstance(condition, And) is not opposite else " OR "
            return f"({word.join(to_sql(part, opposite) for part in parts)})"
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
    raise TypeError(f"no condition: {condition!r}")


def _literal(value: Value) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value).lower()


def to_filter(condition: Condition) -> Any:
    """As a filter of Qdrant, in which what does not fulfil a condition fulfils its opposite, as here."""
    from qdrant_client import models

    match condition:
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
                field = models.FieldCondition(key=payload_path(name), match=models.MatchAny(any=list(values)))
                return models.Filter(must=[field])
            equal = [to_filter(Comparison(name, "==", value)) for value in values]
            return models.Filter(should=equal) if equal else models.Filter(must=[models.HasIdCondition(has_id=[])])
        case Comparison(name, "==", value) if not isinstance(value, float):
            return models.Filter(
                must=[models.FieldCondition(key=payload_path(name), match=models.MatchValue(value=value))]
            )
        case Comparison(name, operator, value) if not isinstance(value, str):
            bounds: Mapping[str, Mapping[str, float]] = {
                "==": {"gte": value, "lte": value},
                "<": {"lt": value},
                "<=": {"lte": value},
                ">": {"gt": value},
                ">=": {"gte": value},
            }
            between = models.Range(**bounds[operator])
            return models.Filter(must=[models.FieldCondition(key=payload_path(name), range=between)])
    raise TypeError(f"no condition: {condition!r}")


def to_mask(condition: Condition, rows: pa.Table) -> NDArray[np.bool_]:
    """(rows,) which of them fulfil it."""
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
    raise TypeError(f"no condition: {condition!r}")


def payload_path(column: str) -> str:
    """A payload's key: in quotes, or a space or a bracket in it would be read as a path."""
    return column if column.isidentifier() and column.isascii() else f'"{column}"'
