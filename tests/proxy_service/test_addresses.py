"""IPv6 with the real parts, on ::1: who listens, who is reached, and by which address the tasks know each other."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
from aiohttp import web

from emberpool_local.host.ports import free_port
from emberpool_local.lab.balancer import Balancer
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.addresses import as_known, listening
from emberpool_proxy.agent.fleet import PEERS_PATH, Fleet, _own_address
from emberpool_proxy.pgbouncer.config import Peer
from emberpool_proxy.settings import EVERY_ADDRESS, ProxySettings, SettingsInvalid

from ..local_lambda import wait_until as wait_until_async
from .conftest import DATABASE, DATABASE_PASSWORD, DATABASE_USER, Proxy, proxies, wait_until
from .tasks import Tasks
from .test_peers_of_tasks import arrived, wait_until_all_are_peers

MakeProxy = Callable[..., Proxy]
IPV4, IPV6 = "127.0.0.1", "::1"
CANCELS = 12


def is_ready(host: str, proxy: Proxy) -> bool:
    """Whether /readyz answers 200 at an address."""
    shown = f"[{host}]" if ":" in host else host
    try:
        with urllib.request.urlopen(f"http://{shown}:{proxy.setting('health_port')}/readyz", timeout=5):
            return True
    except OSError:
        return False


def started(proxy: Proxy, host: str = IPV6) -> Proxy:
    proxy.start()
    wait_until(f"not ready at {host}", lambda: proxy.exit_code() is not None or is_ready(host, proxy))
    assert proxy.exit_code() is None, proxy.printed()
    return proxy


def answer_at(host: str, proxy: Proxy) -> Any:
    """What a client gets that verifies the proxy by the very address that it connects to."""
    with psycopg.connect(proxy.conninfo(host=host)) as connection:
        return connection.execute("select 1").fetchone()


# --- who listens


@pytest.mark.parametrize("processes", [1, 2])
def test_task_listens_on_addresses_of_both_kinds(make_proxy: MakeProxy, processes: int) -> None:
    """Health checks and clients are answered by IPv4 and by IPv6, and the certificate is for both."""
    proxy = started(make_proxy(listen_host=EVERY_ADDRESS, pgbouncer_processes=processes))
    assert is_ready(IPV4, proxy)
    assert answer_at(IPV4, proxy) == answer_at(IPV6, proxy) == (1,)


def test_task_listens_on_one_ipv6_address(make_proxy: MakeProxy) -> None:
    """An address of that kind alone is enough, and nothing answers by the other."""
    proxy = started(make_proxy(listen_host=IPV6))
    assert not is_ready(IPV4, proxy)
    assert answer_at(IPV6, proxy) == (1,)
    with pytest.raises(psycopg.OperationalError, match="refused"):
        answer_at(IPV4, proxy)


@pytest.mark.parametrize("host", [IPV4, IPV6])
@pytest.mark.parametrize("port", ["client_port", "health_port"])
def test_port_that_is_taken_by_either_kind_is_one_clear_error(make_proxy: MakeProxy, host: str, port: str) -> None:
    """The proxy ends and names the port and its setting."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as taken:
        proxy = make_proxy(listen_host=EVERY_ADDRESS, **{port: taken.getsockname()[1]}).start()
        wait_until("the proxy did not end", lambda: proxy.exit_code() is not None)
    assert proxy.exit_code() == 1
    assert f"set EMBERPOOL_PROXY_{port.upper()}" in proxy.printed()


def test_other_words_for_an_address_are_refused() -> None:
    """PgBouncer would take lists, and our own listener would not."""
    with pytest.raises(SettingsInvalid, match=r"EMBERPOOL_PROXY_LISTEN_HOST must match .* got '0.0.0.0,::'"):
        settings(listen_host="0.0.0.0,::")


# --- who is reached


@pytest.fixture(scope="module")
def database_with_ipv6() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that listens on ::1, too."""
    with EmbeddedPostgres(settings={"listen_addresses": f"{IPV4}, {IPV6}"}) as postgres:
        postgres.create_role_and_database(DATABASE_USER, DATABASE_PASSWORD, DATABASE)
        yield postgres


def test_database_may_be_an_ipv6_address(
    database_with_ipv6: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram, tmp_path: Path
) -> None:
    """PgBouncer and the agent's own connection reach it there; a client over IPv6 gets its answer."""
    with proxies(database_with_ipv6, pgbouncer_program, tmp_path) as make:
        budget = {"most_tasks_alive": 2, "max_server_connections": 12, "reserved_connections": 0}
        proxy = started(make(database_host=IPV6, listen_host=EVERY_ADDRESS, **budget))
        with psycopg.connect(proxy.conninfo(host=IPV6)) as connection:
            assert connection.execute("select host(inet_server_addr())").fetchone() == (IPV6,)


def test_cancel_requests_find_their_way_between_ipv6_peers(make_proxy: MakeProxy, database: EmbeddedPostgres) -> None:
    """Two tasks that list each other as [::1]:port: each cancel reaches its query, and `fleet` sees both."""
    ports = [(free_port(), free_port()) for _ in range(2)]
    members = ",".join(f"[{IPV6}]:{health_port}" for _, health_port in ports)
    with Balancer() as balancer:
        given = {"fleet_members": members, "fleet_check_seconds": 0.2, "max_server_connections": 32}
        tasks = Tasks(make_proxy, balancer, given)
        fleet = []
        for client_port, health_port in ports:
            own = {"listen_host": IPV6, "client_port": client_port, "health_port": health_port}
            fleet.append(started(make_proxy(**own, pgbouncer_processes=1, **given)))
            balancer.add((IPV6, client_port, health_port))
        wait_until_all_are_peers(fleet)
        assert arrived(tasks, fleet[0], database, CANCELS) == CANCELS
        command = [
            sys.executable,
            "-m",
            "emberpool_proxy",
            "fleet",
            "--json",
            "--url",
            f"http://[{IPV6}]:{ports[0][1]}",
        ]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        seen = {task["url"] for task in json.loads(shown)["tasks"] if not task["problem"]}
        assert seen == {f"http://[{IPV6}]:{health_port}" for _, health_port in ports}


# --- by which address the tasks know each other


def settings(**given: object) -> ProxySettings:
    return ProxySettings(
        **{
            "database_host": IPV4,
            "database_name": "app",
            "database_user": "app",
            "database_password": "not-used",
            "client_user": "function",
            "client_password": "not-used",
            **given,
        }
    )


@pytest.mark.parametrize(
    ("listen_host", "database_host", "own"),
    [
        (EVERY_ADDRESS, "localhost", IPV4),
        (EVERY_ADDRESS, IPV4, IPV4),
        (EVERY_ADDRESS, IPV6, IPV6),
        ("::", IPV6, IPV6),
        ("0.0.0.0", "localhost", IPV4),
        (IPV6, IPV4, IPV6),
    ],
)
async def test_task_with_both_kinds_is_known_by_ipv4(listen_host: str, database_host: str, own: str) -> None:
    """So all tasks of a fleet have addresses of one kind, those of a deployment before IPv6 too."""
    assert await _own_address(settings(listen_host=listen_host, database_host=database_host)) == own


class Agent:
    """A Fleet that runs, and is served, as a task's is."""

    def __init__(self, own: str, ports: dict[str, int], found: set[str]) -> None:
        async def resolve(name: str) -> set[str]:
            return found

        given: dict[str, object] = {"advertised_host": own, "fleet_name": "tasks.internal", **ports}
        self.fleet = Fleet(settings(listen_host=EVERY_ADDRESS, fleet_check_seconds=0.1, **given), resolve)
        self.peers: set[str] = set()

    async def take(self, peers: tuple[Peer, ...]) -> bool:
        self.peers = {peer.host for peer in peers}
        return True

    @asynccontextmanager
    async def running(self, sock: socket.socket) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post(PEERS_PATH, self.fleet.answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        await web.SockSite(runner, sock).start()
        await self.fleet.choose_identity()
        running = asyncio.create_task(self.fleet.run(self.take))
        yield
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await runner.cleanup()


async def test_name_with_both_kinds_of_addresses_makes_each_task_one_member() -> None:
    """Of A and AAAA records those of the tasks' own kind are asked, and a task is a peer once."""
    ports = {"client_port": free_port(), "health_port": free_port()}
    found = {"127.0.0.2", "127.0.0.3", IPV6}
    one, other = Agent("127.0.0.2", ports, found), Agent("127.0.0.3", ports, found)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(one.running(listening("127.0.0.2", ports["health_port"])))
        await stack.enter_async_context(other.running(listening("127.0.0.3", ports["health_port"])))
        await wait_until_async(
            "the two did not meet", lambda: (one.peers, other.peers) == ({"127.0.0.3"}, {"127.0.0.2"})
        )
        # As many as a round asks at the start: an address that nobody asks takes no turn from another.
        assert {host for host, _ in await one.fleet._whom_to_ask(8)} == {"127.0.0.3"}


async def test_task_that_is_asked_by_ipv4_on_a_socket_for_both_hears_who_it_is() -> None:
    """There an IPv4 address has an IPv6 form, and a member is believed only about its own address."""
    port = free_port()
    asked = Agent("127.0.0.2", {"client_port": free_port(), "health_port": port}, set())
    member = {"host": "127.0.0.3", "client_port": 6432, "health_port": port, "first_peer_id": 7, "processes": 1}
    async with asked.running(listening(EVERY_ADDRESS, port)):
        connector = aiohttp.TCPConnector(local_addr=("127.0.0.3", 0))
        async with aiohttp.ClientSession(connector=connector) as session:
            told = json.dumps({"member": member, "known": []})
            async with session.post(f"http://127.0.0.2:{port}{PEERS_PATH}", data=told) as response:
                assert response.status == 200
        await wait_until_async("the member is not known", lambda: asked.peers == {"127.0.0.3"})


@pytest.mark.parametrize(
    ("seen", "known"),
    [("::ffff:10.0.0.7", "10.0.0.7"), ("10.0.0.7", "10.0.0.7"), ("FD00::1", "fd00::1"), ("name", "name")],
)
def test_address_is_compared_in_one_form(seen: str, known: str) -> None:
    """What a socket for both kinds shows is the address that the others are told."""
    assert as_known(seen) == known
