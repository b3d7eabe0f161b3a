"""The nearest rows of a LanceDB table, computed by Lance, the engine below LanceDB, in the calling thread.

LanceDB's event loop would take 0.8 ms of the 2.7 ms of a query over 100,000 items. Reading ten scattered rows takes
longer than finding them, so the columns of a small table are kept in memory.
"""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from .conditions import Condition, columns_of
from .engine_filters import to_mask, to_sql
from .schema import Vectors

SEEN_WITHIN = timedelta(seconds=1)  # looking for a new version at each query would take a third of its time
_ROW_ID = "_rowid"
_SEARCH_EFFORT = 200  # recall at 10 over a million items: 0.956 with 100; 0.973 with 200, for 0.3 ms more
_FILTERED_EFFORT = 48  # items that a filter removes are visited, but do not count
_REFINE, _LONGEST_REFINED = 2, 100
# After this many queries on one version of the table, its columns are loaded, since more queries are likely.
_QUERIES_BEFORE, _ROWS_A_QUERY = 32, 3_000
_MOST_ROWS_KEPT = 2_000_000  # up to this size the columns need less memory than the graph of one attribute
_MASKS_KEPT = 32
# A filter costs 2 ms in Lance. If enough of the nearest items are expected to fulfil it, they are filtered here.
_LONGEST_LIST = 512
_SPARE = 2  # reads twice the number of items that is expected to suffice


class LanceQueries:
    """The newest version of the table, at most `SEEN_WITHIN` old. Threads can query it in parallel."""

    def __init__(self, uri: str, storage_options: Mapping[str, str], *, is_exact: bool) -> None:
        self.uri = uri
        self.storage_options = dict(storage_options) or None
        self.is_exact = is_exact  # whether the graphs contain the full vectors; otherwise results are ranked again
        self._opening = threading.Lock()
        self._writes = 0
        self._opened: tuple[Version | None, int, float] = (None, 0, 0.0)  # version, writes before it, time

    def refresh(self) -> None:
        """Makes the next query see all writes before this call."""
        self._writes += 1

    def _recently_opened(self) -> "Version | None":
        version, writes, opened = self._opened
        return version if writes == self._writes and time.monotonic() - opened < SEEN_WITHIN.total_seconds() else None

    def newest(self) -> "Version":
        if (recent := self._recently_opened()) is not None:
            return recent
        import lance

        with self._opening:
            if (recent := self._recently_opened()) is not None:  # another thread opened it in the meantime
                return recent
            before, writes, opened = self._opened[0], self._writes, time.monotonic()
            session = None if before is None else before.dataset.session()  # keeps the graphs in memory
            dataset = lance.dataset(self.uri, storage_options=self.storage_options, session=session)
            is_same = before is not None and before.dataset.version == dataset.version
            version = before if before is not None and is_same else Version(dataset, is_exact=self.is_exact)
            self._opened = version, writes, opened
            return version


class Version:
    """One version of the table, and its columns after some queries."""

    def __init__(self, dataset: Any, *, is_exact: bool) -> None:
        self.dataset = dataset
        self._is_exact = is_exact
        self._queries = 0
        rows = dataset.count_rows()
        self._enough = max(_QUERIES_BEFORE, rows // _ROWS_A_QUERY) if rows <= _MOST_ROWS_KEPT else math.inf
        self._columns: _Columns | None = None
        self._reading = threading.Lock()

    def nearest(
        self, column: str, queries: Vectors, count: int, columns: Sequence[str], condition: Condition | None
    ) -> pa.Table:
        """`columns` and `_distance` (1 - cosine), the nearest row first; for several queries also `query_index`."""
        kept = self._columns_in_memory([*columns, *columns_of(condition)], len(queries))
        if kept is None:
            return self._scan(column, queries, count, condition, columns)
        if condition is not None and len(queries) == 1:
            fulfils, total = kept.mask(condition)
            length = _SPARE * count * len(fulfils) // max(1, total)
            if length <= _LONGEST_LIST:
                found = self._scan(column, queries, length, None, [_ROW_ID])
                found = found.filter(pa.array(fulfils[kept.places(found)]))
                if len(found) >= count:
                    return kept.added_to(found.slice(0, count), columns)
        return kept.added_to(self._scan(column, queries, count, condition, [_ROW_ID]), columns)

    def _scan(
        self, column: str, queries: Vectors, count: int, condition: Condition | None, columns: Sequence[str]
    ) -> pa.Table:
        effort = _SEARCH_EFFORT if condition is None else _FILTERED_EFFORT
        nearest = {
            "column": column,
            "q": queries if len(queries) > 1 else queries[0],
            "k": count,
            "metric": "cosine",
            "ef": max(effort, count + count // 2),
            "refine_factor": None if self._is_exact else _REFINE if count <= _LONGEST_REFINED else 1,
        }
        where = None if condition is None else to_sql(condition)
        names = [*columns, "_distance"]
        return self.dataset.to_table(columns=names, nearest=nearest, filter=where, prefilter=where is not None)

    def _columns_in_memory(self, names: Sequence[str], queries: int) -> "_Columns | None":
        """At least these columns, or `None` while it is faster to read the rows of each result."""
        self._queries += queries
        if self._queries <= self._enough:
            return None
        with self._reading:
            loaded = [] if self._columns is None else self._columns.names
            if not set(names) <= set(loaded):
                self._columns = _Columns(self.dataset, sorted({*names, *loaded}))
            return self._columns


class _Columns:
    """Columns of all rows in memory, with an index by row id."""

    def __init__(self, dataset: Any, names: list[str]) -> None:
        self.names = names
        rows = dataset.scanner(columns=names, with_row_id=True).to_table().sort_by(_ROW_ID).combine_chunks()
        self._ids = rows.column(_ROW_ID).to_numpy()
        self._rows = rows.drop_columns([_ROW_ID])
        self.mask = lru_cache(_MASKS_KEPT)(partial(_mask, self._rows))

    def places(self, found: pa.Table) -> NDArray[np.int64]:
        """The positions in memory of the rows of a result."""
        return np.searchsorted(self._ids, found.column(_ROW_ID).to_numpy())

    def added_to(self, found: pa.Table, names: Sequence[str]) -> pa.Table:
        """The result with these columns."""
        rows = self._rows.select(names).take(pa.array(self.places(found)))
        for place, name in enumerate(names):
            found = found.append_column(name, rows.column(place))
        return found


def _mask(rows: pa.Table, condition: Condition) -> tuple[NDArray[np.bool_], int]:
    """(rows,) True for rows that fulfil the condition, and their number."""
    fulfils = to_mask(condition, rows)
    return fulfils, int(fulfils.sum())
