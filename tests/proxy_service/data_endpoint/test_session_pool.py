"""Sessions at PgBouncer: kept, bounded, and never used when dead or out of date."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from emberpool_local.host.ports import free_port
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.data_endpoint.errors import (
    ACCESS_DENIED,
    DATABASE_NOT_FOUND,
    DATABASE_UNAVAILABLE,
    SERVICE_UNAVAILABLE,
    THROTTLED,
    DataError,
)
from emberpool_proxy.data_endpoint.login import refused
from emberpool_proxy.data_endpoint.pool import SessionPool
from emberpool_proxy.data_endpoint.session import Session, SessionLost
from emberpool_proxy.data_endpoint.steps import BEGIN, Step

from .endpoint_pool import PASSWORD, EndpointPool, endpoint_pool, fact
from .parsed_answers import MIB


@pytest.fixture(scope="module")
def pool(postgres: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram) -> Iterator[EndpointPool]:
    with endpoint_pool(postgres, pgbouncer_program, "data_sessions") as running:
        yield running


async def answer(session: Session, sql: bytes = b"select 1") -> bytes | None:
    (outcome,) = await session.run((Step(sql),))
    return outcome[-1].get_value(0, 0)


async def test_session_that_was_used_last_is_used_next(pool: EndpointPool) -> None:
    """So the others become idle for long enough to be closed; a session is opened only when none is free."""
    sessions = SessionPool([pool.folder], pool.port)
    caller = pool.caller()
    assert sessions.idle(caller) is None
    first, second = await sessions.take(caller), await sessions.take(caller)
    sessions.give(first)
    sessions.give(second)
    assert sessions.idle(caller) is second
    assert await sessions.take(caller) is first
    assert sessions.sessions == 2
    sessions.give(first)
    sessions.give(second)
    sessions.close()
    assert sessions.sessions == 0


@pytest.mark.parametrize(
    ("sql", "sessions_kept"),
    [("select repeat('x', 10000000)", 0), ("select repeat('x', 1000) from generate_series(1, 10000)", 1)],
)
async def test_session_that_had_a_huge_row_is_not_kept(pool: EndpointPool, sql: str, sessions_kept: int) -> None:
    """libpq keeps the memory that a row has needed; a result of many rows is dropped on its way."""
    sessions = SessionPool([pool.folder], pool.port)
    session = await sessions.take(pool.caller())
    await session.run((Step(sql.encode(), is_asked=True),), most_bytes=MIB)
    assert session.is_overflowing
    assert await answer(session) == b"1"
    sessions.give(session)
    assert sessions.sessions == sessions_kept
    sessions.close()


async def test_idle_sessions_are_closed_and_those_in_use_are_not(pool: EndpointPool) -> None:
    """A quiet endpoint holds no connections; a session in use is kept and answers."""
    sessions = SessionPool([pool.folder], pool.port, idle_seconds=0.1)
    used, idle = await sessions.take(pool.caller()), await sessions.take(pool.caller())
    sessions.give(idle)
    await fact("it was not closed", lambda: sessions.sessions == 1)
    assert await answer(used) == b"1"
    sessions.give(used)
    await fact("it was not closed", lambda: sessions.sessions == 0)
    assert await answer(await sessions.take(pool.caller())) == b"1"
    sessions.close()


async def test_only_so_many_sessions_and_a_bounded_wait(pool: EndpointPool) -> None:
    """Who waits gets the next that comes back, in turn; who waits too long is told to send fewer calls."""
    sessions = SessionPool([pool.folder], pool.port, most_sessions=2, wait_seconds=0.3)
    caller = pool.caller()
    first, second = await sessions.take(caller), await sessions.take(caller)
    waiting = [asyncio.ensure_future(sessions.take(caller)) for _ in range(2)]
    await asyncio.sleep(0)
    sessions.give(second)
    sessions.give(first)
    assert [await each for each in waiting] == [second, first]
    with pytest.raises(DataError, match="all 2 sessions") as error:
        await sessions.take(caller)
    assert error.value.kind == THROTTLED
    lost = asyncio.ensure_future(sessions.take(caller))
    await asyncio.sleep(0)
    sessions.discard(first)
    assert await answer(await lost) == b"1"  # a new one in its place
    assert sessions.sessions == 2
    sessions.close()


async def test_who_stops_waiting_takes_no_session_away(pool: EndpointPool) -> None:
    """A call that is cancelled in the moment in which it gets its session passes it on."""
    sessions = SessionPool([pool.folder], pool.port, most_sessions=1)
    session = await sessions.take(pool.caller())
    gone = asyncio.ensure_future(sessions.take(pool.caller()))
    waits = asyncio.ensure_future(sessions.take(pool.caller()))
    await asyncio.sleep(0)
    sessions.give(session)
    gone.cancel()
    assert await asyncio.wait_for(waits, 5) is session
    assert gone.cancelled()
    session.close()
    sessions.give(session)
    assert sessions.sessions == 0


async def test_callers_and_passwords_share_no_session(pool: EndpointPool) -> None:
    """What is open for one password is never used for another, right or wrong."""
    sessions = SessionPool([pool.folder], pool.port)
    session = await sessions.take(pool.caller())
    sessions.give(session)
    with pytest.raises(DataError) as error:
        await sessions.take(pool.caller(password="wrong"))
    assert error.value.kind == ACCESS_DENIED
    assert PASSWORD not in str(error.value)
    assert await sessions.take(pool.caller(is_read_only=True)) is session
    sessions.give(session)
    sessions.close()


async def test_sessions_of_a_replaced_password_end(pool: EndpointPool) -> None:
    """At once when idle, and when they come back otherwise."""
    sessions = SessionPool([pool.folder], pool.port)
    idle, used = await sessions.take(pool.caller()), await sessions.take(pool.caller())
    sessions.give(idle)
    sessions.keep([pool.caller()])
    assert sessions.sessions == 2
    sessions.keep([pool.caller(password="new")])
    assert sessions.sessions == 1
    assert await answer(used) == b"1"
    sessions.give(used)
    assert sessions.sessions == 0


async def test_dead_session_is_noticed_before_its_use(pool: EndpointPool) -> None:
    """A session whose PgBouncer has gone is not given to anybody; no call is lost to it."""
    sessions = SessionPool([pool.folder], pool.port)
    sessions.give(await sessions.take(pool.caller()))
    pool.signal(signal.SIGKILL)
    await fact("it was not noticed", lambda: sessions.sessions == 0)
    pool.again()
    assert await answer(await sessions.take(pool.caller())) == b"1"
    sessions.close()


async def test_session_in_a_transaction_is_not_given_to_another(pool: EndpointPool) -> None:
    """One that is not clean is closed."""
    sessions = SessionPool([pool.folder], pool.port)
    session = await sessions.take(pool.caller())
    await session.run((BEGIN,))
    sessions.give(session)
    assert sessions.sessions == 0
    with pytest.raises(SessionLost):
        await session.run((BEGIN,))


async def test_pgbouncer_that_does_not_answer_is_passed_over(pool: EndpointPool, tmp_path: Path) -> None:
    """With two of them and one away, every login goes to the other."""
    sessions = SessionPool([tmp_path, pool.folder], pool.port)
    for _ in range(3):
        assert await answer(await sessions.take(pool.caller())) == b"1"
    nobody = SessionPool([tmp_path], free_port())
    with pytest.raises(DataError, match="does not answer") as error:
        await nobody.take(pool.caller())
    assert (error.value.kind, error.value.status) == (DATABASE_UNAVAILABLE, 504)
    assert str(tmp_path) not in error.value.message


async def test_caller_whom_pgbouncer_does_not_know_is_denied(pool: EndpointPool) -> None:
    """Neither another database nor another user: the service's own error, and nothing is left open."""
    sessions = SessionPool([pool.folder], pool.port)
    for changes in ({"entry": "nothing"}, {"name": "nobody"}):
        with pytest.raises(DataError) as error:
            await sessions.take(pool.caller(**changes))
        assert error.value.kind == ACCESS_DENIED, error.value.message
    assert sessions.sessions == 0


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("FATAL:  server login has been failing, cached error: password authentication failed", DATABASE_UNAVAILABLE),
        ("FATAL:  no more connections allowed (max_client_conn)", THROTTLED),
        ("FATAL:  client connections exceeded (max_user_client_connections)", THROTTLED),
        ("FATAL:  no such database: x", DATABASE_NOT_FOUND),
        ("FATAL:  server shutting down", DATABASE_UNAVAILABLE),
        ("Connection refused", DATABASE_UNAVAILABLE),
    ],
)
def test_refusals_at_the_login_mean_what_pgbouncer_means(words: str, kind: str) -> None:
    """The database's own refusal, quoted by PgBouncer, is not the caller's."""
    assert refused(f'connection to server on socket "x" failed: {words}\n').kind == kind


async def test_closed_pool_gives_no_session(pool: EndpointPool) -> None:
    """A call that comes too late is to be sent to another task; what is in use ends when it comes back."""
    sessions = SessionPool([pool.folder], pool.port)
    used = await sessions.take(pool.caller())
    sessions.close()
    with pytest.raises(DataError) as error:
        await sessions.take(pool.caller())
    assert error.value.kind == SERVICE_UNAVAILABLE
    assert await answer(used) == b"1"
    sessions.give(used)
    assert sessions.sessions == 0


async def test_session_that_dies_while_it_is_taken_is_counted_once(pool: EndpointPool) -> None:
    """Between two statements of its user it is nobody's idle session: its end is noticed without a stumble."""
    sessions = SessionPool([pool.folder], pool.port)
    session = await sessions.take(pool.caller())
    sessions.give(session)
    assert sessions.idle(pool.caller()) is session
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    pool.signal(signal.SIGKILL)
    await fact("it was not noticed", lambda: not session.is_usable)
    sessions.give(session)
    assert (sessions.sessions, failures) == (0, [])
    pool.again()
