"""Reads tables: CSV, TSV, Excel, JSON lines and parquet. A column has one type in all files of a data set.

A cell without text is missing in CSV and Excel. Words for "nothing", such as None, NA and nan, are values: only the
author of a table knows whether they mean "not labelled".
"""

import csv
import json
import math
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import pandas
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from .path_column import find_path_column, is_text

# Not a number: 007, whose zeros would be lost, and words such as nan.
_NUMBER = re.compile(r"\s*[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[+-]?\d+)?\s*|\s*[+-]?inf(inity)?\s*", re.IGNORECASE)
_INTEGER = re.compile(r"\s*[+-]?\d+\s*")
_BOOLEANS = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}
_NAMES_OF_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}
_ROWS_TO_COMPARE = 20
_ZIP, _OLE = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"  # the first bytes of .xlsx, and of .xls and protected files
_SHOWN_COLUMNS = 20
_ROWS_AT_ONCE = 10_000


def is_file_name(column: str) -> bool:
    """Whether a column contains the path of an image, or the paths of several."""
    return column in ("file_name", "file_names") or column.endswith(("_file_name", "_file_names"))


def read_metadata(files: Sequence[Path]) -> list[pa.Table]:
    """The tables of the files of a data set, with the same types in all of them, and with a column `file_name`.

    Raises:
        ValueError: if a file cannot be read, or names no images; the message names the file.
    """
    return [_with_file_names(file, table) for file, table in zip(files, read_tables(files), strict=True)]


def read_tables(files: Sequence[Path]) -> list[pa.Table]:
    """The tables of the files, with the same types in all of them.

    Raises:
        ValueError: if a file cannot be read, or the files have different formats; the message names the file.
        ImportError: if a file is of Excel, and openpyxl is missing.
    """
    readers = {file.suffix.lower(): _READERS[file.suffix.lower()] for file in files}
    if len(readers) > 1:
        raise ValueError(f"the metadata must be in one format; found {', '.join(map(str, files[:4]))}")
    (read,) = readers.values()
    tables = [read(file) for file in files]
    if read is _read_csv:
        tables = _with_types_of_texts(tables)
    return _with_equal_types(tables)


def shown_columns(names: Sequence[str]) -> str:
    """The names of columns for a message."""
    more = ", ..." if len(names) > _SHOWN_COLUMNS else ""
    return (", ".join(map(repr, names[:_SHOWN_COLUMNS])) or "none") + more


def _with_file_names(file: Path, table: pa.Table) -> pa.Table:
    """The table whose column of paths is called `file_name`."""
    for name in table.column_names:
        kind = table.schema.field(name).type
        if is_file_name(name) and (is_text(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            return table
    try:
        found = find_path_column(table, str(file.parent))
    except ValueError as error:
        raise ValueError(f"{file}: {error}; rename one of them to file_name") from error
    if found is None or "file_name" in table.column_names:
        raise ValueError(
            f"{file}: there is no column 'file_name' with the paths of the images; rename the column that has them. "
            f"The columns are {shown_columns(table.column_names)}"
        )
    return table.rename_columns(["file_name" if name == found else name for name in table.column_names])


# ---- The formats ----


def _read_csv(file: Path) -> pa.Table:
    """A table of texts, whose columns are separated by commas, semicolons, tabs or vertical bars."""
    try:
        separator = _separator(file)
        with open(file, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, delimiter=separator)
            names = _column_names(next(reader, []))
            chunks, rows = [_texts(names, [])], list[list[str]]()
            for row in reader:
                if any(row[len(names) :]):
                    raise ValueError(
                        f"{file}, line {reader.line_num}: {len(row)} cells for {len(names)} columns; put quotes "
                        f"around a text that contains {_NAMES_OF_SEPARATORS[separator]}"
                    )
                if row:
                    rows.append(row)
                if len(rows) == _ROWS_AT_ONCE:
                    chunks.append(_texts(names, rows))
                    rows = []
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from error
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: {error}") from error
    return pa.concat_tables([*chunks, _texts(names, rows)])


def _separator(file: Path) -> str:
    """The mark between the columns: the only one in the header, or the one that gives all rows as many cells."""
    with open(file, encoding="utf-8-sig", newline="") as text:
        lines = list(islice(text, _ROWS_TO_COMPARE))
    complete = lines[:-1] if len(lines) == _ROWS_TO_COMPARE else lines  # the last row may continue
    try:
        rows = {mark: [row for row in csv.reader(complete, delimiter=mark) if row] for mark in _NAMES_OF_SEPARATORS}
    except csv.Error:  # the reader of the whole file names the line
        return ","
    possible = [mark for mark, read in rows.items() if read and len(read[0]) > 1]
    if file.suffix.lower() == ".tsv" and "\t" in possible:
        return "\t"
    if len(possible) > 1:
        regular = [mark for mark in possible if len(set(map(len, rows[mark]))) == 1]
        if len(regular) > 1:
            marks = " or by ".join(_NAMES_OF_SEPARATORS[mark] for mark in regular)
            raise ValueError(
                f"{file}: the columns could be separated by {marks}; put quotes around the texts that contain the "
                "other mark, or remove it from the header"
            )
        possible = regular or possible
    return possible[0] if possible else ","


def _not_utf8(file: Path, error: UnicodeDecodeError) -> ValueError:
    return ValueError(
        f"{file} is not encoded in UTF-8 ({error.reason}); save it in UTF-8, which Excel calls 'CSV UTF-8'"
    )


def _read_excel(file: Path) -> pa.Table:
    """The first sheet."""
    with open(file, "rb") as content:
        start = content.read(4)
    if start == _OLE:
        raise ValueError(f"{file} is an Excel file of an old kind, or has a password; save it as .xlsx or as CSV")
    if start != _ZIP:
        raise ValueError(
            f"{file} is no Excel file: it contains text, such as CSV or HTML. If it is CSV, rename it to .csv; if "
            "not, open it in Excel and save it as .xlsx"
        )
    try:
        frame = pandas.read_excel(file, engine="openpyxl", dtype=object, keep_default_na=False, na_values=[""])
    except ImportError as error:
        raise ImportError(f"to read {file}, pip install 'cca_hf[excel]', or save the sheet as CSV") from error
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} cannot be read as an Excel file: {error}") from error
    return table_of(columns_of_frame(frame.dropna(how="all")))


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
        raise _not_utf8(file, error) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}, line {number}: not a JSON object: {error}") from error
    return table_of(columns_of_rows(rows))


def _read_parquet(file: Path) -> pa.Table:
    try:
        return pq.read_table(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} is not a parquet file: {error}") from error


_READERS = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".xlsx": _read_excel,
    ".xls": _read_excel,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}


# ---- Columns ----


def columns_of_rows(rows: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """Name -> cells; None for a row that lacks the column."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def columns_of_frame(frame: pandas.DataFrame) -> dict[str, list[object]]:
    """Name -> cells; None for a missing one. The index is left out."""
    names = [str(name) for name in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the table has several columns called {', '.join(map(repr, twice))}; rename them")
    columns = {}
    for place, name in enumerate(names):
        cells = frame.iloc[:, place]
        columns[name] = [None if hole else cell for cell, hole in zip(cells.tolist(), cells.isna(), strict=True)]
    return columns


def table_of(columns: Mapping[str, Sequence[object]]) -> pa.Table:
    return pa.table({name: array_of(cells) for name, cells in columns.items()})


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
