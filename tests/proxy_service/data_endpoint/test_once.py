"""A call that comes again is answered again, and does not run again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.data_endpoint.calls import ExecuteStatement
from emberpool_proxy.data_endpoint.errors import DATABASE_ERROR, DATABASE_UNAVAILABLE, THROTTLED, DataError
from emberpool_proxy.data_endpoint.once import Answers, fingerprint

from .endpoint_pool import EndpointPool, Running, endpoint_pool, fact, operations

KEY = fingerprint("caller", "id", "/Execute", b"{}")
INSERT = "insert into things values (1) returning id"


class Counted:
    """Work that counts how often it was done."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.times = 0

    async def __call__(self) -> bytes:
        self.times += 1
        await asyncio.sleep(0)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(scope="module")
def pool(postgres: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram) -> Iterator[EndpointPool]:
    with endpoint_pool(postgres, pgbouncer_program, "data_once") as running:
        yield running


@pytest_asyncio.fixture
async def data(pool: EndpointPool) -> AsyncIterator[Running]:
    async with operations(pool) as running:
        await running.values("drop table if exists things")
        await running.values("create table things (id int)")
        yield running


async def test_call_that_comes_again_gets_the_first_answer(data: Running) -> None:
    """Before and after the first has its answer; an insert is done once."""
    answers, caller = Answers(), data.pool.caller()

    def work() -> asyncio.Future[bytes]:
        return asyncio.ensure_future(data.operations.run(caller, ExecuteStatement(INSERT)))

    at_once = await asyncio.gather(*(answers.once(KEY, work) for _ in range(5)))
    later = await answers.once(KEY, work)
    assert set(at_once) == {later} == {b'{"numberOfRecordsUpdated":0,"records":[[{"longValue":1}]]}'}
    assert await data.values("select count(*) from things") == [[1]]
    await answers.once(fingerprint("caller", "another id", "/Execute", b"{}"), work)
    assert await data.values("select count(*) from things") == [[2]]


async def test_call_whose_client_has_gone_runs_again_when_it_had_done_nothing(data: Running) -> None:
    """The one that waits for the first attempt does the work when the first was stopped."""
    answers, caller = Answers(), data.pool.caller()
    slow = ExecuteStatement("with slow as (select pg_sleep(0.4)) insert into things select 1 from slow")
    first = asyncio.ensure_future(answers.once(KEY, lambda: data.operations.run(caller, slow)))
    await fact("it did not start", data.pool.running)
    second = asyncio.ensure_future(answers.once(KEY, lambda: data.operations.run(caller, slow)))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == b'{"generatedFields":[],"numberOfRecordsUpdated":1}'
    assert first.cancelled()
    assert await data.values("select count(*) from things") == [[1]]


@pytest.mark.parametrize(("kind", "times"), [(DATABASE_ERROR, 1), (DATABASE_UNAVAILABLE, 2), (THROTTLED, 2)])
async def test_errors_are_remembered_when_something_may_have_run(kind: str, times: int) -> None:
    """An error of the database is the answer for ever; one that asks to come again is not."""
    answers, work = Answers(), Counted(DataError(kind, "x", dbConnectionId=5))
    for _ in range(2):
        with pytest.raises(DataError) as error:
            await answers.once(KEY, work)
        assert (error.value.kind, error.value.message, error.value.members) == (kind, "x", {"dbConnectionId": 5})
    assert work.times == times
    assert answers.knows(KEY) == (times == 1)


async def test_calls_of_others_and_other_calls_are_not_the_same() -> None:
    """Caller, id, operation and body together are the call."""
    keys = {
        fingerprint("a", "id", "/Execute", b"x"),
        fingerprint("b", "id", "/Execute", b"x"),
        fingerprint("a", "di", "/Execute", b"x"),
        fingerprint("a", "id", "/BatchExecute", b"x"),
        fingerprint("a", "id", "/Execute", b"y"),
    }
    assert len(keys) == 5
    assert fingerprint("caller", "id", "/Execute", b"{}") == KEY


async def test_answers_are_forgotten_by_time_and_by_number() -> None:
    """Memory is bounded whatever comes."""
    answers = Answers(most=10, seconds=1.0)
    for number in range(100):
        await answers.once(b"%d" % number, Counted(b"x"))
        assert len(answers) <= 10
    assert answers.knows(b"99")
    await asyncio.sleep(2.1)
    assert not answers.knows(b"99")
    assert len(answers) == 0


async def test_answer_that_was_too_large_to_keep_is_not_run_again() -> None:
    """Above the bytes only that it ran is known, and told."""
    answers, work = Answers(most_bytes=200), Counted(b"x" * 90)
    assert await answers.once(b"1", work) == await answers.once(b"1", work)
    await answers.once(b"2", work)
    with pytest.raises(DataError, match="has run, and its answer is not kept") as error:
        await answers.once(b"2", work)
    assert error.value.status == 400
    assert work.times == 2


async def test_failure_of_ours_is_forgotten_and_wakes_who_waits() -> None:
    """Nobody waits for ever for an attempt that ended in any other way."""
    answers, work = Answers(), Counted(RuntimeError("bug"), b"x")
    first, second = (asyncio.ensure_future(answers.once(KEY, work)) for _ in range(2))
    with pytest.raises(RuntimeError):
        await first
    assert await second == b"x"
