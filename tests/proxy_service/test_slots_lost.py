"""How a control connection ends, and what the next one takes over from it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import psycopg
import pytest

from emberpool_local.postgres.server import EmbeddedPostgres, StopMode
from emberpool_proxy.agent.slots import Slots

from .conftest import DATABASE, DATABASE_PASSWORD, DATABASE_USER
from .slot_sessions import Open, eventually, fleet_settings, locks_of, sessions, slots_of

DEADLINE_SECONDS = 0.3
BLOCK_BYTES = 65_536


@pytest.fixture(scope="module")
def mortal() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of this module's own, to be taken away."""
    with EmbeddedPostgres(max_connections=30) as server:
        server.create_role_and_database(DATABASE_USER, DATABASE_PASSWORD, DATABASE)
        server.create_role_and_database("other_role", "other-password", "other_database")
        yield server


@pytest.fixture
async def open_slots(mortal: EmbeddedPostgres) -> AsyncIterator[Open]:
    """Opens sessions of tasks of a fleet on this module's server; closes them in the end."""
    async with sessions(mortal, "lost") as opened:
        yield opened


@dataclass
class Relay:
    """The way to the database, which can fall silent without a word."""

    target: int
    port: int = 0
    lets_through: asyncio.Event = field(default_factory=asyncio.Event)

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(self._pump(reader, there_writer), self._pump(there_reader, writer))
        for end in (writer, there_writer):
            end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while block := await reader.read(BLOCK_BYTES):
            await self.lets_through.wait()
            writer.write(block)
        writer.close()


@asynccontextmanager
async def relay(target: int) -> AsyncIterator[Relay]:
    """Forward to 127.0.0.1:`target`."""
    way = Relay(target)
    way.lets_through.set()
    server = await asyncio.start_server(way.forward, "127.0.0.1", 0)
    way.port = server.sockets[0].getsockname()[1]
    try:
        yield way
    finally:
        way.lets_through.set()
        server.close()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_stopped_database_is_noticed_without_a_question(
    mortal: EmbeddedPostgres, open_slots: Open, mode: StopMode
) -> None:
    """A shutdown, and a crash, end what is held at once."""
    slots = await open_slots()
    await slots.take([0], 1)
    lost = asyncio.Event()
    slots.on_lost(lost.set)
    stopping = asyncio.create_task(asyncio.to_thread(mortal.restart, mode))
    async with asyncio.timeout(5):
        await lost.wait()
    assert slots.held == frozenset()
    await stopping
    await slots.open()
    assert await slots.take([0], 1) == {0}


async def test_silent_database_is_given_up_after_the_deadline(mortal: EmbeddedPostgres, open_slots: Open) -> None:
    """When nothing comes back, the question fails within the deadline, and nothing is held any more."""
    async with relay(mortal.port) as way:
        slots = await open_slots(deadline_seconds=DEADLINE_SECONDS, database_port=way.port)
        lost: list[str] = []
        slots.on_lost(lambda: lost.append("lost"))
        await slots.take([0, 1], 2)
        way.lets_through.clear()
        with socket.socket(fileno=os.dup(slots.descriptor())) as duplicate:
            with pytest.raises(psycopg.OperationalError, match=r"did not answer within 0\.3 s"):
                await slots.view()
            duplicate.setblocking(False)
            assert duplicate.recv(BLOCK_BYTES) == b"", "who holds a duplicate keeps the session open"
        assert (slots.held, lost) == (frozenset(), ["lost"])
        with pytest.raises(TimeoutError):
            await slots.open()
        way.lets_through.set()
        await slots.open()
        await eventually("the silent session kept its slots", lambda: slots.take([0, 1], 2))


async def test_questions_in_line_fail_with_the_one_before(mortal: EmbeddedPostgres, open_slots: Open) -> None:
    """Who waits for a turn behind a question that is given up does not wait for a deadline of its own."""
    async with relay(mortal.port) as way:
        slots = await open_slots(deadline_seconds=DEADLINE_SECONDS, database_port=way.port)
        way.lets_through.clear()
        async with asyncio.timeout(DEADLINE_SECONDS * 2):
            results = await asyncio.gather(*(slots.view() for _ in range(5)), return_exceptions=True)
        assert all(isinstance(result, psycopg.OperationalError) for result in results)


async def test_next_agent_inherits_what_a_held_socket_keeps(mortal: EmbeddedPostgres, open_slots: Open) -> None:
    """The locks of an agent that died live on in a duplicate of its socket; the next one gets exactly them."""
    old, other = await open_slots("old"), await open_slots("other")
    await old.take([2, 5, 7], 3)
    await old.publish_missing(4)
    pid = await old.open()
    with socket.socket(fileno=os.dup(old.descriptor())) as duplicate:
        await die(old)
        assert await other.take([2, 5, 7, 1], 4) == {1}
        heir = await open_slots("heir")
        assert await heir.inherit(pid) == heir.held == {2, 5, 7}
        assert [number for _, number in locks_of(mortal, "lost", await heir.open())] == [2, 5, 7]
        assert not await other.is_anybody_hungry()
        assert len((await heir.view()).others) == 1
        duplicate.settimeout(5)
        while duplicate.recv(BLOCK_BYTES):  # the last words of a backend that was ended
            pass


async def test_inheriting_takes_nothing_of_others(mortal: EmbeddedPostgres, open_slots: Open) -> None:
    """A process id that is no control session of this budget any more is left alone, whoever has it now."""
    heir, stranger = await open_slots("heir"), await open_slots("stranger", budget_name="another")
    await stranger.take([0, 1], 2)
    with psycopg.connect(mortal.conninfo(DATABASE_USER, DATABASE_PASSWORD, DATABASE), autocommit=True) as client:
        for pid in (client.info.backend_pid, await stranger.open(), 2**30, await heir.open()):
            assert await heir.inherit(pid) == frozenset()
        client.execute("select 1")
    assert stranger.held == {0, 1}
    await stranger.view()


async def test_session_of_a_former_role_is_not_inherited(mortal: EmbeddedPostgres, open_slots: Open) -> None:
    """After a change of role the old session cannot be ended by the new one: it is left to the supervisor."""
    with psycopg.connect(mortal.conninfo(), autocommit=True) as admin:
        admin.execute(f"grant connect on database {DATABASE} to other_role")
    settings = fleet_settings(mortal, "lost", database_user="other_role", database_password="other-password")
    old, heir = slots_of(settings, "old"), await open_slots("heir")
    pid = await old.open()
    await old.take([3], 1)
    assert await heir.inherit(pid) == frozenset()
    assert heir.is_open
    assert (await old.view()).own.slots == 1
    await old.close()


async def test_inheriting_without_slots_ends_the_old_session(mortal: EmbeddedPostgres, open_slots: Open) -> None:
    """An agent that died without slots leaves a session whose marks must not count for long."""
    old, heir = await open_slots("old"), await open_slots("heir")
    await old.publish_missing(4)
    await heir.inherit(await old.open())

    async def is_alone() -> bool:
        return not (await heir.view()).others

    await eventually("the old session's marks are still there", is_alone)


async def die(slots: Slots) -> None:
    """Close the socket of a session as the kernel does for a process that is killed: no goodbye, no shutdown."""
    connection = slots._connection
    loop = asyncio.get_running_loop()
    loop.remove_reader(connection._socket)
    connection._socket.close()
    os.close(connection._connection.fileno())
    slots._connection = None
