"""What callers hear, and what is left in the database, when something breaks in mid-statement."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
import pytest_asyncio

from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.data_endpoint.calls import (
    BatchExecuteStatement,
    BeginTransaction,
    CommitTransaction,
    ExecuteStatement,
    Parameter,
    Place,
    RollbackTransaction,
)
from emberpool_proxy.data_endpoint.cancelling import cancel
from emberpool_proxy.data_endpoint.errors import (
    DATABASE_ERROR,
    DATABASE_UNAVAILABLE,
    STATEMENT_TIMEOUT,
    THROTTLED,
    TRANSACTION_NOT_FOUND,
    DataError,
)
from emberpool_proxy.data_endpoint.session import Session

from .endpoint_pool import ROLE, EndpointPool, Running, endpoint_pool, fact, operations

TERMINATE = f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{ROLE}'"
ENDLESS = "select 'endless', pg_sleep(600)"


@pytest.fixture(scope="module")
def pool(postgres: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram) -> Iterator[EndpointPool]:
    with endpoint_pool(postgres, pgbouncer_program, "data_failures", query_wait_seconds=1) as running:
        yield running


@pytest_asyncio.fixture
async def data(pool: EndpointPool) -> AsyncIterator[Running]:
    async with operations(pool) as running:
        await running.values("drop table if exists things")
        await running.values("create table things (id int primary key, name text)")
        await running.values("insert into things values (1, 'a'), (2, 'b')")
        yield running


async def begin(data: Running) -> str:
    return str((await data.run(BeginTransaction()))["transactionId"])


async def started(pool: EndpointPool, words: str = "endless") -> None:
    await fact(f"{words} did not start", lambda: any(words in query for query in pool.running()))


async def cancelled(work: asyncio.Task[object]) -> None:
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_backend_that_is_terminated_leaves_an_unknown_outcome(data: Running, pool: EndpointPool) -> None:
    """No 5xx, which SDKs would send again; the next call has another connection."""
    call = asyncio.ensure_future(data.error(ENDLESS))
    await started(pool)
    pool.sql(TERMINATE)
    error = await call
    assert (error.kind, error.status) == (DATABASE_ERROR, 400)
    assert "outcome is unknown" in error.message
    assert await data.values("select 1") == [[1]]


async def test_backend_that_is_terminated_in_a_transaction_has_rolled_it_back(
    data: Running, pool: EndpointPool
) -> None:
    """The caller hears that at once, in mid-statement and between statements; later calls find no transaction."""
    busy, idle = await begin(data), await begin(data)
    await data.values("update things set name = 'x' where id = 1", busy)
    await data.values("update things set name = 'x' where id = 2", idle)
    call = asyncio.ensure_future(data.error(ENDLESS, busy))
    await started(pool)
    pool.sql(TERMINATE)
    error = await call
    assert (error.kind, error.status) == (DATABASE_ERROR, 400)
    assert "the transaction is rolled back" in error.message
    await fact("the other one's end was not noticed", lambda: not data.operations.open_transactions)
    for transaction in (busy, idle):
        error = await data.error(CommitTransaction(transaction))
        assert error.kind == TRANSACTION_NOT_FOUND
        assert "connection to the database was lost" in error.message
    assert await data.values("select name from things order by id") == [["a"], ["b"]]


async def test_connection_that_is_lost_in_a_commit_leaves_an_unknown_outcome(data: Running, pool: EndpointPool) -> None:
    """A commit that waits for a deferred trigger when its backend ends: nobody can say, and nobody guesses."""
    await data.values(
        "create or replace function slowly() returns trigger language plpgsql as "
        "'begin perform ''endless'', pg_sleep(600); return null; end'"
    )
    await data.values(
        "create constraint trigger slow after delete on things deferrable initially deferred "
        "for each row execute function slowly()"
    )
    transaction = await begin(data)
    await data.values("delete from things", transaction)
    call = asyncio.ensure_future(data.error(CommitTransaction(transaction)))
    await started(pool, "COMMIT")
    pool.sql(TERMINATE)
    error = await call
    assert error.status == 400
    assert "outcome is unknown" in error.message
    assert "not known" in (await data.error(CommitTransaction(transaction))).message


async def test_statement_is_stopped_when_its_time_is_up(pool: EndpointPool) -> None:
    """The answer is the service's; nothing goes on in the database; the session is used again."""
    async with operations(pool, statement_seconds=0.3) as data:
        error = await data.error(ENDLESS)
        assert (error.kind, error.status) == (STATEMENT_TIMEOUT, 400)
        assert not pool.running()
        assert await data.values("select 1") == [[1]]
        assert data.sessions.sessions == 1
        transaction = await begin(data)
        assert (await data.error(ENDLESS, transaction)).kind == STATEMENT_TIMEOUT
        assert "25P02" in (await data.error("select 1", transaction)).message
        await data.run(RollbackTransaction(transaction))


async def test_cancel_request_is_through_before_the_session_is_used_again(
    pool: EndpointPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that is still on its way would stop the next statement."""
    through: list[bool] = []

    async def slowly(session: Session) -> None:
        await cancel(session)
        await asyncio.sleep(0.1)
        through.append(True)

    monkeypatch.setattr("emberpool_proxy.data_endpoint.runner.cancel", slowly)
    async with operations(pool, statement_seconds=0.1) as data:
        assert (await data.error(ENDLESS)).kind == STATEMENT_TIMEOUT
        assert through == [True]


async def test_statement_that_may_go_on_after_its_time_does(data: Running, pool: EndpointPool) -> None:
    """The answer names its process, the statement ends by itself, and has done what it should."""
    async with operations(pool, statement_seconds=0.2) as patient:
        sql = "with slow as (select pg_sleep(2)) insert into things select 3, 'late' from slow"
        error = await patient.error(ExecuteStatement(sql, continues_after_timeout=True))
        assert error.kind == STATEMENT_TIMEOUT
        (seen,) = pool.sql("select pid from pg_stat_activity where query like '%late%' and pid <> pg_backend_pid()")
        assert error.members == {"dbConnectionId": seen[0]}
        await fact("it did not go on", lambda: pool.sql("select 1 from things where name = 'late'"))
        quick = ExecuteStatement("select 1", continues_after_timeout=True)
        assert (await patient.run(quick))["records"] == [[{"longValue": 1}]]
        no_transaction = ExecuteStatement("vacuum things", continues_after_timeout=True)
        assert (await patient.run(no_transaction))["numberOfRecordsUpdated"] == 0


async def test_statement_that_goes_on_in_a_transaction_keeps_it(data: Running, pool: EndpointPool) -> None:
    """The next call waits for it and finds what it has done."""
    async with operations(pool, statement_seconds=0.2) as patient:
        transaction = await begin(patient)
        sql = "with slow as (select pg_sleep(2)) insert into things select 3, 'late' from slow"
        place = Place(transaction_id=transaction)
        error = await patient.error(ExecuteStatement(sql, place, continues_after_timeout=True))
        assert error.kind == STATEMENT_TIMEOUT
        (seen,) = pool.sql("select pid from pg_stat_activity where query like '%late%' and pid <> pg_backend_pid()")
        assert error.members == {"dbConnectionId": seen[0]}
        assert await patient.values("select count(*) from things", transaction) == [[3]]


async def test_caller_that_goes_away_leaves_no_statement_behind(data: Running, pool: EndpointPool) -> None:
    """It is cancelled in the database, in a batch and in a transaction too, and the session is clean for the next."""
    transaction = await begin(data)
    sets = [[Parameter("s", {"longValue": 600})]] * 2
    await data.values("select 1")
    before = data.sessions.sessions
    for call in (
        ExecuteStatement(ENDLESS),
        BatchExecuteStatement("select 'endless', pg_sleep(:s)", parameter_sets=sets),
        ExecuteStatement(ENDLESS, Place(transaction_id=transaction)),
    ):
        work: asyncio.Task[object] = asyncio.ensure_future(data.run(call))
        await started(pool)
        await cancelled(work)
        assert not [query for query in pool.running() if "endless" in query]
        assert await data.values("select 1") == [[1]]
    assert data.sessions.sessions == before
    assert "25P02" in (await data.error("select 1", transaction)).message


async def test_caller_that_goes_away_too_late_has_its_statement_done(data: Running) -> None:
    """Whoever cancels at any moment: a statement is done and answered, or has changed nothing."""
    for number in range(100, 160):
        work = asyncio.ensure_future(data.run(ExecuteStatement(f"insert into things values ({number})")))
        for _ in range(number % 12):
            await asyncio.sleep(0)
        work.cancel()
        answered = False
        with suppress(asyncio.CancelledError):
            answered = (await work)["numberOfRecordsUpdated"] == 1
        assert await data.values(f"select count(*) from things where id = {number}") == [[int(answered)]]


async def test_caller_that_goes_away_while_it_waits_for_a_connection_runs_nothing(
    data: Running, pool: EndpointPool
) -> None:
    """PgBouncer drops cancel requests for those in its line: the endpoint leaves the line by closing."""
    async with operations(pool) as busy:
        blocked = [await begin(busy) for _ in range(5)]
        work: asyncio.Task[object] = asyncio.ensure_future(data.run(ExecuteStatement("delete from things")))
        await asyncio.sleep(0.1)
        work.cancel()
        with pytest.raises((asyncio.CancelledError, DataError)):
            await work
        for transaction in blocked:
            await busy.run(RollbackTransaction(transaction))
    assert await data.values("select count(*) from things") == [[2]]


async def test_begin_whose_caller_has_gone_leaves_no_transaction(data: Running, pool: EndpointPool) -> None:
    """Nobody would know its id."""
    for steps in range(8):
        work = asyncio.ensure_future(data.run(BeginTransaction()))
        for _ in range(steps):
            await asyncio.sleep(0)
        work.cancel()
        with suppress(asyncio.CancelledError):
            await data.run(RollbackTransaction((await work)["transactionId"]))
        assert data.operations.open_transactions == 0
    blocked = [await begin(data) for _ in range(5)]
    waiting: asyncio.Task[object] = asyncio.ensure_future(data.run(BeginTransaction()))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.sleep(0.05)  # the cancel request comes too early: PgBouncer has not sent the BEGIN yet
    for transaction in blocked:
        await data.run(RollbackTransaction(transaction))
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert data.operations.open_transactions == 0
    in_transaction = "select 1 from pg_stat_activity where usename = 'data_role' and state like 'idle in%'"
    await fact("a transaction is open", lambda: not pool.sql(in_transaction))


async def test_pool_without_a_free_connection_says_come_later(data: Running, pool: EndpointPool) -> None:
    """Nothing has run, so the answer is one that SDKs send again; so for BeginTransaction."""
    blocked = [await begin(data) for _ in range(5)]
    for call in (ExecuteStatement("delete from things"), BeginTransaction()):
        error = await data.error(call)
        assert (error.kind, error.status) == (THROTTLED, 429)
        assert "query_wait_timeout" in error.message
    for transaction in blocked:
        await data.run(RollbackTransaction(transaction))
    assert await data.values("select count(*) from things") == [[2]]


async def test_deadlock_and_lock_timeout_are_the_databases_own_errors(data: Running) -> None:
    """The victim hears 40P01, the other goes on; a lock_timeout says 55P03."""
    one, two = await begin(data), await begin(data)
    await data.values("update things set name = 'x' where id = 1", one)
    await data.values("update things set name = 'x' where id = 2", two)
    waiting = [
        asyncio.ensure_future(data.values("update things set name = 'y' where id = 2", one)),
        asyncio.ensure_future(data.values("update things set name = 'y' where id = 1", two)),
    ]
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, DataError)]
    assert len(errors) == 1
    assert "40P01" in errors[0].message
    third = await begin(data)
    await data.values("set local lock_timeout = '50ms'", third)
    assert "55P03" in (await data.error("update things set name = 'z'", third)).message


async def test_serialization_failure_is_told_at_the_statement_or_at_the_commit(data: Running) -> None:
    """One of two that cannot both be true is rolled back with 40001."""
    one, two = await begin(data), await begin(data)
    for number, transaction in enumerate((one, two), 3):
        await data.values("set transaction isolation level serializable", transaction)
        await data.values("select count(*) from things", transaction)
        await data.values(f"insert into things values ({number})", transaction)
    await data.run(CommitTransaction(one))
    assert "40001" in (await data.error(CommitTransaction(two))).message
    assert await data.values("select count(*) from things") == [[3]]


async def test_statement_timeout_of_the_database_is_an_error_of_the_database(data: Running) -> None:
    """The endpoint's own timeout is another: this one was somebody's setting."""
    transaction = await begin(data)
    await data.values("set local statement_timeout = '50ms'", transaction)
    error = await data.error(ENDLESS, transaction)
    assert error.kind == DATABASE_ERROR
    assert "57014" in error.message


async def test_killed_pgbouncer_is_survived(data: Running, pool: EndpointPool) -> None:
    """In flight: unknown. Until it is back: unavailable, which SDKs send again. Then: as before."""
    transaction = await begin(data)
    await data.values("select 1")
    work = asyncio.ensure_future(data.error(ENDLESS))
    await started(pool)
    pool.signal(signal.SIGKILL)
    assert "outcome is unknown" in (await work).message
    await fact("the lease is still there", lambda: not data.operations.open_transactions)
    await fact("a session is still there", lambda: not data.sessions.sessions)
    error = await data.error("select 1")
    assert (error.kind, error.status) == (DATABASE_UNAVAILABLE, 504)
    await fact("the statement goes on", lambda: not pool.running())  # the backends' check for their client
    pool.again()
    assert await data.values("select 1") == [[1]]
    assert (await data.error("select 1", transaction)).kind == TRANSACTION_NOT_FOUND


async def test_mute_pgbouncer_costs_a_bounded_time(data: Running, pool: EndpointPool) -> None:
    """Neither a login nor a statement waits for ever; when it speaks again all is well."""
    async with operations(pool, statement_seconds=0.2, login_seconds=0.3) as hurried:
        await hurried.values("select 1")
        pool.signal(signal.SIGSTOP)
        try:
            running = asyncio.ensure_future(hurried.error("select 1"))
            await asyncio.sleep(0)
            error = await hurried.error("select 1")
            assert error.kind == DATABASE_UNAVAILABLE
            assert "0.3 s" in error.message
            assert "outcome is unknown" in (await running).message
        finally:
            pool.signal(signal.SIGCONT)
        assert await hurried.values("select 1") == [[1]]


async def test_database_that_is_down_is_unavailable_and_comes_back(
    pgbouncer_program: PgbouncerProgram,
) -> None:
    """Idle sessions are not lost by an outage of the database; calls in it are told to come again."""
    with (
        EmbeddedPostgres(max_connections=20) as own,
        endpoint_pool(own, pgbouncer_program, "data_outage", query_wait_seconds=1) as pool,
    ):
        async with operations(pool) as data:
            assert await data.values("select 1") == [[1]]
            own.stop("fast")
            error = await data.error("select 1")
            assert error.status >= 429 or "unknown" in error.message
            error = await data.error("select 1")
            assert error.kind in (DATABASE_UNAVAILABLE, THROTTLED)
            own.start()

            async def back() -> bool:
                try:
                    return await data.values("select 1") == [[1]]
                except DataError:
                    return False

            for _ in range(100):
                if await back():
                    break
                await asyncio.sleep(0.05)
            else:
                raise AssertionError("it did not come back")
