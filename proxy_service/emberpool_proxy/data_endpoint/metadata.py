"""columnMetadata: what JDBC's ResultSetMetaData says of a column, which is where the service has it from.

Lengths and flags are pgjdbc's (TypeInfoCache): those of an array are those of its elements. Name and label are the
same there too; the name of the table's own column is not told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from psycopg.pq.abc import PGresult

from emberpool_proxy.data_endpoint.catalog import Source
from emberpool_proxy.data_endpoint.formatted import column_labels
from emberpool_proxy.data_endpoint.types import ColumnType

NOT_NULL, NULLABLE, UNKNOWN_NULLABLE = 0, 1, 2  # of java.sql.ResultSetMetaData
NO_MODIFIER = -1
UNKNOWN_LENGTH = 2**31 - 1
HEADER = 4  # bytes of a varlena's length, counted in a modifier
MOST_DIGITS_OF_SECONDS = 6

SIGNED = frozenset({"int2", "int4", "int8", "float4", "float8", "numeric"})
WITHOUT_CASE = SIGNED | {
    "oid",
    "bool",
    "bit",
    "varbit",
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "interval",
}
WITH_SECONDS = {
    "time": 8,
    "timetz": 8 + 6,
    "timestamp": 13 + 1 + 8,
    "timestamptz": 13 + 1 + 8 + 6,
}  # their other characters
PRECISION = {"int2": 5, "int4": 10, "oid": 10, "int8": 19, "float4": 8, "float8": 17, "bool": 1, "char": 1}
PRECISION |= {"date": 13, "interval": 49}  # characters of the longest
SERIAL = {"int2": "smallserial", "int4": "serial", "int8": "bigserial"}


def column_metadata(result: PGresult, columns: Sequence[ColumnType], sources: Sequence[Source | None]) -> bytes:
    """Return the answer's `columnMetadata`; `sources` as of Catalog.sources."""
    described = [
        _described(label, column, result.fmod(number), source)
        for number, (label, column, source) in enumerate(zip(column_labels(result), columns, sources, strict=True))
    ]
    return orjson.dumps(described)


def _described(label: str, column: ColumnType, modifier: int, source: Source | None) -> dict[str, Any]:
    base = (column.element or column).name
    is_auto_increment = source is not None and source.is_auto_increment
    return {
        "arrayBaseColumnType": column.element.jdbc if column.element else 0,
        "isAutoIncrement": is_auto_increment,
        "isCaseSensitive": base not in WITHOUT_CASE,
        "isCurrency": base == "money",
        "isSigned": base in SIGNED,
        "label": label,
        "name": label,
        "nullable": UNKNOWN_NULLABLE if source is None else NULLABLE if source.is_nullable else NOT_NULL,
        "precision": precision(base, modifier),
        "scale": scale(base, modifier),
        "schemaName": source.schema if source else "",
        "tableName": source.table if source else "",
        "type": column.jdbc,
        "typeName": SERIAL.get(column.name, column.name) if is_auto_increment else column.name,
    }


def precision(name: str, modifier: int) -> int:
    """Return the most digits of a number, or characters of anything else; 0 for a numeric without a precision."""
    if name == "numeric":
        return 0 if modifier == NO_MODIFIER else (modifier - HEADER) >> 16 & 0xFFFF
    if name in WITH_SECONDS:
        return WITH_SECONDS[name] + _characters_of_fraction(modifier)
    if modifier != NO_MODIFIER and name in ("bit", "varbit"):
        return modifier
    if modifier != NO_MODIFIER and name in ("bpchar", "varchar"):
        return modifier - HEADER
    return PRECISION.get(name, UNKNOWN_LENGTH)


def scale(name: str, modifier: int) -> int:
    """Return the digits behind the point, also those of seconds."""
    if name in ("float4", "float8"):
        return PRECISION[name]
    if name == "numeric":
        # 11 bits with a sign: numeric(5, -2) rounds to hundreds
        return 0 if modifier == NO_MODIFIER else ((modifier - HEADER & 0x7FF) ^ 1024) - 1024
    if name == "interval":
        return MOST_DIGITS_OF_SECONDS if modifier == NO_MODIFIER else min(modifier & 0xFFFF, MOST_DIGITS_OF_SECONDS)
    if name in WITH_SECONDS:
        return MOST_DIGITS_OF_SECONDS if modifier == NO_MODIFIER else modifier
    return 0


def _characters_of_fraction(modifier: int) -> int:
    """Return how long `.123456` can be."""
    if modifier == NO_MODIFIER:
        return MOST_DIGITS_OF_SECONDS + 1
    return modifier + 1 if modifier else 0
