"""Statements whose untyped parameters PostgreSQL could, or could not, find a type for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from enum import Enum

from psycopg.pq.abc import PGresult

from emberpool_proxy.data_endpoint.failures import is_of_parse, sqlstate
from emberpool_proxy.data_endpoint.values import Value

_MOST = 1000
_LONGEST = 8192  # bytes of SQL that are remembered
# Indeterminate datatype, ambiguous parameter, ambiguous function, no such function (of unknown), datatype mismatch
# (polymorphic of unknown).
_NO_TYPE_FOUND = frozenset({"42P18", "42P08", "42725", "42883", "42804"})

Key = tuple[str, bytes, tuple[int, ...]]  # entry, text, types


class Typing(Enum):
    """What is known of a statement."""

    UNKNOWN = 0
    FOUND = 1  # PostgreSQL finds the types
    FALLBACK = 2  # it does not: the fallbacks are sent


class Fallbacks:
    """Remembers it, so that a transaction pays for a savepoint only at a statement's first use."""

    def __init__(self) -> None:
        self._known: OrderedDict[Key, Typing] = OrderedDict()

    def typing(self, key: Key) -> Typing:
        """Return what is known."""
        return self._known.get(key, Typing.UNKNOWN)

    def learn(self, key: Key, typing: Typing) -> None:
        """Remember it."""
        if len(key[1]) > _LONGEST or self._known.get(key) is typing:
            return
        self._known[key] = typing
        if len(self._known) > _MOST:
            self._known.popitem(last=False)

    def forget(self, key: Key) -> None:
        """Find out anew: what it calls may have changed."""
        self._known.pop(key, None)


def is_untyped(values: Sequence[Value]) -> bool:
    """Whether there is a type to fall back to."""
    return any(value.fallback_oid and not value.oid for value in values)


def no_type_found(error: PGresult) -> bool:
    """Whether PostgreSQL may take the statement with the fallbacks; nothing of it has run."""
    return sqlstate(error) in _NO_TYPE_FOUND and is_of_parse(error)
