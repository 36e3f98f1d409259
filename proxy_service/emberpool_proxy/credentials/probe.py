"""Asks the database itself whether it takes a login: one own connection, closed at once."""

from __future__ import annotations

import asyncio
import re
from enum import Enum

import psycopg

from emberpool_proxy.credentials.snapshot import Login
from emberpool_proxy.database_login import log_in
from emberpool_proxy.settings import ProxySettings

PROOF_NAME = "emberpool-credentials"  # as pg_stat_activity shows a login that is tried
PROBE_SECONDS = 5.0
# libpq gives no SQLSTATE for a failed login. Where the server speaks another language this does not match: UNKNOWN.
REFUSED = re.compile(
    r"authentication failed for|role \"[^\"]*\" does not exist|is not permitted to log in|password expired"
)
STARTING = re.compile(r"system is (?:starting up|shutting down|in recovery|not yet accepting)")


class Verdict(Enum):
    """What the database said to a login."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNKNOWN = "unknown"  # it said no, but perhaps for another reason
    AWAY = "away"  # it could not be asked


class LoginProbe:
    """Tries logins at the database of `settings`, with its TLS mode; each try ends within PROBE_SECONDS.

    `turn` is shared with whoever else logs in for the agent: the budget has one such connection a task.
    """

    def __init__(self, settings: ProxySettings, turn: asyncio.Lock | None = None) -> None:
        self._settings = settings
        self._turn = turn or asyncio.Lock()

    async def __call__(self, login: Login) -> Verdict:
        """Return what the database says to a login. Never raises, never logs."""
        try:
            async with asyncio.timeout(PROBE_SECONDS), self._turn:
                connection = await log_in(
                    psycopg.AsyncConnection,
                    self._settings,
                    (login.user, login.password),
                    application_name=PROOF_NAME,
                    connect_timeout=int(PROBE_SECONDS),
                )
                await connection.close()
        except psycopg.Error as error:
            return _verdict(str(error))
        except TimeoutError:
            return Verdict.AWAY
        return Verdict.ACCEPTED


def _verdict(text: str) -> Verdict:
    if REFUSED.search(text):
        return Verdict.REFUSED
    # Only the server speaks of FATAL; libpq's own errors (refused, unreachable, TLS) have no severity.
    return Verdict.UNKNOWN if "FATAL" in text and not STARTING.search(text) else Verdict.AWAY
