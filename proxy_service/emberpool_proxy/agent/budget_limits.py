"""Reads what this task's pools use, and sets how many server connections each may have.

A task with one entry in [databases] has its limits SET (0.1 ms of PgBouncer's thread); with several each line has its
own, and a RELOAD reads them (1 to 2 ms). What was told is written to Rendering's files first: a RELOAD for any reason
carries it. How a pool comes down to its limit is budget_closing's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import psycopg

from emberpool_proxy.agent.budget_closing import CAREFUL_CLOSE_SECONDS, CLOSE_SECONDS, Excess, closing
from emberpool_proxy.agent.budget_reading import PoolKey, PoolUse
from emberpool_proxy.agent.budget_share import share_out
from emberpool_proxy.agent.engines import Engine, Engines
from emberpool_proxy.agent.rendering import Rendering
from emberpool_proxy.errors import RunFolderUnusable
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.admin import AdminConsole
from emberpool_proxy.pgbouncer.config import LIFETIME, LIMIT, POOL_SIZE, START_LIMIT, RunningTerms, timeouts
from emberpool_proxy.pgbouncer.rows import PoolRow
from emberpool_proxy.pgbouncer.session_state import ORPHANS_END_AFTER_MS
from emberpool_proxy.settings import ProxySettings

CONSOLE_SECONDS = 1.0
BACKENDS_END_WITHIN_SECONDS = ORPHANS_END_AFTER_MS / 1000 + 0.25


class Limits:
    """The limits of all pools of all PgBouncer processes of this task."""

    def __init__(self, settings: ProxySettings, engines: Engines, rendering: Rendering) -> None:
        self._settings = settings
        self._engines = engines
        self._rendering = rendering
        self._consoles: dict[int, _Consoles] = {}  # by process index
        self._closing: set[asyncio.Future[None]] = set()
        self._pids: dict[int, int] = {}
        self._uses: dict[PoolKey, PoolUse] = {}
        self._seen: dict[PoolKey, Excess] = {}
        self._most: dict[PoolKey, int] = {}  # the highest limit since the pool was seen
        self._is_unwritable = False
        self._lingering: dict[int, tuple[int, float]] = {}  # by process index: backends, until when

    async def read(self) -> dict[PoolKey, PoolUse]:
        """Ask every console what its pools do.

        Pools of a process that does not run have the limit that they will start with. One that does not answer counts
        as it was last seen.
        """
        self._notice()
        await asyncio.gather(*(self._read(engine) for engine in self._engines.all))
        self._notice()  # one that has ended meanwhile has what its successor starts with
        return dict(self._uses)

    async def apply(self, limits: Mapping[PoolKey, int], shrink: frozenset[PoolKey]) -> bool:
        """Put `limits` (1 or more each) in force; return whether every PgBouncer has them.

        Pools of `shrink` close the connections that are too many as soon as these are free. Call it again after each
        reading while there are any. What is in force already costs nothing.
        """
        self._notice()
        return all(await asyncio.gather(*(self._apply(engine, limits, shrink) for engine in self._engines.all)))

    def lower_at_once(self) -> None:
        """Have every PgBouncer open no connection above the floor from now on, without waiting for its answer."""
        self._notice()
        limits = {key: use.limit for key, use in self._uses.items()}
        for engine in self._engines.all:
            if terms := self._rendering.running(engine):  # newer than the last reading
                limits |= {PoolKey(engine.index, entry): terms.limit(entry) for entry in terms.limits}
        total = max(self._settings.floor - (len(limits) - 1), len(limits))
        if sum(limits.values()) <= total:
            return
        limits = {key: min(limit, limits[key]) for key, limit in share_out(total, limits).items()}
        for engine in self._engines.all:
            terms, consoles = self._rendering.running(engine), self._consoles.get(engine.index)
            if terms is None or consoles is None:
                continue
            wanted = self._wanted(engine, terms, limits, frozenset())
            consoles.told = None
            if self._is_written(engine, wanted) or len(wanted.limits) == 1:
                with suppress(psycopg.Error):  # the next step says it again
                    consoles.urgent.send(*self._commands(engine, wanted))

    def lingering(self) -> int:
        """Return how many backends of a PgBouncer that has just died may still be there."""
        self._notice()
        now = time.monotonic()
        return sum(count for count, until in self._lingering.values() if until > now)

    async def close(self) -> None:
        """Close the consoles; PgBouncer keeps what is in force."""
        for engine in self._engines.all:
            self._drop(engine)
        await asyncio.gather(*self._closing, return_exceptions=True)

    # --- reading

    def _notice(self) -> None:
        """Take in which processes have ended: what they had may linger, and their successors start small."""
        for engine in self._engines.all:
            pid = self._pids.get(engine.index, 0)
            if engine.pid != pid:
                if pid:
                    self._expect_growth(engine)
                    uses = [use for key, use in self._uses.items() if key.process == engine.index]
                    until = time.monotonic() + BACKENDS_END_WITHIN_SECONDS
                    self._lingering[engine.index] = (sum(max(use.limit, use.servers) for use in uses), until)
                self._pids[engine.index] = engine.pid
                self._drop(engine)
                self._set_uses(engine, {})
        self._rendering.forget_ended(self._engines.all)

    def _set_uses(self, engine: Engine, uses: Mapping[str, PoolUse]) -> None:
        start = PoolUse(START_LIMIT, 0, 0, 0, is_settling=self._is_settling(engine))
        self._uses = {key: use for key, use in self._uses.items() if key.process != engine.index}
        for entry in {*self._rendering.entries, *uses}:
            key = PoolKey(engine.index, entry)
            self._uses[key] = uses.get(entry, start)
            self._most.pop(key, None)

    def _expect_growth(self, engine: Engine) -> None:
        """Count a process that cannot be asked as having all that it was allowed since it was seen."""
        for key, use in self._uses.items():
            if key.process == engine.index:
                self._uses[key] = replace(use, servers=max(use.servers, self._most.get(key, 0)))

    def _is_settling(self, engine: Engine) -> bool:
        return self._lingering.get(engine.index, (0, 0.0))[1] > time.monotonic()

    async def _read(self, engine: Engine) -> None:
        pid = engine.pid
        try:
            async with asyncio.timeout(CONSOLE_SECONDS):
                consoles = await self._opened(engine)
                if consoles is None:
                    return
                terms = self._rendering.running(engine)
                if terms is None or not self._rendering.entries.keys() <= terms.limits.keys():
                    terms = self._rendering.learn(engine, await consoles.asking.show_databases())
                rows = await consoles.asking.show_pools()
        except (psycopg.Error, TimeoutError):
            self._expect_growth(engine)
            self._drop_console_that_ended(engine)
            return
        if engine.pid == pid:
            self._take_over(engine, terms, rows)

    def _take_over(self, engine: Engine, terms: RunningTerms, rows: list[PoolRow]) -> None:
        settling = self._is_settling(engine)
        uses = {
            entry: PoolUse(limit, 0, 0, 0, is_settling=settling)
            for entry, limit in terms.limits.items()
            if entry in self._rendering.entries
        }
        seen = {entry: Excess(use.limit, 0, 0) for entry, use in uses.items()}
        for row in rows:
            # A client that logged in while the entry had another role keeps that role's pool: the limit is of both.
            if row.database in uses:
                uses[row.database] = _sum(uses[row.database], row)
                seen[row.database] = _with(seen[row.database], row)
        self._set_uses(engine, uses)
        self._seen |= {PoolKey(engine.index, entry): pool for entry, pool in seen.items()}

    async def _opened(self, engine: Engine) -> _Consoles | None:
        """Return the consoles of `engine`, the limits' own: others' commands may block. None before it answers."""
        consoles = self._consoles.get(engine.index)
        if consoles is None and engine.console is not None:
            asking = await self._engines.connect(engine)
            consoles = _Consoles(asking, await self._engines.connect(engine))
            self._consoles[engine.index] = consoles
        return consoles

    def _drop_console_that_ended(self, engine: Engine) -> None:
        consoles = self._consoles.get(engine.index)
        if consoles and not consoles.are_open:
            self._drop(engine)

    def _drop(self, engine: Engine) -> None:
        if consoles := self._consoles.pop(engine.index, None):
            closing_them = asyncio.ensure_future(consoles.close())
            self._closing.add(closing_them)
            closing_them.add_done_callback(self._closing.discard)

    # --- telling

    async def _apply(self, engine: Engine, limits: Mapping[PoolKey, int], shrink: frozenset[PoolKey]) -> bool:
        terms, consoles = self._rendering.running(engine), self._consoles.get(engine.index)
        if terms is None or consoles is None:
            return False
        wanted = self._wanted(engine, terms, limits, shrink)
        if consoles.told and _in_files(consoles.told) == _in_files(wanted) and not wanted.shrinking:
            return True
        told, consoles.told = consoles.told, None
        if told and len(told.limits) != len(wanted.limits):
            told = None  # another way of telling it
        for entry, limit in wanted.limits.items():
            key = PoolKey(engine.index, entry)
            self._most[key] = max(self._most.get(key, terms.limit(entry)), limit)
        if not self._is_written(engine, wanted) and len(wanted.limits) > 1:
            return False
        try:
            async with asyncio.timeout(CONSOLE_SECONDS):
                await self._say(engine, consoles.asking, wanted, told)
                while (newer := self._rendering.running(engine)) not in (None, wanted):
                    # Lowered at once meanwhile: PgBouncer may have heard that first, and this after it.
                    wanted = newer
                    await self._say(engine, consoles.asking, wanted, None)
        except (psycopg.Error, TimeoutError):
            self._has_not_answered(engine, wanted)
            return False
        consoles.told = wanted
        return True

    def _is_written(self, engine: Engine, wanted: RunningTerms) -> bool:
        """Write it down, and return whether that was possible: what is SET works until the next RELOAD without."""
        try:
            self._rendering.tell(engine, wanted)
        except RunFolderUnusable as error:
            if not self._is_unwritable:
                logger.error("%s; limits of server connections cannot be written", error)
            self._is_unwritable = True
            return False
        self._is_unwritable = False
        return True

    def _has_not_answered(self, engine: Engine, wanted: RunningTerms) -> None:
        self._rendering.unlearn(engine)
        for entry in wanted.limits:
            key = PoolKey(engine.index, entry)
            if use := self._uses.get(key):  # it may or may not have heard it
                self._uses[key] = replace(use, limit=max(use.limit, wanted.limit(entry)))
        self._drop_console_that_ended(engine)

    def _wanted(
        self, engine: Engine, terms: RunningTerms, limits: Mapping[PoolKey, int], shrink: frozenset[PoolKey]
    ) -> RunningTerms:
        wanted = {entry: terms.limit(entry) for entry in self._rendering.entries}
        wanted |= {key.entry: max(limit, 1) for key, limit in limits.items() if key.process == engine.index}
        pools = {}
        for key in shrink:
            seen = self._seen.get(key)
            if key.process == engine.index and seen and seen.servers > wanted[key.entry]:
                pool = replace(seen, limit=wanted[key.entry])
                if not pool.is_idle_enough:
                    pools[key.entry] = pool
        terms = replace(terms, limits=wanted, pool_sizes={}, shrinking=frozenset(pools), shrink_seconds=0.0)
        if not pools:
            return terms
        lifetime, sizes = closing(pools, CAREFUL_CLOSE_SECONDS if LIFETIME in terms.settings else CLOSE_SECONDS)
        return replace(terms, pool_sizes=sizes, shrink_seconds=lifetime)

    async def _say(
        self, engine: Engine, console: AdminConsole, wanted: RunningTerms, told: RunningTerms | None
    ) -> None:
        if len(wanted.limits) == 1:
            for name, value in _limits_of_one(wanted).items():
                if told is None or _limits_of_one(told).get(name) != value:
                    await console.set(name, value)
        elif told is None or _in_files(told) != _in_files(wanted):
            await console.reload(self._rendering.running_ini(engine))
        # Each time while something shrinks: a RELOAD or the login gate may have SET another.
        if told is None or told.shrinking or wanted.shrinking:
            await console.set(LIFETIME, timeouts(self._settings, wanted)[LIFETIME])

    def _commands(self, engine: Engine, wanted: RunningTerms) -> list[str]:
        if len(wanted.limits) == 1:
            return [f"SET {name} = '{value}'" for name, value in _limits_of_one(wanted).items()]
        return [f"SET conffile = '{self._rendering.running_ini(engine)}'", "RELOAD"]


@dataclass
class _Consoles:
    """Two consoles of one process; `urgent` is only sent to. `told` is what it was told last, if that is certain."""

    asking: AdminConsole
    urgent: AdminConsole
    told: RunningTerms | None = None

    @property
    def are_open(self) -> bool:
        return self.asking.is_open and self.urgent.is_open

    async def close(self) -> None:
        await self.asking.close()
        await self.urgent.close()


def _in_files(terms: RunningTerms) -> tuple[object, ...]:
    return terms.limits, terms.pool_sizes, terms.shrinking


def _limits_of_one(terms: RunningTerms) -> dict[str, str]:
    entry = next(iter(terms.limits))
    return {LIMIT: str(terms.limit(entry)), POOL_SIZE: str(terms.pool_size(entry))}


def _with(pool: Excess, row: PoolRow) -> Excess:
    # A connection for a cancel request is no backend, and ends by itself.
    servers = pool.servers + row.server_connections - row.sv_active_cancel
    return replace(pool, servers=servers, idle=pool.idle + row.sv_idle + row.sv_used + row.sv_tested)


def _sum(use: PoolUse, row: PoolRow) -> PoolUse:
    return replace(
        use,
        servers=use.servers + row.server_connections,
        busy=use.busy + row.sv_active,
        waiting=use.waiting + row.cl_waiting,
        max_wait_seconds=max(use.max_wait_seconds, row.max_wait_seconds),
    )
