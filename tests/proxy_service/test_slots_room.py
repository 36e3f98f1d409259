"""How many slots the database has room for: its own limit, what is reserved of it, and who else is connected."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import cast

import psycopg
import pytest

from emberpool_local.postgres.program import wheel_postgres
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.agent.budget_reading import FleetView
from emberpool_proxy.agent.pool_connection import PROBE_NAME
from emberpool_proxy.agent.slot_locks import FLOOR_BITS, fleet_view

from .conftest import DATABASE, DATABASE_PASSWORD, DATABASE_USER
from .slot_sessions import SLOTS, TERMS, Open, fleet_settings, sessions

MAX_CONNECTIONS, RESERVED_BY_SERVER = 40, 3
ABOVE_FLOORS = MAX_CONNECTIONS - 4 * (2 + 2)  # max_connections without what the tasks have without asking
OTHER = ("other_role", "other-password", "other_database")


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL whose connections are all counted."""
    with EmbeddedPostgres(max_connections=MAX_CONNECTIONS) as server:
        server.create_role_and_database(DATABASE_USER, DATABASE_PASSWORD, DATABASE)
        server.create_role_and_database(*OTHER)
        yield server


@pytest.fixture
async def open_slots(server: EmbeddedPostgres) -> AsyncIterator[Open]:
    """Opens sessions of tasks of a fleet on this module's server; closes them in the end."""
    async with sessions(server, "room") as opened:
        yield opened


@pytest.fixture
def connect(server: EmbeddedPostgres) -> Iterator[ExitStack]:
    """What is entered here is closed after the test."""
    with ExitStack() as stack:
        yield stack


def connected(server: EmbeddedPostgres, connect: ExitStack, count: int, *login: str, **options: str) -> None:
    """Hold `count` connections of a role open."""
    for _ in range(count):
        connect.enter_context(psycopg.connect(server.conninfo(*login), autocommit=True, **options))


async def test_room_is_what_the_server_and_the_reserve_leave(open_slots: Open) -> None:
    """Without others the larger of our reserve and the server's own is set aside; a full server leaves no slot."""
    roomy = await (await open_slots()).view()
    assert roomy.database_has_room_for == roomy.least_room_for == ABOVE_FLOORS - RESERVED_BY_SERVER
    assert roomy.slots == SLOTS
    narrow = await (await open_slots(reserved_connections=20)).view()
    assert narrow.database_has_room_for == narrow.least_room_for == narrow.slots == ABOVE_FLOORS - 20
    assert narrow.free == (0, 1, 2, 3)
    none = await (await open_slots(reserved_connections=30)).view()
    assert (none.database_has_room_for, none.slots, none.free) == (ABOVE_FLOORS - 30, 0, ())


async def test_other_clients_take_room_once_the_reserve_is_full(
    server: EmbeddedPostgres, open_slots: Open, connect: ExitStack
) -> None:
    """Connections of other roles use up the reserve first, then slots; they give the room back when they end."""
    slots = await open_slots(reserved_connections=6)
    connected(server, connect, 3, *OTHER)
    assert (await slots.view()).database_has_room_for == ABOVE_FLOORS - 6
    connected(server, connect, 12)
    view = await slots.view()
    assert view.database_has_room_for == view.slots == ABOVE_FLOORS - RESERVED_BY_SERVER - 15
    assert view.least_room_for == ABOVE_FLOORS - 6
    assert view.pool_connections == 0
    connect.close()
    while (await slots.view()).database_has_room_for != ABOVE_FLOORS - 6:
        pass


async def test_pools_connections_are_counted_and_agents_are_not(
    server: EmbeddedPostgres, open_slots: Open, connect: ExitStack
) -> None:
    """Sessions of the pool's role are the fleet's, but for the agents' own logins; none of them takes others' room."""
    slots, _ = await open_slots(), await open_slots()
    login = (DATABASE_USER, DATABASE_PASSWORD, DATABASE)
    connected(server, connect, 4, *login)
    connected(server, connect, 2, *login, application_name=PROBE_NAME)
    connected(server, connect, 1, *login, application_name="emberpool-credentials")
    view = await slots.view()
    assert view.pool_connections == 4
    assert view.database_has_room_for == ABOVE_FLOORS - RESERVED_BY_SERVER


async def test_role_of_another_tasks_session_is_the_fleets(
    server: EmbeddedPostgres, open_slots: Open, connect: ExitStack
) -> None:
    """While the role changes from task to task the connections of both roles are the fleet's."""
    with psycopg.connect(server.conninfo(), autocommit=True) as admin:
        admin.execute(f"grant connect on database {DATABASE} to {OTHER[0]}")
    slots = await open_slots()
    connected(server, connect, 2, *OTHER)
    assert (await slots.view()).pool_connections == 0
    rotated = await open_slots(database_user=OTHER[0], database_password=OTHER[1])
    for view in (await slots.view(), await rotated.view()):
        assert view.pool_connections == 2
    await rotated.close()


async def test_reserved_connections_of_newer_servers_are_no_room() -> None:
    """Since PostgreSQL 16 reserved_connections are set aside, too; and what its views show is enough there."""
    reserved = {"reserved_connections": "5"}
    with EmbeddedPostgres(max_connections=MAX_CONNECTIONS, program=wheel_postgres(), settings=reserved) as newer:
        newer.create_role_and_database(DATABASE_USER, DATABASE_PASSWORD, DATABASE)
        newer.create_role_and_database(*OTHER)
        async with sessions(newer, "room") as opened:
            slots = await opened()
            with psycopg.connect(newer.conninfo(*OTHER)), psycopg.connect(newer.conninfo()):
                assert (await slots.view()).database_has_room_for == ABOVE_FLOORS - RESERVED_BY_SERVER - 5 - 2
            assert (await slots.view()).least_room_for == ABOVE_FLOORS - RESERVED_BY_SERVER - 5
            assert await slots.take([3, 4], 2) == {3, 4}
            assert (await slots.view()).own.slots == 2


OTHERS_AND_LIMITS = (0, 100, 3, False)  # other clients, max_connections, reserved, whether it is in recovery


def _seen(*sessions: tuple[int, int, str], pools: dict[str, int]) -> FleetView:
    """What the session 1 is told; each session is its process id, how many slots it holds, and its address."""
    numbers = iter(range(SLOTS))
    terms = SLOTS << FLOOR_BITS | TERMS["floor_connections"]
    rows = [
        (pid, [next(numbers) for _ in range(slots)], terms, 0, address, pools, *OTHERS_AND_LIMITS)
        for pid, slots, address in sessions
    ]
    never_asked = cast("EmbeddedPostgres", SimpleNamespace(host="127.0.0.1", port=5432))
    return fleet_view(fleet_settings(never_asked, "addresses"), 0.0, 1, rows)


def test_connections_above_what_their_task_may_have_are_seen_by_their_address() -> None:
    """What another task has not opened hides nothing: who has more than its floor and slots counts, and who is gone."""
    seen = _seen((1, 4, "10.0.0.1"), (2, 6, "10.0.0.2"), pools={"10.0.0.1": 6, "10.0.0.2": 3, "10.0.0.3": 7})
    assert seen.others_excess == 5  # of the third, whose session is gone: 7 with a floor of 2
    assert seen.pool_connections == 16
    seen = _seen((1, 4, "10.0.0.1"), (2, 6, "10.0.0.2"), pools={"10.0.0.1": 9, "10.0.0.2": 9})
    assert seen.others_excess == 1  # of the second; our own are ours to count


@pytest.mark.parametrize(
    ("addresses", "pools"),
    [
        (("127.0.0.1", "127.0.0.1"), {"127.0.0.1": 12}),
        (("10.0.0.1", "10.0.0.2"), {"": 12}),
    ],
    ids=["one address for all", "no address"],
)
def test_addresses_that_do_not_tell_tasks_apart_are_not_used(addresses: tuple[str, str], pools: dict[str, int]) -> None:
    """On one machine, and behind a NAT, only the sum of all is known."""
    assert _seen((1, 4, addresses[0]), (2, 6, addresses[1]), pools=pools).others_excess is None


def test_more_tasks_than_foreseen_take_their_floors_from_the_slots() -> None:
    """A deployment too many makes the slots fewer, not the connections more."""
    foreseen = TERMS["most_tasks_alive"]
    sessions = [(pid, 0, f"10.0.0.{pid}") for pid in range(1, foreseen + 2)]
    assert _seen(*sessions[:-1], pools={}).slots == SLOTS
    assert _seen(*sessions, pools={}).slots == SLOTS - (2 + 2)
