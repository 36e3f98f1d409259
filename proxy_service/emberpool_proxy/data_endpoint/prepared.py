"""Which statements of a session are prepared by name: those that it sees again.

PostgreSQL then saves the parse and the plan, 25 of 58 us for a row by its key; PgBouncer pays 2 us. PgBouncer prepares
by the text, once on each server connection for all its clients.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

_MOST = 100
_LONGEST = 8192  # bytes of SQL
_GENERATIONS = 64

Key = tuple[bytes, tuple[int, ...]]  # text and types


class Use(NamedTuple):
    """How a statement is sent. Without a name: as it is. `text` is to be prepared first, `closed` is closed after."""

    name: bytes = b""
    text: bytes = b""
    closed: bytes = b""


AS_IT_IS = Use()


class PreparedStatements:
    """The names that a session has given, the least used forgotten first."""

    def __init__(self) -> None:
        self._names: OrderedDict[Key, bytes | None] = OrderedDict()  # b"": seen once; None: never to be prepared
        self._given = 0
        self._generation = 0

    def use(self, key: Key) -> Use:
        """Return how to send the statement now."""
        if len(key[0]) > _LONGEST:
            return AS_IT_IS
        names = self._names
        if key not in names:
            names[key] = b""
            return self._oldest() if len(names) > _MOST else AS_IT_IS
        name = names[key]
        names.move_to_end(key)
        if name is None:
            return AS_IT_IS
        if name:
            return Use(name)
        self._given += 1
        names[key] = name = b"e%d" % self._given
        return Use(name, key[0] + b" " * self._generation)

    def failed(self, key: Key) -> None:
        """Never prepare this statement: PgBouncer keeps each name whose preparation PostgreSQL has refused."""
        self._names[key] = None

    def renew(self) -> None:
        """Prepare everything anew: PostgreSQL no longer runs what it had prepared.

        PgBouncer would find the old one again by its text, so the text gets another length.
        """
        self._generation = (self._generation + 1) % _GENERATIONS
        self._names.clear()

    def _oldest(self) -> Use:
        _, name = self._names.popitem(last=False)
        return Use(closed=name) if name else AS_IT_IS
