"""The supervisor keeps the control connection's socket: the slots of a dead agent live as long as its PgBouncer."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.control import Beat, Channel, DropConnection, HoldConnection, Message

from ..processes import is_running
from .conftest import BOUND_SECONDS, Proxy, wait_until
from .slot_sessions import eventually, locks_of, sessions

MakeProxy = Callable[..., Proxy]
SLOTS = 3
BUDGET = "held-by-the-supervisor"
FLEET = {
    "budget_name": BUDGET,
    "max_server_connections": 2 * (2 + 2) + SLOTS,
    "most_tasks_alive": 2,
    "floor_connections": 2,
    "server_idle_seconds": 1,
}


@pytest.fixture(scope="module")
def task(make_shared_proxy: MakeProxy) -> Proxy:
    """A task of a fleet that all tests use, and the last one ends: its agent may be killed four times a minute."""
    return make_shared_proxy(**FLEET).start_ready()


@pytest.fixture
def proxy(task: Proxy) -> Proxy:
    """The task, ready again after what the test before did to it, and idle."""
    wait_until("the proxy is not ready", lambda: task.status("/readyz") == 200)
    return task


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    """What closes the clients that are entered here; after the test, too."""
    with ExitStack() as stack:
        yield stack


def in_use(proxy: Proxy, clients: ExitStack, database: EmbeddedPostgres) -> list[tuple[int, int]]:
    """Have clients use every server connection; return the locks of the slots that this takes."""
    for _ in range(2 + SLOTS):
        client = psycopg.connect(proxy.conninfo())
        clients.callback(client.close)  # no commit: its PgBouncer may be gone
        client.execute("select 1")
    return wait_until(
        "the slots were not taken",
        lambda: len(held := locks_of(database, BUDGET)) == SLOTS and held,
    )


def kill(pid: int) -> None:
    """End a process and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    wait_until("the process did not end", lambda: not is_running(pid))


def sockets_to(database: EmbeddedPostgres, pid: int) -> set[str]:
    """The sockets of a process that lead to the database, by their inodes."""
    opened = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            opened.add(str(path.readlink()).removeprefix("socket:[").rstrip("]"))
        except (FileNotFoundError, ProcessLookupError):  # closed meanwhile
            continue
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return opened & {line[9] for line in lines if int(line[2].rsplit(":", 1)[1], 16) == database.port}


def test_slots_of_a_killed_agent_are_held_until_the_next_has_them(
    proxy: Proxy, database: EmbeddedPostgres, clients: ExitStack
) -> None:
    """While no agent lives the locks are held by the same session; then the next agent holds the same numbers."""
    before = in_use(proxy, clients, database)
    kill(proxy.agent_pid())
    assert locks_of(database, BUDGET) == before
    numbers = [number for _, number in before]

    def are_handed_over() -> bool:
        after = locks_of(database, BUDGET)
        return [number for _, number in after] == numbers and not {pid for pid, _ in after} & {pid for pid, _ in before}

    wait_until("the next agent did not take the slots over", are_handed_over)
    wait_until("the old socket is still held", lambda: len(sockets_to(database, proxy.process.pid)) == 1)


def test_held_socket_is_nobody_elses(proxy: Proxy, database: EmbeddedPostgres, clients: ExitStack) -> None:
    """Of all processes only the agent and the supervisor have it, whatever is started while it is held."""
    in_use(proxy, clients, database)
    (first,) = sockets_to(database, proxy.process.pid)
    assert first in sockets_to(database, proxy.agent_pid())
    kill(proxy.agent_pid())
    agent = wait_until("the agent was not started again", proxy.agent_pid)

    def successor() -> set[str]:
        assert first not in sockets_to(database, agent)
        return sockets_to(database, proxy.process.pid) - {first}

    held = wait_until("the supervisor did not get the next agent's", successor)
    assert held <= sockets_to(database, agent)
    old = proxy.pgbouncer_pid()
    kill(old)
    wait_until("PgBouncer was not started again", lambda: proxy.pgbouncer_pid() != old)
    assert not held & sockets_to(database, proxy.pgbouncer_pid())


def test_nothing_is_held_for_an_agent_that_died_with_its_pgbouncer(
    proxy: Proxy, database: EmbeddedPostgres, clients: ExitStack
) -> None:
    """When nobody needs what a dead agent held, the next one does not leave it to the supervisor for ever."""
    in_use(proxy, clients, database)
    os.kill(proxy.agent_pid(), signal.SIGSTOP)  # it is not to notice
    kill(proxy.pgbouncer_pid())
    kill(proxy.agent_pid())
    assert len(locks_of(database, BUDGET)) == SLOTS
    wait_until("slots were lost for ever", lambda: not locks_of(database, BUDGET))
    wait_until("a socket is still held", lambda: not sockets_to(database, proxy.process.pid))


async def test_pool_that_nobody_uses_holds_no_socket(
    proxy: Proxy, database: EmbeddedPostgres, clients: ExitStack
) -> None:
    """With no demand the control connection is closed, and the supervisor drops its duplicate."""
    await asyncio.to_thread(in_use, proxy, clients, database)
    async with sessions(database, BUDGET) as opened:
        # Slots that another task lacks are given back sooner.
        rival = await opened("rival", **FLEET)
        await rival.publish_missing(SLOTS)
        clients.close()
        await eventually("the slots were kept", lambda: rival.take(range(SLOTS), SLOTS))
    await asyncio.to_thread(
        wait_until, "a socket is still held", lambda: not sockets_to(database, proxy.process.pid), BOUND_SECONDS
    )
    assert not sockets_to(database, proxy.agent_pid())


def test_supervisor_takes_the_locks_with_it(proxy: Proxy, database: EmbeddedPostgres, clients: ExitStack) -> None:
    """When the whole task dies its slots are free for others."""
    in_use(proxy, clients, database)
    proxy.process.kill()
    wait_until("the locks outlived the task", lambda: not locks_of(database, BUDGET))


async def test_descriptor_arrives_closed_on_exec_and_only_where_it_belongs() -> None:
    """The receiver owns a duplicate that its children do not inherit; strays are closed, not collected."""
    supervisor, theirs = Channel.pair()
    agent = Channel(theirs)
    ours, peer = socket.socketpair()
    assert agent.send(HoldConnection())  # without a descriptor it means nothing
    assert agent.send(Beat(), ours.fileno())
    assert agent.send(HoldConnection(), ours.fileno())
    assert agent.send(DropConnection())
    agent.close()
    before = open_descriptors()
    messages: list[Message] = [message async for message in supervisor.messages()]
    assert [type(message) for message in messages] == [Beat, HoldConnection, DropConnection]
    descriptor = messages[1].descriptor
    assert open_descriptors() - before == {descriptor}
    assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    ours.close()
    with socket.socket(fileno=descriptor) as duplicate:
        duplicate.send(b"still open")
        assert peer.recv(100) == b"still open"
    assert peer.recv(100) == b""
    supervisor.close()
    peer.close()


async def test_listener_that_is_cancelled_leaves_the_channel_usable() -> None:
    """A message that comes after one listener was cancelled goes to the next."""
    supervisor, theirs = Channel.pair()
    agent = Channel(theirs)

    async def hear() -> Message:
        return await anext(supervisor.messages())

    listening = asyncio.create_task(hear())
    await asyncio.sleep(0)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    agent.send(Beat())
    async with asyncio.timeout(5):
        assert await hear() == Beat()
    agent.close()
    supervisor.close()


def open_descriptors() -> set[int]:
    """The descriptors of this process, without the one that looks."""
    return {int(path.name) for path in [*Path("/proc/self/fd").iterdir()] if path.exists()}
