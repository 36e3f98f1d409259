"""A call's parameter as a value for PostgreSQL: numbers typed as literals are, strings and arrays left to inference."""

from __future__ import annotations

import math
from binascii import Error as NotBase64
from binascii import a2b_base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from emberpool_proxy.data_endpoint.calls import Parameter
from emberpool_proxy.data_endpoint.errors import DataError, bad_request
from emberpool_proxy.data_endpoint.values import Value

# From pg_type.dat: the same in every PostgreSQL.
BOOL, BYTEA, INT8, INT4, TEXT, FLOAT8 = 16, 17, 20, 23, 25, 701
DATE, TIME, TIMESTAMP, NUMERIC, UUID, JSONB = 1082, 1083, 1114, 1700, 2950, 3802
BOOL_ARRAY, TEXT_ARRAY, INT8_ARRAY, FLOAT8_ARRAY = 1000, 1009, 1016, 1022
_ARRAY_OF = {DATE: 1182, TIME: 1183, TIMESTAMP: 1115, NUMERIC: 1231, UUID: 2951, JSONB: 3807}
_HINTED = {"DATE": DATE, "TIME": TIME, "TIMESTAMP": TIMESTAMP, "DECIMAL": NUMERIC, "UUID": UUID, "JSON": JSONB}
_LONGS = range(-(1 << 63), 1 << 63)
_INTEGERS = range(-(1 << 31), 1 << 31)
_NOT_FINITE = frozenset({"NaN", "Infinity", "-Infinity"})  # SDKs write them so in JSON, and PostgreSQL reads them so
_TEXTS = frozenset({TEXT, TEXT_ARRAY})
_NUMBERS = frozenset({INT4, INT8, FLOAT8, INT8_ARRAY, FLOAT8_ARRAY})
_MOST_DIMENSIONS = 6  # PostgreSQL's MAXDIM

_TRUE, _FALSE = Value(b"t", BOOL), Value(b"f", BOOL)
_NULL = Value(None, fallback_oid=TEXT)


def bind(parameter: Parameter) -> Value:
    """Return the value; DataError with the parameter's name when PostgreSQL could not take it."""
    value = parameter.value
    if not value or len(value) != 1:
        raise _unbindable(parameter, f"has a value with {len(value or ())} fields set, not one: isNull makes it NULL")
    ((member, given),) = value.items()
    binder = _BINDERS.get(member)
    if binder is None:
        raise _unbindable(parameter, f"has a value of the unknown kind {member!r}; known: {', '.join(_BINDERS)}")
    bound = binder(parameter, given)
    return _hinted(parameter, member, bound) if parameter.type_hint else bound


def bind_all(names: Iterable[str], parameters: Iterable[Parameter]) -> list[Value]:
    """Return the values of these names in their order; DataError for a name that has none, or two that differ."""
    by_name: dict[str, Parameter] = {}
    for parameter in parameters:
        known = by_name.setdefault(parameter.name, parameter)
        if known is not parameter and known != parameter:
            raise _unbindable(parameter, "was given twice, with different values")
    values = []
    for name in names:
        if name not in by_name:
            raise missing(name)
        values.append(bind(by_name[name]))
    return values


def missing(name: str) -> DataError:
    """Return the error for a name in the SQL that no parameter has, in AWS's words."""
    return bad_request(f"Cannot find parameter: {name}")


def _unbindable(parameter: Parameter, what: str) -> DataError:
    return bad_request(f'Parameter "{parameter.name}" {what}')


def _null(parameter: Parameter, given: Any) -> Value:
    if given is not True:
        raise _unbindable(parameter, f"has isNull {given!r}: it can only be true, or another field be set")
    return _NULL


def _boolean(parameter: Parameter, given: Any) -> Value:
    return _TRUE if _boolean_text(parameter, given) == "t" else _FALSE


def _long(parameter: Parameter, given: Any) -> Value:
    data = _long_text(parameter, given).encode()
    return Value(data, INT4 if given in _INTEGERS else INT8)


def _double(parameter: Parameter, given: Any) -> Value:
    return Value(_double_text(parameter, given).encode(), FLOAT8)


def _string(parameter: Parameter, given: Any) -> Value:
    return Value(_encoded(parameter, _string_text(parameter, given)), fallback_oid=TEXT)


def _blob(parameter: Parameter, given: Any) -> Value:
    try:
        return Value(a2b_base64(given, strict_mode=True), BYTEA, is_binary=True)
    except (NotBase64, TypeError, ValueError):
        raise _unbindable(parameter, "has a blobValue that is not Base64") from None


def _array(parameter: Parameter, given: Any) -> Value:
    text, member, _ = _array_text(parameter, given, 1)
    return Value(_encoded(parameter, text), fallback_oid=_ARRAYS[member][0])


def _array_text(parameter: Parameter, given: Any, depth: int) -> tuple[str, str, tuple[int, ...]]:
    """Return PostgreSQL's text of an array, the member that its elements came as, and its length in each dimension."""
    member, items = _only_member(parameter, given)
    if member != "arrayValues":
        element = _ARRAYS[member][1]
        return f"{{{','.join([_element(parameter, item, element) for item in items])}}}", member, (len(items),)
    if depth == _MOST_DIMENSIONS:
        raise _unbindable(parameter, f"is an array of more than {_MOST_DIMENSIONS} dimensions, the most in PostgreSQL")
    inner = [_array_text(parameter, item, depth + 1) for item in items]
    if not inner:
        return "{}", "stringValues", (0,)
    _, member, lengths = inner[0]
    if any(each[1:] != (member, lengths) for each in inner):
        raise _unbindable(parameter, "has arrays of different lengths or kinds in one array: PostgreSQL has no such")
    return f"{{{','.join([text for text, _, _ in inner])}}}", member, (len(inner), *lengths)


def _only_member(parameter: Parameter, given: Any) -> tuple[str, list[Any]]:
    if isinstance(given, Mapping) and len(given) == 1:
        ((member, items),) = given.items()
        if (member in _ARRAYS or member == "arrayValues") and isinstance(items, list):
            return member, items
    raise _unbindable(parameter, f"needs each arrayValue with one list of {', '.join(_ARRAYS)} or arrayValues")


def _element(parameter: Parameter, item: Any, text_of: Callable[[Parameter, Any], str]) -> str:
    return "NULL" if item is None else text_of(parameter, item)


def _boolean_text(parameter: Parameter, given: Any) -> str:
    if given is True or given is False:
        return "t" if given else "f"
    raise _unbindable(parameter, f"has a {type(given).__name__} as a boolean")


def _long_text(parameter: Parameter, given: Any) -> str:
    if type(given) is not int:
        raise _unbindable(parameter, f"has a {type(given).__name__} as a long")
    if given not in _LONGS:
        raise _unbindable(parameter, "has a long out of the range of 64 bits: send it as a string, typeHint DECIMAL")
    return str(given)


def _double_text(parameter: Parameter, given: Any) -> str:
    if type(given) is int:
        try:
            given = float(given)
        except OverflowError:
            raise _unbindable(parameter, "has a double out of range: send it as a string, typeHint DECIMAL") from None
    if type(given) is float:
        return repr(given) if math.isfinite(given) else "NaN" if math.isnan(given) else f"{'-' * (given < 0)}Infinity"
    if isinstance(given, str) and given in _NOT_FINITE:
        return given
    raise _unbindable(parameter, f"has a {type(given).__name__} as a double")


def _string_text(parameter: Parameter, given: Any) -> str:
    if not isinstance(given, str):
        raise _unbindable(parameter, f"has a {type(given).__name__} as a string")
    return given


def _quoted_text(parameter: Parameter, given: Any) -> str:
    quoted = _string_text(parameter, given).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'


def _encoded(parameter: Parameter, text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise _unbindable(parameter, "has half of a surrogate pair, which is no text") from None
    if b"\0" in data:
        raise _unbindable(parameter, "has a NUL character, which PostgreSQL does not take: send it as a blob")
    return data


def _hinted(parameter: Parameter, member: str, bound: Value) -> Value:
    """Return the value with the type of its hint, an array with that type of elements."""
    oid = _HINTED.get(parameter.type_hint)
    if oid is None:
        raise _unbindable(parameter, f"has the unknown typeHint {parameter.type_hint!r}; known: {', '.join(_HINTED)}")
    came_as = bound.oid or bound.fallback_oid
    if came_as not in _TEXTS and not (oid == NUMERIC and came_as in _NUMBERS):
        raise _unbindable(parameter, f"has a {member} with typeHint {parameter.type_hint}, which is for a stringValue")
    if member == "arrayValue":
        oid = _ARRAY_OF[oid]
    # JSON stays untyped: the column may be json as well as jsonb.
    return Value(bound.data, fallback_oid=oid) if parameter.type_hint == "JSON" else Value(bound.data, oid)


_BINDERS: dict[str, Callable[[Parameter, Any], Value]] = {
    "isNull": _null,
    "booleanValue": _boolean,
    "longValue": _long,
    "doubleValue": _double,
    "stringValue": _string,
    "blobValue": _blob,
    "arrayValue": _array,
}
# The type where PostgreSQL can't infer one, and an element as it stands in the text of an array.
_ARRAYS: dict[str, tuple[int, Callable[[Parameter, Any], str]]] = {
    "booleanValues": (BOOL_ARRAY, _boolean_text),
    "longValues": (INT8_ARRAY, _long_text),
    "doubleValues": (FLOAT8_ARRAY, _double_text),
    "stringValues": (TEXT_ARRAY, _quoted_text),
}
