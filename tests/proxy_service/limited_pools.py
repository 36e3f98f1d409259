"""Real PgBouncers on files that the agent renders, with its limits, and clients that keep them busy."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emberpool_local.host.children import Child, start_child
from emberpool_local.host.ports import free_port
from emberpool_local.host.server_user import server_user
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.agent.budget_limits import Limits
from emberpool_proxy.agent.budget_reading import PoolKey, PoolUse
from emberpool_proxy.agent.engines import Engine, Engines
from emberpool_proxy.agent.rendering import Known, Rendering
from emberpool_proxy.control import Channel, EngineState
from emberpool_proxy.credentials.snapshot import ClientUser, Snapshot
from emberpool_proxy.pgbouncer.config import INI_FILE
from emberpool_proxy.pgbouncer.scram import verifier
from emberpool_proxy.settings import ProxySettings

from .bare_pgbouncer import AGENT_PASSWORD, CLIENT_PASSWORD, DATABASE, ROLE, ROLE_PASSWORD
from .watched_pool import until

FIRST, SECOND = DATABASE, "second"
BUSY_CLIENTS = Path(__file__).with_name("busy_clients.py")


def client_of(entry: str) -> str:
    """Return the user whose clients use an entry."""
    return f"client_of_{entry}"


@dataclass
class LimitedPools:
    """The agent's part of a task that limits its pools, and its PgBouncers."""

    settings: ProxySettings
    entries: tuple[str, ...]
    program: Path
    folder: Path
    children: dict[int, Child] = field(default_factory=dict)
    restarts: int = 0

    def __post_init__(self) -> None:
        self.new_agent()
        snapshot = Snapshot(
            {ROLE: ROLE_PASSWORD},
            tuple(ClientUser(client_of(name), verifier(CLIENT_PASSWORD), name, ROLE) for name in self.entries),
            dict.fromkeys(self.entries, ROLE),
        )
        self.rendering.start_with(snapshot, None)

    def new_agent(self) -> None:
        """Have an agent that knows nothing yet; its predecessor's snapshot is as in the files."""
        supervisor, agent = Channel.pair()
        self.channels = (supervisor, agent)
        self.engines = Engines(self.settings, AGENT_PASSWORD, Channel(agent))
        known = self.rendering.known if hasattr(self, "rendering") else Known()
        self.rendering = Rendering(self.settings, verifier(AGENT_PASSWORD), Known(known.snapshot))
        self.limits = Limits(self.settings, self.engines, self.rendering)

    @property
    def engine(self) -> Engine:
        return self.engines.all[0]

    def key(self, entry: str = FIRST, process: int = 0) -> PoolKey:
        return PoolKey(process, entry)

    def conninfo(self, entry: str = FIRST) -> str:
        return (
            f"host=127.0.0.1 port={self.settings.client_port} dbname={entry} user={client_of(entry)} "
            f"password={CLIENT_PASSWORD} sslmode=disable"
        )

    async def start(self, index: int = 0) -> None:
        """Start a PgBouncer, again if it has ended, and wait until the agent has attached to it."""
        log = self.folder / f"pgbouncer-{index}-{self.restarts}.log"
        self.children[index] = start_child(
            [self.program, self.settings.engine_path(index) / INI_FILE], log_path=log, as_user=server_user()
        )
        self.tell_supervised()
        await until("PgBouncer does not answer", lambda: self.engines.all[index].is_prepared)

    def tell_supervised(self) -> None:
        """Tell the agent which processes run, as the supervisor does."""
        processes = range(self.settings.pgbouncer_processes)
        pids = [child.pid if (child := self.children.get(index)) and child.is_running else 0 for index in processes]
        self.engines.update(tuple(EngineState(index, pid, self.restarts) for index, pid in enumerate(pids)))

    async def kill(self, index: int = 0) -> None:
        """Kill a PgBouncer outright."""
        self.children[index].stop(signal.SIGKILL)
        self.restarts += 1

    async def set(self, limit: int, entry: str = FIRST) -> bool:
        """Give a pool a limit; it shrinks to it if need be."""
        await self.limits.read()
        return await self.limits.apply({self.key(entry): limit}, frozenset({self.key(entry)}))

    async def use(self, entry: str = FIRST, process: int = 0) -> PoolUse:
        return (await self.limits.read())[self.key(entry, process)]

    async def shrink(self, limits: Mapping[PoolKey, int], within_seconds: float = 5.0) -> None:
        """Do as the agent's loop does, until no pool has more connections than its limit."""
        async with asyncio.timeout(within_seconds):
            while True:
                uses = await self.limits.read()
                wanted = {key: use.limit for key, use in uses.items()} | dict(limits)
                await self.limits.apply(wanted, frozenset(key for key in uses if uses[key].servers > wanted[key]))
                if all(use.servers <= wanted[key] for key, use in uses.items()):
                    return
                await asyncio.sleep(0.05)

    async def grow(self, limit: int, entry: str = FIRST) -> None:
        """Raise a limit, and wait until the busy clients have so many connections."""
        await self.set(limit, entry)
        async with asyncio.timeout(10):
            while await self._logged_in(entry) < limit:  # noqa: ASYNC110 (PgBouncer tells it only when asked)
                await asyncio.sleep(0.01)

    async def _logged_in(self, entry: str) -> int:
        rows = await self.engine.console.show_pools()
        return sum(row.server_connections - row.sv_login for row in rows if row.database == entry)

    async def close(self) -> None:
        await self.limits.close()
        await self.engines.close()
        for child in self.children.values():
            child.stop(signal.SIGQUIT)
        supervisor, agent = self.channels
        agent.close()
        del supervisor


@asynccontextmanager
async def limited_pools(
    program: PgbouncerProgram, postgres: EmbeddedPostgres, entries: tuple[str, ...] = (FIRST,), **changes: Any
) -> AsyncIterator[LimitedPools]:
    """Run the PgBouncers of one task with these entries, all of them of one role."""
    with TempFolder("limits") as temp:
        given: dict[str, Any] = {
            "database_host": postgres.host,
            "database_port": postgres.port,
            "database_name": DATABASE,
            "database_user": ROLE,
            "database_password": ROLE_PASSWORD,
            "client_user": "function",
            "client_password": CLIENT_PASSWORD,
            "client_tls_mode": "disable",
            "server_tls_mode": "disable",
            "listen_host": "127.0.0.1",
            "client_port": free_port(),
            "max_server_connections": 50,
            "run_folder": str(temp / "run"),
            **changes,
        }
        pools = LimitedPools(ProxySettings(**given), entries, program.path, temp)
        try:
            for index in range(pools.settings.pgbouncer_processes):
                await pools.start(index)
            yield pools
        finally:
            await pools.close()
            shutil.rmtree(temp / "run", ignore_errors=True)


@dataclass
class Busy:
    """What clients did that were busy all the time."""

    transactions: int = 0
    errors: list[str] = field(default_factory=list)


@contextmanager
def busy_clients(conninfo: str, clients: int = 50, statement: str = "select pg_sleep(0.003)") -> Iterator[Busy]:
    """Run short transactions all the time, in a process of their own; the outcome is there after the context."""
    seen = Busy()
    process = subprocess.Popen(
        [sys.executable, BUSY_CLIENTS, str(clients), statement],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        process.stdin.write(conninfo + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "busy\n"
        yield seen
    finally:
        out, _ = process.communicate(timeout=20)  # it ends with its input
        seen.__dict__.update(json.loads(out.splitlines()[-1]))
