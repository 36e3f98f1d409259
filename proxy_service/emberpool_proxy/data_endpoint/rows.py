"""The rows of a result, read by psycopg's loaders and encoded.

psycopg reads all rows of a chunk in one call in C; measured against PQgetvalue per value it is two to three times
faster. Loaders are chosen by kind, not by OID: an array of a user's enum is read as one of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from psycopg import Error, adapters, pq
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import AdaptersMap, Loader, Transformer
from psycopg.pq.abc import PGresult
from psycopg.types import TypeInfo

from emberpool_proxy.data_endpoint.encoders import Row, Wanted, row_encoder
from emberpool_proxy.data_endpoint.types import ColumnType, Kind

# The Fields of so many rows stay in the processor's cache: all of 10,000 rows at once take more than twice as long.
CHUNK_ROWS = 128
MOST_SHAPES, MOST_WIDE_SHAPES = 512, 16  # of results, remembered with their encoders
WIDE_COLUMNS = 64  # a shape of so many takes 24 kB, the widest (1,664) 620 kB

INT8, TEXT, FLOAT8, BOOL, BYTEA, INT8_ARRAY, TEXT_ARRAY, BOOL_ARRAY = 20, 25, 701, 16, 17, 1016, 1009, 1000
OWN_OIDS = 0xFFFFFF00  # no type has these: text that may be broken, and arrays by the code of their delimiter
BROKEN_TEXT = OWN_OIDS


class _BrokenText(Loader):
    """Where a statement has changed client_encoding, text may be no UTF-8: what can be read is shown."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode("utf-8", "replace")


class _Context:
    """What psycopg's loaders ask for; without a connection their text is UTF-8."""

    connection = None

    def __init__(self) -> None:
        self.adapters = AdaptersMap(adapters)
        self.adapters.register_loader(BROKEN_TEXT, _BrokenText)


_CONTEXT: AdaptContext = _Context()
_SCALARS = {Kind.LONG: INT8, Kind.DOUBLE: FLOAT8, Kind.BOOLEAN: BOOL, Kind.BLOB: BYTEA}
_ARRAYS = {Kind.LONG: INT8_ARRAY, Kind.BOOLEAN: BOOL_ARRAY}


def loader(column: ColumnType, wanted: Wanted) -> int:
    """Return the OID whose loader reads the column's text."""
    long_as_text = wanted.long_as_text and Kind.LONG in (column.kind, column.element and column.element.kind)
    if column.kind is not Kind.ARRAY or column.element is None:
        return TEXT if long_as_text else _SCALARS.get(column.kind, TEXT)
    if column.delimiter != ",":
        return _delimited(column.delimiter)
    return TEXT_ARRAY if long_as_text else _ARRAYS.get(column.element.kind, TEXT_ARRAY)


def _delimited(delimiter: str) -> int:
    oid = OWN_OIDS + ord(delimiter)
    TypeInfo(f"text_by_{oid}", TEXT, oid, delimiter=delimiter).register(_CONTEXT)
    return oid


class Shape:
    """The columns of a result, as a caller wants them."""

    def __init__(self, columns: Sequence[ColumnType], wanted: Wanted, is_lenient: bool = False) -> None:
        self._columns = columns
        self._wanted = wanted
        if is_lenient:
            columns = [replace(column, kind=Kind.TEXT) if _is_text(column) else column for column in columns]
        oids = [BROKEN_TEXT if is_lenient and _is_text(column) else loader(column, wanted) for column in columns]
        self._reader = Transformer(_CONTEXT)
        self._reader.set_loader_types(oids, pq.Format.TEXT)
        self._encode = row_encoder(columns, wanted) if columns else list  # SELECT without columns has rows too

    def encoded(self, result: PGresult, start: int, stop: int) -> list[Row]:
        """Return the rows from `start` to before `stop`: each a tuple of Fields, or of plain values."""
        try:
            return self._encode(self._read(result, start, stop))
        except (ValueError, Error):  # broken UTF-8, or a type that is another than it was a minute ago
            lenient = _lenient(tuple(self._columns), self._wanted)
            return lenient._encode(lenient._read(result, start, stop))

    def _read(self, result: PGresult, start: int, stop: int) -> list[Row]:
        self._reader.set_pgresult(result, set_loaders=False)
        try:
            return self._reader.load_rows(start, stop, tuple)
        finally:
            self._reader.set_pgresult(None, set_loaders=False)  # or it would keep the rows in memory


def _is_text(column: ColumnType) -> bool:
    return column.kind not in _SCALARS


def shape(columns: tuple[ColumnType, ...], wanted: Wanted) -> Shape:
    """Return the columns' encoders; made once for the same types and wishes."""
    return _shape(columns, wanted) if len(columns) <= WIDE_COLUMNS else _wide_shape(columns, wanted)


_shape = lru_cache(MOST_SHAPES)(Shape)
_wide_shape = lru_cache(MOST_WIDE_SHAPES)(Shape)


@lru_cache(MOST_WIDE_SHAPES)
def _lenient(columns: tuple[ColumnType, ...], wanted: Wanted) -> Shape:
    return Shape(columns, wanted, is_lenient=True)
