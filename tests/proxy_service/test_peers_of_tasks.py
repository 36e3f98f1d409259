"""Agents find one another, and a cancel request reaches the process that runs the query, wherever it arrives."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from emberpool_local.host.ports import free_port
from emberpool_local.lab.balancer import Balancer
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.agent.fleet import PEERS_PATH, Fleet
from emberpool_proxy.pgbouncer.admin import AdminConsole
from emberpool_proxy.pgbouncer.config import Peer
from emberpool_proxy.pgbouncer.rows import PeerRow
from emberpool_proxy.settings import ProxySettings

from ..local_lambda import wait_until as wait_until_async
from .conftest import Proxy, wait_until
from .tasks import Tasks

MakeProxy = Callable[..., Proxy]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
CANCELS = 24


# --- agents among themselves


@dataclass
class Agent:
    """A Fleet that is served and runs, without a PgBouncer."""

    fleet: Fleet
    address: str
    first_peer_id: int
    peers: tuple[Peer, ...] = ()

    async def take(self, peers: tuple[Peer, ...]) -> bool:
        self.peers = peers
        return True

    def knows(self, *others: Agent) -> bool:
        """Whether its PgBouncers' peers are exactly those of `others`."""
        return {peer.host for peer in self.peers} == {other.address for other in others}


class Agents:
    """Starts agents on addresses of their own; they share the ports, as tasks do."""

    def __init__(self, stack: AsyncExitStack, settings: Callable[..., ProxySettings]) -> None:
        self._stack = stack
        self._settings = settings
        self.ports = {"client_port": free_port(), "health_port": free_port()}

    async def start(self, number: int, **given: object) -> Agent:
        """Start agent 127.0.0.<number>; return it once it has chosen its ids. Its closing is the stack's."""
        return await self._stack.enter_async_context(self.running(number, **given))

    @asynccontextmanager
    async def running(
        self, number: int, resolve: Callable[[str], Awaitable[set[str]]] | None = None, **given: object
    ) -> AsyncIterator[Agent]:
        host = f"127.0.0.{number}"
        settings = self._settings(listen_host=host, fleet_check_seconds=0.1, **self.ports, **given)
        fleet = Fleet(settings, resolve) if resolve else Fleet(settings)
        async with served(fleet.answer, host, self.ports["health_port"]):
            agent = Agent(fleet, host, await fleet.choose_identity())
            running = asyncio.create_task(fleet.run(agent.take))
            yield agent
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def served(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]], host: str, port: int
) -> AsyncIterator[None]:
    app = web.Application()
    app.router.add_get(PEERS_PATH, answer)
    app.router.add_post(PEERS_PATH, answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    yield
    await runner.cleanup()


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[Agents]:
    def settings(**given: object) -> ProxySettings:
        return ProxySettings(
            **{
                "database_host": "127.0.0.1",
                "database_name": "app",
                "database_user": "app",
                "database_password": "not-used",
                "client_user": "function",
                "client_password": "not-used",
                "run_folder": str(tmp_path),
                **given,
            }
        )

    async with AsyncExitStack() as stack:
        yield Agents(stack, settings)


async def test_agents_know_all_by_asking_one(agents: Agents) -> None:
    """Agents that have only the first one's address learn of one another through it, and hold different ids."""
    first = await agents.start(2, fleet_members=f"127.0.0.2:{agents.ports['health_port']}")
    listed = f"127.0.0.2:{agents.ports['health_port']}"
    others = [await agents.start(number, fleet_members=listed) for number in range(3, 7)]
    everybody = [first, *others]
    for agent in everybody:
        rest = [other for other in everybody if other is not agent]
        await wait_until_async(f"{agent.address} does not know all", lambda: agent.knows(*rest))  # noqa: B023
    assert len({agent.first_peer_id for agent in everybody}) == 5


async def test_dns_that_answers_once_and_names_one_is_enough(agents: Agents) -> None:
    """Of two tasks only the second finds the first by name, once: both know each other from then on."""

    def answers(*names: set[str]) -> Callable[[str], Awaitable[set[str]]]:
        left = list(names)

        async def resolve(name: str) -> set[str]:
            assert name == "pool.internal"
            if not left:
                raise socket.gaierror("no answer")
            return left.pop(0)

        return resolve

    one = await agents.start(2, fleet_name="pool.internal", resolve=answers({"127.0.0.2"}))
    other = await agents.start(3, fleet_name="pool.internal", resolve=answers({"127.0.0.2"}))
    await wait_until_async("the two did not meet", lambda: one.knows(other) and other.knows(one))


async def test_member_that_leaves_is_dropped_and_one_that_joins_is_added(agents: Agents) -> None:
    """A task that has gone is no peer any more after a while; a new one is there at once, and others stay."""
    listed = ",".join(f"127.0.0.{number}:{agents.ports['health_port']}" for number in (2, 3))
    stays = await agents.start(2, fleet_members=listed)
    async with agents.running(3, fleet_members=listed) as leaves:
        await wait_until_async("the two did not meet", lambda: stays.knows(leaves))
    joins = await agents.start(4, fleet_members=listed)
    await wait_until_async("the new one is unknown", lambda: any(p.host == joins.address for p in stays.peers))
    await wait_until_async("the gone one is still a peer", lambda: stays.knows(joins))


async def test_members_that_hang_refuse_or_talk_nonsense_cost_nothing(agents: Agents) -> None:
    """A silent, an endless, a wrong, a failing and three refusing members do not keep two agents from meeting."""
    ok = b"HTTP/1.1 200 OK\r\n"
    strange = {
        4: b"",
        5: ok + b"Transfer-Encoding: chunked\r\n\r\n" + b"fffff\r\n" + b" " * 0xFFFFF + b"\r\n",
        6: ok + b'Content-Length: 45\r\n\r\n{"member": {"host": "/tmp"}, "known": [], "a":',
        7: b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
        8: b"\x00\xff not http at all",
    }
    port = agents.ports["health_port"]
    listed = ",".join(f"127.0.0.{number}:{port}" for number in range(2, 12))
    async with AsyncExitStack() as servers:
        for number, said in strange.items():
            await servers.enter_async_context(says(said, f"127.0.0.{number}", port))
        one = await agents.start(2, fleet_members=listed)
        other = await agents.start(3, fleet_members=listed)
        await wait_until_async("the two did not meet", lambda: one.knows(other) and other.knows(one), 20)


@asynccontextmanager
async def says(data: bytes, host: str, port: int) -> AsyncIterator[None]:
    """A server that says `data` to whoever connects and then nothing."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        with suppress(OSError):
            while await reader.read(65536):  # until the other side gives up
                pass
        writer.close()

    server = await asyncio.start_server(answer, host, port)
    yield
    server.close()
    await server.wait_closed()


async def test_agents_that_start_at_the_same_moment_hold_different_ids(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two whose addresses lead to the same ids ask at once: one of them takes others before its PgBouncers start."""
    monkeypatch.setattr("emberpool_proxy.agent.peers.hashlib.sha256", lambda _: _SameHash())
    port = agents.ports["health_port"]
    listed = f"127.0.0.2:{port},127.0.0.3:{port},127.0.0.4:{port}"
    established = await agents.start(2, fleet_members=listed)
    one, other = await asyncio.gather(*(agents.start(number, fleet_members=listed) for number in (3, 4)))
    assert len({established.first_peer_id, one.first_peer_id, other.first_peer_id}) == 3


class _SameHash:
    def digest(self) -> bytes:
        return bytes(8)


async def test_own_address_is_found_where_the_agent_listens_everywhere(agents: Agents) -> None:
    """On 0.0.0.0 a task calls itself by the address that it reaches the database from, unless it is told another."""
    for given, expected in (({}, "127.0.0.1"), ({"advertised_host": "10.9.8.7"}, "10.9.8.7")):
        fleet = Fleet(agents._settings(fleet_members="127.0.0.9:1", **given))
        await fleet.choose_identity()
        assert (
            json.loads((await fleet.answer(make_mocked_request("GET", PEERS_PATH))).body)["member"]["host"] == expected
        )


async def test_peers_that_pgbouncer_did_not_take_are_offered_again(agents: Agents) -> None:
    """A change that fails (PgBouncer starts, or its console hangs) is tried until it succeeds, also without a fleet."""
    settings = agents._settings(pgbouncer_processes=2, fleet_check_seconds=0.1)
    fleet = Fleet(settings)
    assert await fleet.choose_identity() == 1
    offered: list[tuple[Peer, ...]] = []

    async def take(peers: tuple[Peer, ...]) -> bool:
        offered.append(peers)
        return len(offered) == 3

    running = asyncio.create_task(fleet.run(take))
    await wait_until_async("the peers were not offered again", lambda: len(offered) == 3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert {peer.host for peer in offered[-1]} == {str(settings.engine_path(0)), str(settings.engine_path(1))}


async def test_agent_that_starts_again_keeps_its_ids(agents: Agents) -> None:
    """Its PgBouncers went on with them; nobody is asked."""
    settings = agents._settings(fleet_members="127.0.0.1:1", pgbouncer_processes=2)
    assert await Fleet(settings).choose_identity(77) == 77


async def test_report_of_somebody_else_is_not_believed(agents: Agents) -> None:
    """Who asks can say who it is, but not who another task is; garbage is refused."""
    agent = await agents.start(2, fleet_members="127.0.0.9:1")
    stranger = {**json.loads(await ask(agent, None))["member"], "host": "127.0.0.77"}
    await ask(agent, json.dumps({"member": stranger, "known": []}).encode())
    assert json.loads(await ask(agent, None))["known"] == []
    assert b"error" in await ask(agent, b"[1, 2]")


async def ask(agent: Agent, data: bytes | None) -> bytes:
    url = f"http://{agent.address}:{agent.fleet._settings.health_port}{PEERS_PATH}"
    method = "POST" if data else "GET"
    async with aiohttp.ClientSession() as session, session.request(method, url, data=data) as response:
        return await response.read()


# --- real tasks


@contextmanager
def real_tasks(make_proxy: MakeProxy, processes: int) -> Iterator[Tasks]:
    """Tasks that know one address to ask, behind a balancer that spreads connections blindly."""
    with Balancer() as balancer:
        tasks = Tasks(
            make_proxy,
            balancer,
            {"pgbouncer_processes": processes, "fleet_check_seconds": 0.2, "max_server_connections": 32},
        )
        tasks.settings["fleet_members"] = ",".join(f"127.0.0.{n}:{tasks.health_port}" for n in (2, 3, 4))
        yield tasks


def arrived(tasks: Tasks, task: Proxy, database: EmbeddedPostgres, count: int = CANCELS, seconds: int = 30) -> int:
    """Return how many of `count` cancel requests, each for a query of a connection of its own, ended their query."""
    conninfo = task.conninfo(port=str(tasks.balancer.port), sslmode="require", sslrootcert="")

    def statement(number: int) -> str:
        return f"select pg_sleep({seconds}) /* cancel {number} */"

    async def one(number: int, observer: psycopg.AsyncConnection[Any]) -> bool:
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
            query = asyncio.create_task(connection.execute(statement(number)))
            # A cancel request that overtakes its query is lost in PostgreSQL, too.
            while not query.done() and not await runs(observer, statement(number)):  # noqa: ASYNC110 (PostgreSQL's word)
                await asyncio.sleep(0.01)
            await connection.cancel_safe()
            try:
                await query
            except psycopg.errors.QueryCanceled:
                return True
            return False

    async def all_of_them() -> list[bool]:
        async with await psycopg.AsyncConnection.connect(database.conninfo(), autocommit=True) as observer:
            return await asyncio.gather(*(one(number, observer) for number in range(count)))

    return asyncio.run(all_of_them()).count(True)


async def runs(observer: psycopg.AsyncConnection[Any], statement: str) -> bool:
    """Whether the statement sleeps in PostgreSQL."""
    asked = "select 1 from pg_stat_activity where query = %s and wait_event = 'PgSleep'"
    return await (await observer.execute(asked, [statement])).fetchone() is not None


def wait_until_all_are_peers(tasks: list[Proxy]) -> None:
    """Wait until each PgBouncer process has all others of the fleet as peers."""
    processes = int(tasks[0].setting("pgbouncer_processes"))
    others = processes * len(tasks) - 1
    for task in tasks:
        for index in range(processes):
            wait_until(
                f"process {index} of {task.setting('listen_host')} does not have all as its peers",
                lambda: len(asyncio.run(peers_of_process(task, index))) == others,  # noqa: B023 (called at once)
            )


async def peers_of_process(task: Proxy, index: int) -> list[PeerRow]:
    """Return what one PgBouncer process of the task says itself."""
    folder = Path(task.setting("run_folder"))
    password = json.loads((folder / "agent.json").read_text())["agent_password"]
    async with await AdminConsole.open(str(folder / str(index)), int(task.setting("client_port")), password) as console:
        return await console.show_peers()


def test_every_cancel_reaches_the_process_that_runs_the_query(
    make_proxy: MakeProxy, database: EmbeddedPostgres
) -> None:
    """2 tasks of 2 processes that demand TLS: 24 of 24 cancels arrive, also after one task left and another joined."""
    with real_tasks(make_proxy, processes=2) as tasks:
        stays, leaves = tasks.start(), tasks.start()
        wait_until_all_are_peers([stays, leaves])
        assert arrived(tasks, stays, database) == CANCELS
        leaves.terminate()
        joins = tasks.start()
        wait_until("the task did not end", lambda: leaves.exit_code() is not None)
        tasks.balancer.remove(tasks.target(leaves))
        wait_until_all_are_peers([stays, joins])
        assert arrived(tasks, stays, database) == CANCELS


def test_cancels_are_lost_without_a_fleet(make_proxy: MakeProxy, database: EmbeddedPostgres) -> None:
    """The same without the fleet's settings loses some: what the other test counts would be noticed."""
    with real_tasks(make_proxy, processes=1) as tasks:
        tasks.settings.pop("fleet_members")
        one, _ = tasks.start(), tasks.start()
        assert arrived(tasks, one, database, 8, seconds=1) < 8


def test_processes_of_a_single_task_are_peers(make_proxy: MakeProxy, database: EmbeddedPostgres) -> None:
    """A task that is alone passes cancel requests on among its own processes, which share one port."""
    with real_tasks(make_proxy, processes=2) as tasks:
        tasks.settings.pop("fleet_members")
        alone = tasks.start()
        wait_until_all_are_peers([alone])
        assert arrived(tasks, alone, database, 8) == 8
