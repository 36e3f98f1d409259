"""Has PgBouncer refuse, for a while, who keeps giving wrong passwords. Whom and for how long is login_failures'."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Container

import psycopg

from emberpool_proxy.agent.engines import Engines
from emberpool_proxy.credentials.login_failures import LoginFailures, Pair, hba_rows
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.log_lines import ClientLoginFailed, Event

OnChange = Callable[[tuple[str, ...]], Awaitable[object]]


class Refusals:
    """Counts the wrong passwords that PgBouncer logs; `on_change` gets the hba rows that refuse."""

    def __init__(
        self, engines: Engines, client_names: Callable[[], Container[str]], failures: LoginFailures | None = None
    ) -> None:
        self._engines = engines
        self._client_names = client_names
        self._failures = failures or LoginFailures()
        self._at_limit: set[Pair] = set()
        self._woken = asyncio.Event()

    def count(self, _index: int, event: Event) -> None:
        """Count an event of PgBouncer's log if it is a wrong password."""
        if not isinstance(event, ClientLoginFailed) or event.cause != "credentials" or not event.address:
            return
        if event.user not in self._client_names():
            return  # nobody gets in by that name, however often it is tried
        pair = Pair(event.address, event.user)
        if self._failures.add(pair, asyncio.get_running_loop().time()):
            self._at_limit.add(pair)
            self._woken.set()

    async def run(self, on_change: OnChange) -> None:
        """Refuse and let go until cancelled."""
        loop = asyncio.get_running_loop()
        refused: tuple[Pair, ...] = ()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._failures.seconds_to_next_end(loop.time())):
                    await self._woken.wait()
            self._woken.clear()
            at_limit, self._at_limit = self._at_limit, set()
            good = await self._connected() if at_limit else set()
            for pair in sorted(at_limit):
                if pair in good:
                    self._failures.forget(pair)  # one address for many: refusing it would refuse the good ones
                    continue
                self._failures.refuse(pair, loop.time())
                logger.warning(
                    "too many wrong passwords: refused for a while",
                    extra={"fields": {"user": pair.user, "address": pair.address}},
                )
            if (now_refused := self._failures.refused(loop.time())) != refused:
                refused = now_refused
                await on_change(hba_rows(refused))

    async def _connected(self) -> set[Pair]:
        found: set[Pair] = set()
        for engine in self._engines.all:
            if engine.console is None:
                continue
            try:
                rows = await engine.console.show_clients()
            except psycopg.Error:
                continue
            found |= {Pair(row.addr, row.user) for row in rows}
        return found
