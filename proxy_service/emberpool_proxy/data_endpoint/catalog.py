"""What only the database knows of a result's columns: types that are not built in, and the tables they come from.

Looked up when first seen, by a query as the caller, and remembered for each entry of PgBouncer. Nothing here fails a
statement that has run: what cannot be looked up (in an aborted transaction, say) is text from no table.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from psycopg.pq.abc import PGresult

from emberpool_proxy.data_endpoint.calls import Caller
from emberpool_proxy.data_endpoint.errors import DataError
from emberpool_proxy.data_endpoint.types import BUILT_IN, UNKNOWN, ColumnType, Jdbc, array_of
from emberpool_proxy.data_endpoint.values import Value

Ask = Callable[[bytes, Sequence[Value]], Awaitable[PGresult]]
TableColumn = tuple[int, int]  # OID of the table, number of the column

MOST_REMEMBERED = 10_000  # some MB of each
TYPE_SECONDS = 300.0  # a type keeps its OID; another database behind the same entry may give it to another type
SOURCE_SECONDS = 5.0  # a renamed column or a new NOT NULL is seen after this long

_OIDS, _NUMBERS = 1028, 1005  # oid[], int2[]

# An element that is a domain is read as the type that it is made of.
TYPES_QUERY = b"""
WITH RECURSIVE made_of (top, oid, typtype, typbasetype, typoutput) AS (
    SELECT oid, oid, typtype, typbasetype, typoutput FROM pg_catalog.pg_type
    WHERE oid IN (SELECT typelem FROM pg_catalog.pg_type WHERE oid = ANY ($1))
  UNION ALL
    SELECT made_of.top, base.oid, base.typtype, base.typbasetype, base.typoutput
    FROM made_of JOIN pg_catalog.pg_type base ON made_of.typtype = 'd' AND base.oid = made_of.typbasetype
)
SELECT t.oid, t.typname, t.typtype, e.oid, e.typname, e.typtype, e.typdelim, made_of.oid
FROM pg_catalog.pg_type t
LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND t.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc
LEFT JOIN made_of ON made_of.top = e.oid AND made_of.typtype <> 'd'
WHERE t.oid = ANY ($1)"""

SOURCES_QUERY = b"""
SELECT a.attrelid, a.attnum, n.nspname, c.relname,
    a.attnotnull OR (t.typtype = 'd' AND t.typnotnull),
    a.attidentity <> '' OR coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid) LIKE '%nextval(%', false)
FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS wanted (relation, number)
JOIN pg_catalog.pg_attribute a ON a.attrelid = wanted.relation AND a.attnum = wanted.number
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"""


@dataclass(frozen=True, slots=True)
class Source:
    """The table's column that a result's column is."""

    schema: str
    table: str
    is_nullable: bool
    is_auto_increment: bool


Key = TypeVar("Key")
Found = TypeVar("Found")


class Remembered(Generic[Key, Found]):
    """What was found for an entry and a key, for some seconds; of too many the oldest is forgotten."""

    def __init__(
        self, seconds: float, most: int = MOST_REMEMBERED, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds, self._most, self._clock = seconds, most, clock
        self._found: dict[tuple[str, Key], tuple[float, Found]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def get(self, entry: str, key: Key) -> Found | None:
        """Return what was found, None if nothing or too long ago."""
        until, found = self._found.get((entry, key), (0.0, None))
        return found if until > self._clock() else None

    def add(self, entry: str, found: Mapping[Key, Found]) -> None:
        """Remember, from now on."""
        until = self._clock() + self._seconds
        for key, value in found.items():
            self._found.pop((entry, key), None)  # to the end: the first is the oldest
            self._found[entry, key] = (until, value)
        while len(self._found) > self._most:
            del self._found[next(iter(self._found))]


@dataclass
class Catalog:
    """The columns' types and sources, for all callers. `ask` runs a query as the caller."""

    types: Remembered[int, ColumnType] = field(default_factory=lambda: Remembered(TYPE_SECONDS))
    table_columns: Remembered[TableColumn, Source] = field(default_factory=lambda: Remembered(SOURCE_SECONDS))

    async def columns(self, result: PGresult, caller: Caller, ask: Ask) -> Sequence[ColumnType]:
        """Return the type of each column; no query for built-in types."""
        oids = [result.ftype(column) for column in range(result.nfields)]
        known = [BUILT_IN.get(oid) for oid in oids]
        if None not in known:
            return tuple(known)  # type: ignore[arg-type]  # mypy does not see that none is None
        return await self._with_users_types(oids, caller, ask)

    async def sources(self, result: PGresult, caller: Caller, ask: Ask) -> Sequence[Source | None]:
        """Return the table's column behind each column; None for an expression."""
        places = [(result.ftable(column), result.ftablecol(column)) for column in range(result.nfields)]
        seen = {place: self.table_columns.get(caller.entry, place) for place in places if place[0]}
        missing = [place for place, source in seen.items() if source is None]
        if missing:
            found = await _sources(missing, ask)
            self.table_columns.add(caller.entry, found)
            seen |= found
        return [seen.get(place) for place in places]

    async def _with_users_types(self, oids: Sequence[int], caller: Caller, ask: Ask) -> Sequence[ColumnType]:
        seen = {oid: BUILT_IN.get(oid) or self.types.get(caller.entry, oid) for oid in oids}
        missing = [oid for oid, column in seen.items() if column is None]
        if missing:
            found = await _types(missing, ask)
            self.types.add(caller.entry, found)
            seen |= found
        return tuple(seen[oid] or UNKNOWN for oid in oids)


async def _types(oids: Sequence[int], ask: Ask) -> dict[int, ColumnType]:
    rows = await _rows(ask, TYPES_QUERY, [_array(oids, _OIDS)])
    return {int(row[0]): _column_type(row) for row in rows}


def _column_type(row: Sequence[str]) -> ColumnType:
    oid, name, typtype, element_oid, element_name, element_typtype, delimiter, made_of = row
    if not element_oid:
        return ColumnType(int(oid), name, jdbc=_jdbc(typtype))
    base = BUILT_IN.get(int(made_of or 0), UNKNOWN)
    jdbc = _jdbc(element_typtype) if base is UNKNOWN else base.jdbc
    return array_of(ColumnType(int(element_oid), element_name, base.kind, jdbc), int(oid), name, delimiter)


def _jdbc(typtype: str) -> int:
    return {"c": Jdbc.STRUCT, "e": Jdbc.VARCHAR}.get(typtype, Jdbc.OTHER)


async def _sources(places: Sequence[TableColumn], ask: Ask) -> dict[TableColumn, Source]:
    tables, numbers = zip(*places, strict=True)
    rows = await _rows(ask, SOURCES_QUERY, [_array(tables, _OIDS), _array(numbers, _NUMBERS)])
    return {
        (int(table), int(number)): Source(schema, name, is_nullable=notnull != "t", is_auto_increment=generated == "t")
        for table, number, schema, name, notnull, generated in rows
    }


def _array(numbers: Iterable[int], oid: int) -> Value:
    return Value(("{" + ",".join(map(str, numbers)) + "}").encode(), oid)


async def _rows(ask: Ask, query: bytes, values: Sequence[Value]) -> list[list[str]]:
    """Return the rows as text, "" for NULL; none if the query cannot be run."""
    try:
        result = await ask(query, values)
    except DataError:
        return []
    return [
        [(result.get_value(row, column) or b"").decode("utf-8", "replace") for column in range(result.nfields)]
        for row in range(result.ntuples)
    ]
