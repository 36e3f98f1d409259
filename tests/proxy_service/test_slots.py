"""Slots over real sessions: nobody holds what another holds, all see the same, and nothing is kept by accident."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.agent.budget_reading import Session
from emberpool_proxy.agent.slot_locks import LARGEST_VALUE, Mark, SlotLocks, mark_key
from emberpool_proxy.agent.slots import Slots

from .conftest import DATABASE, DATABASE_PASSWORD, DATABASE_USER
from .slot_sessions import SLOTS, Open, eventually, fleet_settings, locks_of, sessions, slots_of, terminate


@pytest.fixture
def budget(request: pytest.FixtureRequest) -> str:
    """A name of this test's own: tests share a server."""
    return request.node.name[:60].replace("[", "-").replace("]", "")


@pytest.fixture
async def open_slots(database: EmbeddedPostgres, budget: str) -> AsyncIterator[Open]:
    """Opens sessions of tasks of this test's fleet; closes them in the end."""
    async with sessions(database, budget) as opened:
        yield opened


async def test_taken_slot_is_nobody_elses_until_given(open_slots: Open) -> None:
    """Two tasks never get the same number; what one gives back the other can take."""
    one, two = await open_slots(), await open_slots()
    assert await one.take([0, 1, 2], 3) == {0, 1, 2}
    assert await two.take([1, 2, 3, 4], 2) == {3, 4}
    await one.give([2, 9])
    assert one.held == {0, 1}
    assert await two.take([1, 2], 2) == {2}
    assert two.held == {2, 3, 4}


async def test_take_stops_at_the_count_and_keeps_the_order(open_slots: Open) -> None:
    """Candidates are tried in the order given, and none beyond the count is touched."""
    one, two = await open_slots(), await open_slots()
    assert await one.take([7, 3, 5, 1], 2) == {7, 3}
    assert await two.take([1, 5, 3, 7], 4) == {1, 5}
    assert await one.take([], 3) == await one.take([9], 0) == frozenset()


async def test_slot_taken_twice_is_free_once_given(open_slots: Open, database: EmbeddedPostgres, budget: str) -> None:
    """PostgreSQL counts how often a session takes a lock: a slot that is held is not taken again."""
    one = await open_slots()
    await one.take([0, 1], 2)
    assert await one.take([0, 1, 2], 3) == {2}
    await one.give([0, 1, 2])
    assert locks_of(database, budget) == []


async def test_racing_sessions_share_out_every_slot_once(
    open_slots: Open, database: EmbeddedPostgres, budget: str
) -> None:
    """Six tasks that grab and give at random never hold one number twice, and what they believe is what is so."""
    tasks = [await open_slots(f"task-{index}") for index in range(6)]

    async def grab(slots: Slots, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            candidates = chance.sample(range(SLOTS), SLOTS)
            await slots.take(candidates, chance.randrange(1, 5))
            everybodys = [number for other in tasks for number in other.held]
            assert len(everybodys) == len(set(everybodys))
            await slots.give(chance.sample(sorted(slots.held), len(slots.held) // 2))

    await asyncio.gather(*(grab(slots, seed) for seed, slots in enumerate(tasks)))
    believed = sorted(number for slots in tasks for number in slots.held)
    assert [number for _, number in locks_of(database, budget)] == believed


async def test_view_shows_every_session_with_its_marks(open_slots: Open) -> None:
    """One question tells each task's slots, floor and hunger, and which numbers are free."""
    one, two, three = await open_slots(), await open_slots(floor_connections=1), await open_slots()
    await one.take(range(SLOTS), 3)
    await two.take([12, 13], 2)
    await two.publish_missing(5)
    view = await one.view()
    pids = [await slots.open() for slots in (one, two, three)]
    assert view.own == Session(pids[0], slots=3, floor=2)
    assert set(view.others) == {Session(pids[1], slots=2, floor=1, missing=5), Session(pids[2], floor=2)}
    assert view.free == tuple(range(3, 12))
    assert (view.slots, view.promised_slots, view.smallest_claim) == (SLOTS, SLOTS, SLOTS)


async def test_session_that_is_ending_promises_nothing_and_frees_nothing(
    open_slots: Open, database: EmbeddedPostgres, budget: str
) -> None:
    """A backend that ends lets its locks go one by one: without its terms it is nobody, but its slots are not free."""
    slots = await open_slots()
    with psycopg.connect(database.conninfo(DATABASE_USER, DATABASE_PASSWORD, DATABASE), autocommit=True) as ending:
        ending.execute("select pg_advisory_lock(%s, 2)", (SlotLocks.of(budget).slots,))
        view = await slots.view()
    assert (view.others, view.slots, view.smallest_claim) == ((), SLOTS, SLOTS)
    assert view.free == tuple(number for number in range(SLOTS) if number != 2)


async def test_published_hunger_replaces_the_one_before(open_slots: Open, database: EmbeddedPostgres) -> None:
    """A task has one number of missing connections at a time, and no mark is left when it is content."""
    one, two = await open_slots(), await open_slots()
    for missing in (3, 40, 1, LARGEST_VALUE + 5):
        await one.publish_missing(missing)
        (seen,) = (await two.view()).others
        assert seen.missing == min(missing, LARGEST_VALUE)
    await one.publish_missing(0)
    assert (await two.view()).others == (Session(await one.open(), floor=2),)
    with psycopg.connect(database.conninfo(database=DATABASE), autocommit=True) as admin:
        left = admin.execute(
            "select count(*) from pg_locks where pid = %s and locktype = 'advisory'", (await one.open(),)
        )
        assert left.fetchone() == (1,)  # its terms


async def test_hunger_of_another_is_known_at_constant_cost(open_slots: Open) -> None:
    """The cheap question tells whether another task lacks something; one's own hunger does not count."""
    one, two, three = await open_slots(), await open_slots(), await open_slots()
    assert not await one.is_anybody_hungry()
    await one.publish_missing(2)
    assert not await one.is_anybody_hungry()
    assert await two.is_anybody_hungry()
    await three.publish_missing(1)
    await one.publish_missing(0)
    assert await two.is_anybody_hungry()
    await three.publish_missing(0)
    assert not await two.is_anybody_hungry()


async def test_hunger_is_not_lost_to_those_who_look_for_it(
    open_slots: Open, database: EmbeddedPostgres, budget: str
) -> None:
    """Who looks has the mark to itself for microseconds: who becomes hungry just then waits for that."""
    slots, other = await open_slots(), await open_slots()
    async with waiting_for_the_mark(database, budget, slots) as publishing:
        pass
    await publishing
    assert await other.is_anybody_hungry()


async def test_many_that_look_for_hunger_leave_nothing_behind(open_slots: Open) -> None:
    """However often it is asked, and by however many: in the end nobody is hungry."""
    askers = [await open_slots() for _ in range(4)]

    async def ask(slots: Slots) -> None:
        for _ in range(100):
            await slots.is_anybody_hungry()

    await asyncio.gather(*map(ask, askers))
    assert not await askers[0].is_anybody_hungry()


async def test_smaller_claim_wins(open_slots: Open) -> None:
    """Of two deployments of one name the one that promises less decides, for as long as it has a session."""
    one, modest = await open_slots(), await open_slots(max_server_connections=20)
    view = await one.view()
    assert (view.slots, view.promised_slots, view.smallest_claim) == (4, SLOTS, 4)
    assert view.free == (0, 1, 2, 3)
    await modest.close()
    await eventually("the claim outlived its session", lambda: _has(one, smallest_claim=SLOTS))


async def test_other_names_and_other_databases_are_other_budgets(open_slots: Open, database: EmbeddedPostgres) -> None:
    """Two fleets share slots only if both the name and the database are the same."""
    one = await open_slots()
    with psycopg.connect(database.conninfo(), autocommit=True) as admin:
        admin.execute("create database elsewhere")
    others = [await open_slots(budget_name="another"), await open_slots(budget_database="elsewhere")]
    for slots in (one, *others):
        assert await slots.take([0, 1], 2) == {0, 1}
        view = await slots.view()
        assert (view.others, view.own.slots) == ((), 2)
    for slots in others:
        await slots.close()


def test_keys_are_those_of_the_documentation() -> None:
    """The formula that is written down is the one in use: two releases must agree on it."""
    locks = SlotLocks.of("emberpool")
    assert locks.slots == int(hashlib.sha256(b"emberpool:emberpool").hexdigest()[:8], 16) // 2
    assert locks.marks == int(hashlib.sha256(b"emberpool-marks:emberpool").hexdigest()[:8], 16) // 2
    assert mark_key(Mark.MISSING, 7) == 2 * 2**24 + 7
    assert mark_key(Mark.HUNGER, LARGEST_VALUE) < 2**31


async def test_terminated_session_is_lost_at_once(open_slots: Open, database: EmbeddedPostgres) -> None:
    """Nothing needs to be asked to notice the end of the connection, and nothing is held from that moment."""
    slots = await open_slots()
    await slots.take([0, 1], 2)
    lost, held = asyncio.Event(), []
    slots.on_lost(lambda: (held.append(slots.held), lost.set()))
    await asyncio.to_thread(terminate, database, await slots.open())
    async with asyncio.timeout(5):
        await lost.wait()
    assert (held, slots.is_open) == ([frozenset()], False)
    for question in (slots.view(), slots.take([3], 1), slots.is_anybody_hungry(), slots.publish_missing(1)):
        with pytest.raises(psycopg.OperationalError):
            await question
    with pytest.raises(psycopg.OperationalError):
        slots.descriptor()


async def test_lost_session_can_be_opened_again(open_slots: Open, database: EmbeddedPostgres) -> None:
    """After a loss everything begins anew: nothing held, not hungry, the marks published again."""
    slots, other = await open_slots(), await open_slots()
    await slots.take([0], 1)
    await slots.publish_missing(3)
    before = await slots.open()
    await asyncio.to_thread(terminate, database, before)
    await eventually("the loss was not noticed", lambda: _is(not slots.is_open))
    assert await slots.open() != before
    assert (await other.view()).others == (Session(await slots.open(), floor=2),)
    await slots.publish_missing(3)
    assert await other.is_anybody_hungry()


async def test_failed_question_loses_the_session(open_slots: Open, database: EmbeddedPostgres) -> None:
    """After an error nobody knows which locks are held: the connection ends, and its slots are free."""
    slots, other = await open_slots(), await open_slots()
    lost: list[str] = []
    slots.on_lost(lambda: lost.append("lost"))
    await slots.take([0], 1)
    with pytest.raises(psycopg.OperationalError, match="out of range"):
        await slots.take([2**40], 1)
    assert (slots.held, lost) == (frozenset(), ["lost"])
    await eventually("the slot was kept", lambda: other.take([0], 1))


async def test_given_up_question_loses_the_session(open_slots: Open, database: EmbeddedPostgres) -> None:
    """A caller that is cancelled in mid-question leaves no connection of which nobody knows what it holds."""
    slots, other = await open_slots(), await open_slots()
    await slots.take([0], 1)
    asking = asyncio.create_task(slots.take([1], 1))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (slots.held, slots.is_open) == (frozenset(), False)
    await eventually("the slots were kept", lambda: _took(other, {0, 1}))


async def test_close_frees_the_locks_and_is_no_loss(open_slots: Open, database: EmbeddedPostgres, budget: str) -> None:
    """What is closed on purpose holds nothing, and nobody is alarmed."""
    slots = await open_slots()
    lost: list[str] = []
    slots.on_lost(lambda: lost.append("lost"))
    await slots.take(range(SLOTS), SLOTS)
    await slots.close()
    assert slots.held == frozenset()
    await eventually("the locks outlived the session", lambda: _is(not locks_of(database, budget)))
    await slots.close()
    assert lost == []


async def test_close_in_mid_question_ends_the_question(
    open_slots: Open, database: EmbeddedPostgres, budget: str
) -> None:
    """Who waits for an answer is told that there will be none, and nobody is alarmed."""
    slots = await open_slots()
    lost: list[str] = []
    slots.on_lost(lambda: lost.append("lost"))
    async with waiting_for_the_mark(database, budget, slots) as asking:
        await slots.close()
        async with asyncio.timeout(5):
            with pytest.raises(psycopg.OperationalError):
                await asking
    assert lost == []


async def test_close_ends_a_session_whose_socket_is_held_elsewhere(
    open_slots: Open, database: EmbeddedPostgres, budget: str
) -> None:
    """A duplicate of the socket keeps a dead agent's locks, but not those that were let go on purpose."""
    slots = await open_slots()
    await slots.take([0], 1)
    with socket.socket(fileno=os.dup(slots.descriptor())):
        await slots.close()
        await eventually("the duplicate kept the locks", lambda: _is(not locks_of(database, budget)))


async def test_idle_session_outlives_the_databases_limit(open_slots: Open, database: EmbeddedPostgres) -> None:
    """A database that ends idle sessions does not end this one: holding still is what it is for."""
    with psycopg.connect(database.conninfo(), autocommit=True) as admin:
        admin.execute(f"alter role {DATABASE_USER} set idle_session_timeout = '100ms'")
        try:
            slots = await open_slots()
            pid = await slots.open()
            with psycopg.connect(database.conninfo(DATABASE_USER, DATABASE_PASSWORD, DATABASE)) as witness:
                witness.rollback()
                ended = "select not exists (select from pg_stat_activity where pid = %s)"
                await eventually(
                    "the witness was not ended",
                    lambda: _is(admin.execute(ended, (witness.info.backend_pid,)).fetchone()[0]),
                )
            assert admin.execute(ended, (pid,)).fetchone() == (False,)
            await slots.view()
        finally:
            admin.execute(f"alter role {DATABASE_USER} reset idle_session_timeout")


async def test_session_says_whose_it_is(open_slots: Open, database: EmbeddedPostgres) -> None:
    """An operator who looks into pg_stat_activity finds the task's name."""
    slots = await open_slots("ip-10-0-1-2")
    with psycopg.connect(database.conninfo(), autocommit=True) as admin:
        found = admin.execute("select application_name from pg_stat_activity where pid = %s", (await slots.open(),))
        assert found.fetchone() == ("emberpool-agent ip-10-0-1-2",)


async def test_secrets_are_in_no_error_and_no_log(
    database: EmbeddedPostgres, budget: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A refused login says who and where, never the password."""
    caplog.set_level(logging.DEBUG)
    slots = slots_of(fleet_settings(database, budget, database_password="hush-hush-wrong"))
    with pytest.raises(psycopg.OperationalError, match="password authentication failed") as refused:
        await slots.open()
    seen = "".join(map(str, (refused.value, refused.value.__cause__, refused.value.__context__, slots, caplog.text)))
    assert "hush-hush" not in seen


@asynccontextmanager
async def waiting_for_the_mark(
    database: EmbeddedPostgres, budget: str, slots: Slots
) -> AsyncIterator[asyncio.Task[None]]:
    """Have a session publish its hunger while somebody else looks whether there is any, for the length of the block."""
    key = (SlotLocks.of(budget).marks, mark_key(Mark.HUNGER))
    with psycopg.connect(database.conninfo(DATABASE_USER, DATABASE_PASSWORD, DATABASE), autocommit=True) as looking:
        looking.execute("select pg_advisory_lock(%s, %s)", key)
        publishing = asyncio.create_task(slots.publish_missing(1))
        waiting = "select count(*) from pg_locks where not granted and pid = %s"
        pid = await slots.open()
        await eventually("it did not wait", lambda: _is(looking.execute(waiting, (pid,)).fetchone()[0]))
        yield publishing


async def _has(slots: Slots, **expected: object) -> bool:
    view = await slots.view()
    return all(getattr(view, name) == value for name, value in expected.items())


async def _is(fact: object) -> bool:
    return bool(fact)


async def _took(slots: Slots, numbers: set[int]) -> bool:
    await slots.take(sorted(numbers), len(numbers))
    return numbers <= slots.held
