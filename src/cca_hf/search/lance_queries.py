"""The nearest rows of a LanceDB table, computed by Lance, the engine below LanceDB, in the calling thread.

LanceDB's event loop would take 0.8 ms of the 2.7 ms of a query over 100,000 items. Reading ten scattered rows takes
longer than finding them, so the columns of a small table are kept in memory.

A graph leads astray where many vectors are equal or lie in tight clusters: a search that ends in one cluster does not
reach another that is nearer. A random sample of the rows shows whether a table is like that. If it is, each result of
a graph is compared with the sample. If the sample contains nearer rows, the query is compared with all rows.
"""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from .conditions import Condition, columns_of
from .engine_filters import to_mask, to_sql
from .schema import Vectors, vectors_of

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
_SAMPLE = 1024  # rows that a result of a graph is compared with
# A row of the sample is in a cluster if another one is nearer than this share of the median distance.
_NEAR, _MOST_IN_CLUSTERS = 0.05, 0.05
# Comparing with this many numbers of each attribute takes about as long as 512 rows of its graph, and all together
# need up to 1 GiB.
_MOST_COMPARED, _MOST_NUMBERS_KEPT = 2**25, 2**28
_FEWEST = 10  # rows that a graph looks for
_MOST_MISSED = 0.1  # share of a result that may be missing, as the sample estimates it
_MOST_EQUAL = 0.4  # share of a result that may be at the same distance
_ROUNDING = {pa.float32(): 1e-5, pa.float16(): 2e-3}  # of similarities, by the type of the stored vectors


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
        self._rows = rows = dataset.count_rows()
        self._graphs = {name for index in dataset.describe_indices() for name in index.field_names}
        self._sample = _Sample(dataset, rows)
        self._enough = max(_QUERIES_BEFORE, rows // _ROWS_A_QUERY) if rows <= _MOST_ROWS_KEPT else math.inf
        self._columns: _Columns | None = None
        self._vectors: dict[str, Vectors] = {}  # vector column -> (rows, dim), in the order of `_columns`
        self._reading = threading.Lock()

    def nearest(
        self, column: str, queries: Vectors, count: int, columns: Sequence[str], condition: Condition | None
    ) -> list[pa.Table]:
        """A table for each query: `columns` and `_distance` (1 - cosine), the nearest row first."""
        asked = max(1, min(count, self._rows))  # Lance reserves memory for `count` rows
        # one or two rows would not show whether many vectors are equal
        count = max(asked, min(_FEWEST, self._rows)) if column in self._graphs else asked
        kept = self._columns_in_memory([*columns, *columns_of(condition)], len(queries))
        found = self._approximate(kept, column, queries, count, condition, columns)
        if len(queries) == 1:
            tables = [found]
        else:
            query_of_row = found.column("query_index").to_numpy()
            tables = [found.filter(pa.array(query_of_row == query)) for query in range(len(queries))]
        if column in self._graphs:
            wrong = [
                self._lacks_rows(table, column, query, count, condition)
                for table, query in zip(tables, queries, strict=True)
            ]
            for place in np.flatnonzero(wrong):
                tables[place] = self._scan(
                    column, queries[place][None], count, condition, columns if kept is None else (), is_exact=True
                )
        tables = [table.slice(0, asked) for table in tables]
        return tables if kept is None else [kept.added_to(table, columns) for table in tables]

    def compare_with_all(
        self,
        targets: Mapping[str, Vectors],
        weights: Mapping[str, float],
        count: int,
        condition: Condition | None,
        id_column: str,
        *,
        may_load: bool,
    ) -> tuple[list[str], NDArray[np.float64]] | None:
        """The best rows for a weighted sum of similarities, by falling score and then by id, and their scores.

        Args:
            targets: vector column -> (dim,), L2-normalised.
            weights: vector column -> weight.
            may_load: whether the vectors may be loaded into memory for it.

        Returns:
            None if the vectors are not in memory, or are too many.
        """
        if not self._load_vectors(targets, may_load=may_load):
            return None
        kept = self._load_columns([id_column, *columns_of(condition)])
        scores = np.zeros(self._rows)
        for column, target in targets.items():
            scores += weights[column] * (self._vectors[column] @ target)
        rows = np.arange(self._rows) if condition is None else np.flatnonzero(kept.mask(condition)[0])
        if len(rows) > count:  # keeps all equal scores, so that the result does not depend on the order of the rows
            least = np.partition(scores[rows], -count)[-count]
            rows = rows[scores[rows] >= least]
        ids = kept.values(id_column, rows)
        order = sorted(range(len(rows)), key=lambda place: (-scores[rows[place]], ids[place]))[:count]
        return [ids[place] for place in order], scores[rows[order]]

    def _load_vectors(self, targets: Mapping[str, Vectors], *, may_load: bool) -> bool:
        """Whether the vectors of these columns are in memory."""
        missing = [column for column in targets if column not in self._vectors]
        if not missing:
            return True
        numbers = self._rows * len(next(iter(targets.values())))
        most = min(_MOST_COMPARED, _MOST_NUMBERS_KEPT // (len(self._vectors) + len(missing)))
        if not may_load or numbers > most:
            return False
        with self._reading:
            for column in missing:
                rows = self.dataset.scanner(columns=[column], with_row_id=True).to_table()
                order = np.argsort(rows.column(_ROW_ID).to_numpy(), kind="stable")
                self._vectors[column] = np.ascontiguousarray(vectors_of(rows, column)[order])
        return True

    def _approximate(
        self,
        kept: "_Columns | None",
        column: str,
        queries: Vectors,
        count: int,
        condition: Condition | None,
        columns: Sequence[str],
    ) -> pa.Table:
        """The nearest rows for Lance, by the graph if there is one; without `columns` if they are kept in memory."""
        if kept is None:
            return self._scan(column, queries, count, condition, columns)
        if condition is not None and len(queries) == 1:
            fulfils, total = kept.mask(condition)
            length = min(_SPARE * count * len(fulfils) // max(1, total), self._rows)
            if length <= _LONGEST_LIST:
                found = self._scan(column, queries, length, None, ())
                found = found.filter(pa.array(fulfils[kept.places(found)]))
                if len(found) >= count:
                    return found.slice(0, count)
        return self._scan(column, queries, count, condition, ())

    def _scan(
        self,
        column: str,
        queries: Vectors,
        count: int,
        condition: Condition | None,
        columns: Sequence[str],
        *,
        is_exact: bool = False,
    ) -> pa.Table:
        effort = _SEARCH_EFFORT if condition is None else _FILTERED_EFFORT
        refine = None if self._is_exact else _REFINE if count <= _LONGEST_REFINED else 1
        nearest = {
            "column": column,
            "q": queries if len(queries) > 1 else queries[0],
            "k": count,
            "metric": "cosine",
            # Lance takes no smaller effort than the number of rows that it ranks again
            "ef": max(effort, count + count // 2, count * (refine or 1)),
            "refine_factor": refine,
            "use_index": not is_exact,
        }
        where = None if condition is None else to_sql(condition)
        names = [*columns, _ROW_ID, "_distance"]
        return self.dataset.to_table(columns=names, nearest=nearest, filter=where, prefilter=where is not None)

    def _lacks_rows(
        self, found: pa.Table, column: str, query: Vectors, count: int, condition: Condition | None
    ) -> bool:
        """Whether the result of a graph is shorter than it can be, has many equal vectors (a search rarely leaves a
        cluster of them), or lacks nearer rows of the sample."""
        if len(found) < count:
            fulfilling = self._rows if condition is None else self.dataset.count_rows(to_sql(condition))
            if len(found) < min(count, fulfilling):
                return True
        if not len(found) or not self._sample.is_clustered(column):
            return False
        distances = found.column("_distance").to_numpy()
        vectors, rounding = self._sample.vectors(column)
        run = int(_MOST_EQUAL * len(distances))
        if distances[-1] > rounding and (distances[run:] == distances[: len(distances) - run]).any():
            return True
        is_nearer = vectors @ query > 1.0 - distances[-1] + rounding
        if not is_nearer.any():
            return False
        nearer = self._sample.ids(is_nearer, condition)
        missing = np.setdiff1d(nearer, found.column(_ROW_ID).to_numpy())
        return len(missing) * self._rows > _MOST_MISSED * count * len(self._sample)

    def _columns_in_memory(self, names: Sequence[str], queries: int) -> "_Columns | None":
        """At least these columns, or `None` while it is faster to read the rows of each result."""
        self._queries += queries
        return None if self._queries <= self._enough else self._load_columns(names)

    def _load_columns(self, names: Sequence[str]) -> "_Columns":
        with self._reading:
            loaded = [] if self._columns is None else self._columns.names
            if self._columns is None or not set(names) <= set(loaded):
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

    def values(self, name: str, places: NDArray[np.int64]) -> list[Any]:
        """The values of a column at these positions."""
        return self._rows.column(name).take(pa.array(places)).to_pylist()

    def added_to(self, found: pa.Table, names: Sequence[str]) -> pa.Table:
        """The result with these columns."""
        rows = self._rows.select(names).take(pa.array(self.places(found)))
        for place, name in enumerate(names):
            found = found.append_column(name, rows.column(place))
        return found


class _Sample:
    """Random rows, the same for every query on this version, with their columns and vectors."""

    def __init__(self, dataset: Any, rows: int) -> None:
        self._dataset = dataset
        self._places = np.sort(np.random.default_rng(0).choice(rows, min(rows, _SAMPLE), replace=False, shuffle=False))
        self._mask = lru_cache(_MASKS_KEPT)(lambda condition: to_mask(condition, self._columns))
        self.vectors = lru_cache(None)(self._read_vectors)
        self.is_clustered = lru_cache(None)(self._is_clustered)

    def __len__(self) -> int:
        return len(self._places)

    @cached_property
    def _columns(self) -> pa.Table:
        """The row ids, and all columns that a filter can use."""
        names = [field.name for field in self._dataset.schema if not pa.types.is_fixed_size_list(field.type)]
        return self._dataset.take(self._places, columns=[_ROW_ID, *names]).combine_chunks()

    def _read_vectors(self, column: str) -> tuple[Vectors, float]:
        """The vectors (rows, dim), and the error of a similarity that is computed from the stored ones."""
        table = self._dataset.take(self._places, columns=[column])
        return vectors_of(table, column), _ROUNDING[table.schema.field(column).type.value_type]

    def _is_clustered(self, column: str) -> bool:
        """Whether some of the vectors are equal, or far nearer to others than most vectors are."""
        vectors, rounding = self.vectors(column)
        distances = 1.0 - vectors @ vectors.T
        near = max(rounding, _NEAR * float(np.median(distances)))
        np.fill_diagonal(distances, np.inf)
        return bool((distances.min(axis=1) < near).mean() > _MOST_IN_CLUSTERS)

    def ids(self, selected: NDArray[np.bool_], condition: Condition | None) -> NDArray[np.uint64]:
        """The row ids of the selected rows that fulfil the condition."""
        if condition is not None:
            selected = selected & self._mask(condition)
        return self._columns.column(_ROW_ID).to_numpy()[selected]


def _mask(rows: pa.Table, condition: Condition) -> tuple[NDArray[np.bool_], int]:
    """(rows,) True for rows that fulfil the condition, and their number."""
    fulfils = to_mask(condition, rows)
    return fulfils, int(fulfils.sum())
