"""The values of a request's parameters: their shapes and limits, not what PostgreSQL makes of them.

An error tells where it is from the parameter on, and each caller puts its own place before it: nothing is put together
for a request that is right. No value is shown: it may be a secret, and errors are logged.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from emberpool_proxy.data_endpoint.calls import Parameter
from emberpool_proxy.data_endpoint.shapes import LARGEST_LONG, SMALLEST_LONG, choices, structure

MOST_DIMENSIONS = 6  # of an array: PostgreSQL's MAXDIM
NOT_A_NUMBER: Final = frozenset(("NaN", "Infinity", "-Infinity"))  # JSON has no number for them: AWS sends their names

_NAMED = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
_PARAMETER = frozenset(structure("SqlParameter").members)
_HINTS = frozenset(choices("TypeHint"))


class WrongError(Exception):
    """A member that is not as it should be; the text goes on from where it stands."""


def parameter(given: Any) -> Parameter:
    """Return the parameter that a SqlParameter is. Raises WrongError."""
    if type(given) is not dict:
        raise WrongError(f" must be an object, got {kind(given)}")
    if not given.keys() <= _PARAMETER:
        raise WrongError(f" has the unknown member {unknown(given, _PARAMETER)}")
    name, value, hint = given.get("name"), given.get("value"), given.get("typeHint")
    if type(name) is not str or not name or "\0" in name:
        raise WrongError(f".name must be a string that is not empty, got {shown(name)}")
    if hint is not None and (type(hint) is not str or hint not in _HINTS):
        raise WrongError(f".typeHint must be one of {', '.join(choices('TypeHint'))}, got {shown(hint)}")
    if value is not None:
        try:
            value = _field(value)
        except WrongError as wrong:
            raise WrongError(f".value{wrong}") from None
    return Parameter(name, value, hint or "")


def _field(given: Any) -> Mapping[str, Any]:
    members = _only_member(given, _FIELDS)
    for member, content in members.items():
        try:
            _FIELDS[member](content)
        except WrongError as wrong:
            raise WrongError(f".{member}{wrong}") from None
    return members


def _only_member(given: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return a union, which has one member."""
    if type(given) is not dict:
        raise WrongError(f" must be an object, got {kind(given)}")
    if not given.keys() <= known.keys():
        raise WrongError(f" has the unknown member {unknown(given, known.keys())}")
    if len(given) != 1:
        raise WrongError(f" must have exactly one of {', '.join(known)}, got {', '.join(given) or 'none'}")
    return given


def _check_null(content: Any) -> None:
    if content is not True:
        got = "false: leave it out" if content is False else kind(content)
        raise WrongError(f" must be true, got {got}")


def _check_boolean(content: Any) -> None:
    if type(content) is not bool:
        raise WrongError(f" must be a boolean, got {kind(content)}")


def _check_long(content: Any) -> None:
    if type(content) is not int:
        raise WrongError(f" must be a whole number of 64 bits, got {kind(content)}")
    if not SMALLEST_LONG <= content <= LARGEST_LONG:
        raise WrongError(f" must be between {SMALLEST_LONG} and {LARGEST_LONG}, got {content}")


def _check_double(content: Any) -> None:
    found = type(content)
    if found is not float and found is not int and not (found is str and content in NOT_A_NUMBER):
        raise WrongError(f" must be a number, 'NaN', 'Infinity' or '-Infinity', got {kind(content)}")


def _check_string(content: Any) -> None:
    if type(content) is not str:
        raise WrongError(f" must be a string, got {kind(content)}")
    if "\0" in content:
        raise WrongError(" has a NUL character, which PostgreSQL's text cannot hold")


def _check_array(content: Any, dimensions: int = 1) -> None:
    if dimensions > MOST_DIMENSIONS:
        raise WrongError(f" is too deep: an array has at most {MOST_DIMENSIONS} dimensions")
    for member, elements in _only_member(content, _ARRAYS).items():
        if type(elements) is not list:
            raise WrongError(f".{member} must be a list, got {kind(elements)}")
        check, index = _ARRAYS[member], 0
        try:
            for index, element in enumerate(elements):  # noqa: B007 (told in the error)
                if element is None:
                    continue
                if check is None:
                    _check_array(element, dimensions + 1)
                else:
                    check(element)
        except WrongError as wrong:
            raise WrongError(f".{member}[{index}]{wrong}") from None


_FIELDS: Final[Mapping[str, Callable[[Any], None]]] = {
    "isNull": _check_null,
    "booleanValue": _check_boolean,
    "longValue": _check_long,
    "doubleValue": _check_double,
    "stringValue": _check_string,
    "blobValue": _check_string,  # base64: decoded where it is bound
    "arrayValue": _check_array,
}
# By member, how an element is checked; None: it is an array itself.
_ARRAYS: Final[Mapping[str, Callable[[Any], None] | None]] = {
    "booleanValues": _check_boolean,
    "longValues": _check_long,
    "doubleValues": _check_double,
    "stringValues": _check_string,
    "arrayValues": None,
}


def kind(value: Any) -> str:
    """Return what a value of JSON is, for a message."""
    return "nothing" if value is None else _NAMED[type(value)]


def shown(value: Any) -> str:
    """Return a value that is no data for a message, cut short; of a list or an object its kind only."""
    return f"{value!r:.40}" if isinstance(value, str | float) else kind(value)


def unknown(given: Mapping[str, Any], known: Collection[str]) -> str:
    """Return the first unknown member for a message, with what may be meant."""
    strange = sorted(given.keys() - known)[0]
    likely = difflib.get_close_matches(strange[:60], known, 1)  # a name may be as long as the request
    return f"{strange!r:.60}" + (f" (is {likely[0]} meant?)" if likely else f"; it may have {', '.join(sorted(known))}")
