"""What a statement's result becomes in the answer: records, generated fields, the number of updated records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import orjson
from psycopg import pq
from psycopg.pq.abc import PGresult

from emberpool_proxy.data_endpoint.encoders import Row, Wanted
from emberpool_proxy.data_endpoint.errors import BAD_REQUEST, DataError
from emberpool_proxy.data_endpoint.memory import GROWTH, result_bytes
from emberpool_proxy.data_endpoint.rows import CHUNK_ROWS, shape
from emberpool_proxy.data_endpoint.types import ColumnType

WITH_ROWS = frozenset({pq.ExecStatus.TUPLES_OK, pq.ExecStatus.SINGLE_TUPLE, pq.ExecStatus.TUPLES_CHUNK})
# orjson wants eight times as much for a string, in case that all of it is escaped. It must be given what it wants.
LARGE_BYTES = 1024 * 1024
COUNTED = (b"INSERT", b"UPDATE", b"DELETE", b"MERGE", b"COPY")  # CREATE TABLE AS counts too: DDL answers 0


class ResultTooLarge(DataError):  # noqa: N818 (named by what happened, as the others)
    """The rows need more than the allowed bytes; the words before the bracket are the service's own."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            BAD_REQUEST,
            f"Database returned more than the allowed response size limit ({limit_bytes} bytes): "
            "ask for fewer rows or columns at a time",
        )


class JsonRows:
    """A JSON array of what `items` makes of rows; it stops with ResultTooLarge as soon as it is above the limit.

    add() takes the parts of one result (libpq's chunked rows mode) in their order: no more is held than the JSON so
    far and one chunk.
    """

    __slots__ = ("_bytes", "_items", "_limit_bytes", "_parts", "_rows", "_shape")

    def __init__(
        self,
        columns: Sequence[ColumnType],
        wanted: Wanted,
        limit_bytes: int,
        items: Callable[[list[Row]], list[Any]] | None = None,
    ) -> None:
        self._shape = shape(tuple(columns), wanted)
        self._items = items
        self._limit_bytes = limit_bytes
        self._parts: list[bytes] = []
        self._bytes = self._rows = 0

    def add(self, result: PGresult) -> None:
        """Take the rows of a result. Raises ResultTooLarge."""
        if result_bytes(result) < LARGE_BYTES:
            self._add(result)
        else:
            with GROWTH.lifted():
                self._add(result)

    def _add(self, result: PGresult) -> None:
        start, count = 0, result.ntuples
        while start < count:
            stop = min(count, start + self._next_rows())
            rows = self._shape.encoded(result, start, stop)
            part = orjson.dumps(rows if self._items is None else self._items(rows))
            self._parts.append(part)
            self._bytes += len(part)
            self._rows += stop - start
            if self._bytes > self._limit_bytes:
                raise ResultTooLarge(self._limit_bytes)
            start = stop

    def json(self) -> bytes:
        """Return the array."""
        if len(self._parts) == 1:
            return self._parts[0]
        return b"[" + b",".join([part[1:-1] for part in self._parts]) + b"]"

    def _next_rows(self) -> int:
        if not self._rows:
            return CHUNK_ROWS
        bytes_a_row = self._bytes // self._rows + 1
        return max(1, min(CHUNK_ROWS, (self._limit_bytes - self._bytes) // bytes_a_row))


def has_rows(result: PGresult) -> bool:
    """Tell whether the answer has records: a SELECT's, also without rows, and those of RETURNING."""
    return result.status in WITH_ROWS


def updated_records(result: PGresult) -> int:
    """Return numberOfRecordsUpdated; as at AWS 0 beside records, those of RETURNING too."""
    if has_rows(result) or not (result.command_status or b"").startswith(COUNTED):
        return 0
    return result.command_tuples or 0


def generated_fields(result: PGresult, columns: Sequence[ColumnType], limit_bytes: int) -> bytes:
    """Return an updateResult's `generatedFields`: what RETURNING gave, row after row. Raises ResultTooLarge."""
    if not has_rows(result):
        return b"[]"
    rows = JsonRows(columns, Wanted(), limit_bytes, items=lambda rows: list(chain.from_iterable(rows)))
    rows.add(result)
    return rows.json()
