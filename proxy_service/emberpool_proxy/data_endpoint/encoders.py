"""Rows as Fields of the service, or as plain JSON values for formatRecordsAs.

Most of what an answer of many rows costs is spent here. So the loop over the rows is compiled once for the kinds of
their columns, with the common kinds inline (as namedtuple does it): a call per value would double its cost, and a
loop per column costs a quarter more. The source is made of the fixed texts below; no name and no value of a user's
gets into it.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

from emberpool_proxy.data_endpoint.arrays import Items, array_value, as_doubles, as_numbers, mapped
from emberpool_proxy.data_endpoint.types import ColumnType, Kind

Field = dict[str, Any]
Row = tuple[Any, ...]
EncodeRows = Callable[[list[Row]], list[Row]]

NULL: Field = {"isNull": True}
LONGEST_LONG = 20  # characters of -9223372036854775808
LONG_RANGE = range(-(2**63), 2**63)


class Wanted(NamedTuple):  # looked up by its hash for each result: a dataclass would cost a microsecond
    """How the caller wants numbers (resultSetOptions), and Fields or plain values."""

    long_as_text: bool = False
    decimal_as_number: bool = False
    plain: bool = False


def row_encoder(columns: Sequence[ColumnType], wanted: Wanted) -> EncodeRows:
    """Return the function for rows of these columns; their values are as the loaders of rows give them."""
    names: dict[str, Any] = {"NULL": NULL, "special": special, "without_offset": without_offset}
    expressions = []
    for number, column in enumerate(columns):
        expression, function = _encoding(column, wanted)
        expressions.append(expression.replace("value", f"c{number}").replace("encode", f"encode{number}"))
        names[f"encode{number}"] = function
    row = "".join(f"c{number}," for number in range(len(columns)))
    source = f"lambda rows: [({','.join(expressions)},) for ({row}) in rows]"
    encode: EncodeRows = eval(source, names)  # noqa: S307 (only the texts of this module, and numbers)
    return encode


_FIELDS = {
    Kind.TEXT: '{"stringValue": value} if value is not None else NULL',
    Kind.LONG: '{"longValue": value} if value is not None else NULL',
    Kind.BOOLEAN: '{"booleanValue": value} if value is not None else NULL',
    # NaN and infinity without themselves are not zero.
    Kind.DOUBLE: 'NULL if value is None else {"doubleValue": value} if value - value == 0.0 else special(value)',
    Kind.MOMENT: (
        '{"stringValue": value[:-3] if value[-3:] == "+00" else without_offset(value)} if value is not None else NULL'
    ),
}
_ANY_FIELD = "NULL if value is None else encode(value)"
_ANY_PLAIN = "None if value is None else encode(value)"


def _encoding(column: ColumnType, wanted: Wanted) -> tuple[str, Callable[[Any], Any] | None]:
    """Return the expression for a value of the column and the function that it calls."""
    kind = column.kind
    if (kind is Kind.LONG and wanted.long_as_text) or (kind is Kind.DECIMAL and not wanted.decimal_as_number):
        kind = Kind.TEXT
    if kind is Kind.ARRAY and column.element is not None:
        typed = _typed_array(column.element.kind, wanted)
        return (
            (_ANY_PLAIN, partial(_array_plain, typed)) if wanted.plain else (_ANY_FIELD, partial(_array_field, typed))
        )
    if wanted.plain:
        return (_ANY_PLAIN, _PLAIN[kind]) if kind in _PLAIN else ("value", None)
    return (_FIELDS[kind], None) if kind in _FIELDS else (_ANY_FIELD, _OTHER_FIELDS[kind])


def special(value: float) -> Field:
    """Return the Field of a number that JSON does not have, as PostgreSQL writes it."""
    return {"stringValue": _special_text(value)}


def _special_text(value: float) -> str:
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"  # noqa: PLR0124 (only NaN differs)


def without_offset(moment: str) -> str:
    """Return a timestamptz in UTC without its offset; another zone's offset stays, it is part of what was meant."""
    if moment.endswith("+00"):
        return moment[:-3]
    return moment[:-6] + " BC" if moment.endswith("+00 BC") else moment


def compact(document: str) -> str:
    """Return a json document without spaces between its tokens; numbers and the order of keys stay as they are."""
    if "\\" in document:
        return _compact_with_escapes(document)
    parts = document.split('"')  # without escapes every second part is outside of the strings
    parts[::2] = ["".join(part.split()) for part in parts[::2]]
    return '"'.join(parts)


def _compact_with_escapes(document: str) -> str:
    kept, is_string = [], False
    for part in document.split('"'):
        kept.append(part if is_string else "".join(part.split()))
        backslashes = len(part) - len(part.rstrip("\\"))
        is_string = not is_string or backslashes % 2 == 1
    return '"'.join(kept)


def decimal_number(text: str) -> int | float | str:
    """Return a numeric as a long if it has no scale, else as a double; as text if it is neither."""
    if len(text) <= LONGEST_LONG and text.removeprefix("-").isdecimal() and (long := int(text)) in LONG_RANGE:
        return long
    return double if isfinite(double := float(text)) else text


def _decimal_field(text: str) -> Field:
    number = decimal_number(text)
    if isinstance(number, str):
        return {"stringValue": number}
    return {"longValue": number} if isinstance(number, int) else {"doubleValue": number}


def _document_field(document: str) -> Field:
    return {"stringValue": compact(document)}


def _base64(blob: bytes) -> str:
    return b2a_base64(blob, newline=False).decode()


def _blob_field(blob: bytes) -> Field:
    return {"blobValue": _base64(blob)}


def _plain_double(value: float) -> float | str:
    return value if isfinite(value) else _special_text(value)


_OTHER_FIELDS: dict[Kind, Callable[[Any], Field]] = {
    Kind.BLOB: _blob_field,
    Kind.DECIMAL: _decimal_field,
    Kind.JSON: _document_field,
}
_PLAIN: dict[Kind, Callable[[Any], Any]] = {
    Kind.DOUBLE: _plain_double,
    Kind.BLOB: _base64,
    Kind.DECIMAL: decimal_number,
    Kind.JSON: compact,
    Kind.MOMENT: without_offset,
}

TypedArray = Callable[[Items], tuple[str, Items]]


def _array_field(typed: TypedArray, items: Items) -> Field:
    member, values = typed(items)
    return {"arrayValue": array_value(values, member)}


def _array_plain(typed: TypedArray, items: Items) -> Items:
    return typed(items)[1]


def _typed_array(kind: Kind, wanted: Wanted) -> TypedArray:
    """Return the function that gives an array's member of the service's model and its values."""
    if kind is Kind.LONG and not wanted.long_as_text:
        return lambda items: ("longValues", items)
    if kind is Kind.BOOLEAN:
        return lambda items: ("booleanValues", items)
    if kind is Kind.DOUBLE:
        return as_doubles
    if kind is Kind.DECIMAL and wanted.decimal_as_number:
        return lambda items: as_numbers(items, decimal_number)
    change = {Kind.MOMENT: without_offset, Kind.JSON: compact}.get(kind)
    if change is not None:
        return lambda items: ("stringValues", mapped(items, change))
    return lambda items: ("stringValues", items)
