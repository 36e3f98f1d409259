"""Refuses clients that give one wrong password after another, for a while: from PgBouncer's log to its hba file."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable, Collection

from emberpool_proxy.credentials.login_failures import LoginFailures, Pair, hba_rows
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.log_lines import ClientLoginFailed

OnRows = Callable[[tuple[str, ...]], Awaitable[object]]
ConnectedPairs = Callable[[], Awaitable[Collection[Pair]]]


class LoginGuard:
    """`known_users` says who is a user now; `connected` gives the pairs of all clients that are logged in.

    `connected` is asked only when a pair has reached the limit: it costs PgBouncer a row per client.
    """

    def __init__(
        self,
        known_users: Callable[[], Collection[str]],
        connected: ConnectedPairs,
        failures: LoginFailures | None = None,
    ) -> None:
        self._known_users = known_users
        self._connected = connected
        self._failures = failures or LoginFailures()
        self._over_limit: set[Pair] = set()
        self._woken = asyncio.Event()

    def client_login_failed(self, event: ClientLoginFailed) -> None:
        """Count a refused client. Call it for each one that PgBouncer logs."""
        # Of a user that does not exist, nothing can be guessed; and its name is text that a stranger chose.
        if event.cause != "credentials" or event.user not in self._known_users() or not _is_address(event.address):
            return
        pair = Pair(event.address, event.user)
        if self._failures.add(pair, time.monotonic()):
            self._over_limit.add(pair)
            self._woken.set()

    async def watch(self, on_rows: OnRows) -> None:
        """Call `on_rows` with the hba rows that refuse somebody, whenever they have changed, until cancelled."""
        delivered: tuple[str, ...] = ()
        while True:
            try:
                async with asyncio.timeout(self._failures.seconds_to_next_end(time.monotonic())):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            await self._refuse_those_over_limit()
            rows = hba_rows(self._failures.refused(time.monotonic()))
            if rows != delivered:
                await on_rows(rows)
                delivered = rows

    async def _refuse_those_over_limit(self) -> None:
        pairs, self._over_limit = self._over_limit, set()
        if not pairs:
            return
        good = await self._connected()
        for pair in sorted(pairs):
            fields = {"address": pair.address, "user": pair.user}
            if pair in good:
                self._failures.forget(pair)
                logger.warning(
                    "many wrong passwords from an address that has good clients of the same user, too: not refused",
                    extra={"fields": fields},
                )
                continue
            self._failures.refuse(pair, time.monotonic())
            logger.warning("too many wrong passwords: refused for a while", extra={"fields": fields})


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
