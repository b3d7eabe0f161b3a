"""The nearest rows of a LanceDB table, asked of Lance, the engine below it.

LanceDB passes a query through an event loop, and its answer through it again, batch by batch: 0.8 ms of the 2.7 ms
that a query of 100,000 items took. Lance's own package answers where it is called. And to read ten rows that lie apart
takes it longer than to find them, the longer the more columns: those of a small table are kept in memory.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from .conditions import Condition, columns_of
from .engine_filters import to_mask, to_sql

_ROW_ID = "_rowid"
_SEARCH_EFFORT = 200  # of a million items, 100 find 0.956 of the ten nearest, and 200 find 0.973 for 0.3 ms more
_FILTERED_EFFORT = 48  # items that are filtered out are passed through, and do not count
_REFINE, _LONGEST_REFINED = 2, 100
# The columns of a version are read after so many queries, which is about what they then win together.
_QUERIES_BEFORE, _ROWS_A_QUERY = 32, 3_000
_MOST_ROWS_KEPT = 2_000_000  # whose columns take less memory than the graph of one attribute
_MASKS_KEPT = 32
# A filter keeps Lance busy for 2 ms, however much it keeps: where enough of the nearest fulfil it anyway, these are
# looked through instead.
_LONGEST_LIST = 512
_SPARE = 2  # times as many as should be enough


class LanceQueries:
    """Of the newest version, as of `seen_within` seconds ago at most; threads may ask side by side."""

    def __init__(self, uri: str, storage_options: Mapping[str, str], seen_within: float, *, is_exact: bool) -> None:
        self.uri = uri
        self.storage_options = dict(storage_options) or None
        self.seen_within = seen_within
        self.is_exact = is_exact  # the graphs hold the vectors themselves; what others find is ranked again
        self._opening = threading.Lock()
        self._writes = 0
        self._opened: tuple[_Version | None, int, float] = (None, 0, 0.0)  # after how many writes, and when

    def look_again(self) -> None:
        """The next query sees what was written before this call."""
        self._writes += 1

    def nearest(
        self,
        column: str,
        queries: NDArray[np.float32],
        count: int,
        columns: Sequence[str],
        condition: Condition | None = None,
    ) -> pa.Table:
        """
        Args:
            queries: (queries, dim).
            condition: only rows that fulfil it are found.

        Returns:
            `columns` and `_distance`, 1 - cosine, the nearest first; of several queries `query_index`, too.
        """
        version = self._newest()
        kept = version.columns_in_memory([*columns, *columns_of(condition)], len(queries))
        if kept is None:
            return self._ask(version, column, queries, count, condition, columns)
        if condition is not None and len(queries) == 1:
            fulfils, total = kept.mask(condition)
            length = _SPARE * count * len(fulfils) // max(1, total)
            if length <= _LONGEST_LIST:
                found = self._ask(version, column, queries, length, None, [_ROW_ID])
                found = found.filter(pa.array(fulfils[kept.places(found)]))
                if len(found) >= count:
                    return kept.beside(found.slice(0, count), columns)
        return kept.beside(self._ask(version, column, queries, count, condition, [_ROW_ID]), columns)

    def _ask(
        self,
        version: "_Version",
        column: str,
        queries: NDArray[np.float32],
        count: int,
        condition: Condition | None,
        columns: Sequence[str],
    ) -> pa.Table:
        effort = _SEARCH_EFFORT if condition is None else _FILTERED_EFFORT
        asked = {
            "column": column,
            "q": queries if len(queries) > 1 else queries[0],
            "k": count,
            "metric": "cosine",
            "ef": max(effort, count + count // 2),
            "refine_factor": None if self.is_exact else _REFINE if count <= _LONGEST_REFINED else 1,
        }
        scanner = version.dataset.scanner(
            columns=[*columns, "_distance"],
            nearest=asked,
            filter=None if condition is None else to_sql(condition),
            prefilter=condition is not None,
        )
        return scanner.to_table()

    def _newest(self) -> "_Version":
        return self._opened_lately() or self._open()

    def _opened_lately(self) -> "_Version | None":
        version, writes, opened = self._opened
        return version if writes == self._writes and time.monotonic() - opened < self.seen_within else None

    def _open(self) -> "_Version":
        import lance

        with self._opening:
            if (lately := self._opened_lately()) is not None:  # by a thread that this one has waited for
                return lately
            before, writes, opened = self._opened[0], self._writes, time.monotonic()
            session = None if before is None else before.dataset.session()  # which keeps the graphs in memory
            dataset = lance.dataset(self.uri, storage_options=self.storage_options, session=session)
            version = before if before is not None and before.dataset.version == dataset.version else _Version(dataset)
            self._opened = version, writes, opened
            return version


class _Version:
    """One version of the table, and after some queries its columns."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._queries = 0
        rows = dataset.count_rows()
        self._is_small = rows <= _MOST_ROWS_KEPT
        self._enough = max(_QUERIES_BEFORE, rows // _ROWS_A_QUERY)
        self._columns: _Columns | None = None
        self._reading = threading.Lock()

    def columns_in_memory(self, names: Sequence[str], queries: int) -> "_Columns | None":
        """With these columns at least, or `None` as long as it is better to read the rows that are found."""
        self._queries += queries
        if self._queries <= self._enough or not self._is_small:
            return None
        with self._reading:
            there = [] if self._columns is None else self._columns.names
            if not set(names) <= set(there):
                self._columns = _Columns(self.dataset, sorted({*names, *there}))
            return self._columns


class _Columns:
    """Of all rows, found by the row's id."""

    def __init__(self, dataset: Any, names: list[str]) -> None:
        self.names = names
        rows = dataset.scanner(columns=names, with_row_id=True).to_table().sort_by(_ROW_ID).combine_chunks()
        self._ids = rows.column(_ROW_ID).to_numpy()
        self._rows = rows.drop_columns([_ROW_ID])
        self._masks: dict[Condition, tuple[NDArray[np.bool_], int]] = {}

    def places(self, found: pa.Table) -> NDArray[np.int64]:
        """Where in memory the rows that were found are."""
        return np.searchsorted(self._ids, found.column(_ROW_ID).to_numpy())

    def beside(self, found: pa.Table, names: Sequence[str]) -> pa.Table:
        """What was found, with these columns in place of the row's id."""
        rows = self._rows.select(names).take(pa.array(self.places(found)))
        for place, name in enumerate(names):
            found = found.append_column(name, rows.column(place))
        return found

    def mask(self, condition: Condition) -> tuple[NDArray[np.bool_], int]:
        """(rows,) which fulfil it, and how many do."""
        known = self._masks.get(condition)
        if known is None:
            fulfils = to_mask(condition, self._rows)
            known = fulfils, int(fulfils.sum())
            if len(self._masks) >= _MASKS_KEPT:
                self._masks = {}
            self._masks[condition] = known
        return known
