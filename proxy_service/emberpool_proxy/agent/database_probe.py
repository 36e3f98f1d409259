"""Asks the database how it is by a login of our own, straight to it: one short connection, and none is kept."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections import deque
from collections.abc import Callable

import psycopg

from emberpool_proxy.agent.database_state import Answer
from emberpool_proxy.agent.pool_connection import PROBE_NAME
from emberpool_proxy.database_login import log_in
from emberpool_proxy.errors import words_of
from emberpool_proxy.settings import ProxySettings

QUESTION = "select pg_is_in_recovery()"
PROBE_DEADLINE_SECONDS = 3.0  # as long as PgBouncer gives a login: a database that has just started is slow
RESOLVE_SECONDS = 1.0
KEPT_RESOLUTIONS = 3  # a name with many addresses may be answered with another part of them each time

# The database's own words, and PgBouncer's, for "nobody can log in now" (SQLSTATE 57P01 to 57P03).
AWAY_WORDS = re.compile(
    r"starting up|shutting down|is not (?:yet )?accepting connections|in recovery mode|not currently accepting"
    r"|terminating connection|recovery state has not been yet reached|hot standby mode is disabled"
)
# libpq puts no SQLSTATE on a refused login; a server that says no to us is there.
SAID_NO = re.compile(r"FATAL:|SSL|authentication|SCRAM|channel binding")


class DatabaseProbe:
    """Asks the database of `settings`. `credentials` is called for each login and returns (user, password).

    `turn` is shared with whoever else logs in for the agent: the budget has one such connection a task.
    """

    def __init__(
        self,
        settings: ProxySettings,
        credentials: Callable[[], tuple[str, str]],
        turn: asyncio.Lock | None = None,
    ) -> None:
        self._settings = settings
        self._turn = turn or asyncio.Lock()
        self._credentials = credentials
        self._resolutions: deque[frozenset[str]] = deque(maxlen=KEPT_RESOLUTIONS)

    async def ask(self) -> tuple[Answer, str]:
        """Return what the database answers within PROBE_DEADLINE_SECONDS, and its words if it is not well."""
        try:
            async with asyncio.timeout(PROBE_DEADLINE_SECONDS), self._turn:
                connection = await log_in(
                    psycopg.AsyncConnection, self._settings, self._credentials(), application_name=PROBE_NAME
                )
                try:
                    return answer_of(await (await connection.execute(QUESTION)).fetchone()), ""
                finally:
                    await connection.close()
        except TimeoutError:
            return Answer.SILENT, f"no answer within {PROBE_DEADLINE_SECONDS:g} s"
        except (psycopg.Error, OSError) as error:
            words = words_of(error)
            return _meaning(words), words

    async def addresses(self) -> frozenset[str]:
        """Return the addresses that the database's name had of late; empty when it has none, or is no name."""
        host = self._settings.database_host
        if host.startswith("/") or _is_address(host):
            return frozenset()
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError):
            return frozenset()
        self._resolutions.append(frozenset(str(address[0]) for *_, address in found))
        return frozenset().union(*self._resolutions)


def answer_of(row: tuple[object, ...] | None) -> Answer:
    """Return what the answer to QUESTION means."""
    return Answer.READ_ONLY if row == (True,) else Answer.WRITABLE


def _meaning(words: str) -> Answer:
    if AWAY_WORDS.search(words):
        return Answer.AWAY
    return Answer.REFUSED if SAID_NO.search(words) else Answer.AWAY


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
