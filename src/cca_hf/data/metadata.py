"""Reads `metadata.csv`, `.jsonl` and `.parquet` beside images. A column has one type in all files of a data set.

A cell without text is missing in CSV. Words for "nothing", such as None, NA and nan, are values: only the author of a
table knows whether they mean "not labelled".
"""

import csv
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

# Not a number: 007, whose zeros would be lost, and words such as nan.
_NUMBER = re.compile(r"\s*[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[+-]?\d+)?\s*|\s*[+-]?inf(inity)?\s*", re.IGNORECASE)
_INTEGER = re.compile(r"\s*[+-]?\d+\s*")
_BOOLEANS = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}
_SHOWN_COLUMNS = 20
_ROWS_AT_ONCE = 10_000


def is_file_name(column: str) -> bool:
    """Whether a column contains the path of an image, or the paths of several."""
    return column in ("file_name", "file_names") or column.endswith(("_file_name", "_file_names"))


def read_metadata(files: Sequence[Path]) -> list[pa.Table]:
    """The tables of the files of a data set, with the same types in all of them.

    Raises:
        ValueError: if a file cannot be read, or names no images; the message names the file.
    """
    suffixes = sorted({file.suffix for file in files})
    if len(suffixes) > 1:
        raise ValueError(f"the metadata must be in one format; found {', '.join(map(str, files[:4]))}")
    read = {".csv": _read_csv, ".jsonl": _read_json_lines, ".parquet": _read_parquet}[suffixes[0]]
    tables = [read(file) for file in files]
    for file, table in zip(files, tables, strict=True):
        _check_columns(file, table)
    if suffixes[0] == ".csv":
        tables = _with_types_of_texts(tables)
    return _with_equal_types(tables)


def _check_columns(file: Path, table: pa.Table) -> None:
    names = table.column_names
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_list, pa.types.is_large_list)
    if any(is_file_name(name) and any(test(table.schema.field(name).type) for test in texts) for name in names):
        return
    if len(names) == 1 and (separator := next((mark for mark in ";\t|" if mark in names[0]), None)):
        raise ValueError(f"{file}: the columns are separated by {separator!r}; save the file with commas instead")
    shown = ", ".join(map(repr, names[:_SHOWN_COLUMNS])) or "none"
    raise ValueError(
        f"{file}: there is no column 'file_name' with the paths of the images; rename the column that has them. "
        f"The columns are {shown}"
    )


# ---- The formats ----


def _read_csv(file: Path) -> pa.Table:
    """A table of texts."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text)
            names = _column_names(next(reader, []))
            chunks, rows = [_texts(names, [])], list[list[str]]()
            for row in reader:
                if any(row[len(names) :]):
                    raise ValueError(
                        f"{file}, line {reader.line_num}: {len(row)} cells for {len(names)} columns; put quotes "
                        "around a text that contains a comma"
                    )
                if row:
                    rows.append(row)
                if len(rows) == _ROWS_AT_ONCE:
                    chunks.append(_texts(names, rows))
                    rows = []
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not encoded in UTF-8 ({error.reason}); save it in UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: {error}") from error
    return pa.concat_tables([*chunks, _texts(names, rows)])


def _column_names(header: Sequence[str]) -> list[str]:
    """The names in the first line. Names that are missing or repeated are completed as in pandas."""
    names: list[str] = []
    for position, given in enumerate(header):
        name = given or f"Unnamed: {position}"
        copies = names.count(name)
        names.append(f"{name}.{copies}" if copies else name)
    return names


def _texts(names: Sequence[str], rows: Sequence[Sequence[str]]) -> pa.Table:
    """A table of these rows. Empty cells and cells that a short row lacks are missing."""
    columns = [[(row[place] or None) if place < len(row) else None for row in rows] for place in range(len(names))]
    return pa.table([pa.array(column, pa.string()) for column in columns], names=list(names))


def _read_json_lines(file: Path) -> pa.Table:
    rows: list[dict[str, object]] = []
    try:
        with open(file, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"{file}, line {number}: a line must be a JSON object; got {row!r:.80}")
                rows.append(row)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not encoded in UTF-8 ({error.reason}); save it in UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}, line {number}: not a JSON object: {error}") from error
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: array_of([row.get(name) for row in rows]) for name in names})


def _read_parquet(file: Path) -> pa.Table:
    try:
        return pq.read_table(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} is not a parquet file: {error}") from error


# ---- Types ----


def array_of(values: Sequence[object]) -> pa.Array:
    """The values as an Arrow array; as texts if they have several types, such as 38 and "none"."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else text_of(value) for value in values], pa.string())


def text_of(value: object) -> str:
    """The text of a value in a column of texts, such as 38 for 38.0 beside "none"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _with_types_of_texts(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Columns of texts that are numbers or booleans in all tables, as such."""
    typed = list(tables)
    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        if is_file_name(name):
            continue
        distinct = {
            value for table in tables if name in table.column_names for value in table[name].unique().to_pylist()
        }
        kind = _type_of(distinct - {None})
        typed = [_parsed(table, name, kind) if name in table.column_names else table for table in typed]
    return typed


def _type_of(texts: set[str]) -> pa.DataType:
    if not texts:
        return pa.float64()  # as pandas reads an empty column
    if all(text in _BOOLEANS for text in texts):
        return pa.bool_()
    if not all(_NUMBER.fullmatch(text) for text in texts):
        return pa.string()
    if not all(_INTEGER.fullmatch(text) for text in texts):
        return pa.float64()
    fits = all(-(2**63) <= int(text) < 2**63 for text in texts if len(text) < 30)
    return pa.int64() if fits and max(map(len, texts)) < 30 else pa.string()


def _parsed(table: pa.Table, name: str, kind: pa.DataType) -> pa.Table:
    if pa.types.is_string(kind):
        return table
    parsers: dict[pa.DataType, Callable[[str], object]] = {
        pa.int64(): int,
        pa.float64(): float,
        pa.bool_(): _BOOLEANS.__getitem__,
    }
    parse = parsers[kind]
    coded = table[name].combine_chunks().dictionary_encode()
    values = pa.array([parse(text) for text in coded.dictionary.to_pylist()], kind)
    column = values.take(coded.indices)
    return table.set_column(table.column_names.index(name), name, column)


def _with_equal_types(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Casts the columns whose types differ: integers and floats to floats, others to texts."""
    equal = list(tables)
    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        kinds = {table.schema.field(name).type for table in tables if name in table.column_names}
        kinds.discard(pa.null())
        if len(kinds) > 1 and not any(pa.types.is_nested(kind) for kind in kinds):
            kind = _common_type(kinds)
            equal = [_cast(table, name, kind) if name in table.column_names else table for table in equal]
    return equal


def _common_type(kinds: set[pa.DataType]) -> pa.DataType:
    if all(pa.types.is_integer(kind) for kind in kinds):
        return pa.int64()
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds):
        return pa.float64()
    return pa.string()


def _cast(table: pa.Table, name: str, kind: pa.DataType) -> pa.Table:
    column = table[name]
    if pa.types.is_string(kind):
        texts = [None if _is_missing(value) else text_of(value) for value in column.to_pylist()]
        column = pa.array(texts, pa.string())
    elif pa.types.is_null(column.type):
        column = pa.nulls(len(table), kind)
    else:
        column = pc.cast(column, kind)
    return table.set_column(table.column_names.index(name), name, column)


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
