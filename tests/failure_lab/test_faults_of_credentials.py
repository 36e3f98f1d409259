"""Passwords are rotated while functions work: what the secrets hold, and that no invocation fails."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
import pytest_asyncio
from botocore.exceptions import ClientError

from emberpool_local.host.waiting import wait_until
from emberpool_local.lab.faults import FAULTS
from emberpool_local.lab.lab_aws import AWSPENDING, CLIENT_USERS, LabAws
from emberpool_local.lab.ledger import lay_out
from emberpool_local.lab.load import Load
from emberpool_local.lab.rig import Rig, RigOptions, open_rig
from emberpool_local.pgbouncer.program import PgbouncerProgram

from .working_rig import MANY_SECONDS, happened, working_load, works

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPTIONS = RigOptions(tasks=2, has_clock=False)
SMALL = 12  # server connections: the fault asks for more than the budget has


@pytest.fixture(scope="module")
def rig(pgbouncer_program: PgbouncerProgram) -> Iterator[Rig]:
    """Two tasks with a simulated Secrets Manager, and a ledger."""
    with open_rig(OPTIONS) as running:
        lay_out(running.database.superuser_conninfo(), running.database.role)
        yield running


@pytest.fixture(scope="module")
def aws(rig: Rig) -> LabAws:
    """The secrets of the rig."""
    assert rig.aws is not None
    return rig.aws


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def load(rig: Rig) -> AsyncIterator[Load]:
    """Functions that are at work all the time."""
    async with working_load(rig) as running:
        await works(running)
        yield running


@pytest.mark.parametrize("seed", [1, 2])
async def test_rotated_database_password_fails_no_invocation(rig: Rig, aws: LabAws, load: Load, seed: int) -> None:
    """The old password is refused and the secret has the new one; new server connections are made meanwhile."""
    before = aws.current(aws.database_secret_arn)["password"]
    await asyncio.to_thread(
        wait_until, "the pools stay as large as they were", lambda: rig.pool_connections() <= SMALL, MANY_SECONDS
    )
    since = logins_of_pools(rig)
    assert await happened(rig, load, FAULTS["database-password-rotated"], seed) == []
    after = aws.current(aws.database_secret_arn)["password"]
    assert after == rig.database.password != before
    assert logins_of_pools(rig) > since
    assert await asyncio.to_thread(is_let_in, rig, after)
    assert not await asyncio.to_thread(is_let_in, rig, before)


async def test_both_orders_of_a_rotation_happen(rig: Rig) -> None:
    """The seeds of the test above are one of Secrets Manager's order and one of people's."""
    notes = [text for _, text in rig.notes if "the database's password is rotated" in text]
    assert any("the secret first" in note for note in notes)
    assert any("after the database" in note for note in notes)


async def test_rotated_client_password_fails_no_invocation(rig: Rig, aws: LabAws, load: Load) -> None:
    """Twice: the functions' user is the other one, with a new password; what else was in the secret still is."""
    for _ in CLIENT_USERS:
        before = aws.current(aws.client_secret_arn)
        assert await happened(rig, load, FAULTS["client-password-rotated"]) == []
        after = aws.current(aws.client_secret_arn)
        assert {before["username"], after["username"]} == set(CLIENT_USERS)
        assert after["password"] != before["password"]
        assert after["ca_certificate"] == before["ca_certificate"]
        with pytest.raises(ClientError, match="ResourceNotFoundException"):
            aws.read(aws.client_secret_arn, AWSPENDING)


async def test_rotation_that_no_task_accepts_is_not_finished(rig: Rig, aws: LabAws, load: Load) -> None:
    """A pending password whose test fails stays pending: AWSCURRENT is what it was, and the functions go on."""
    before = aws.current(aws.client_secret_arn)
    with pytest.raises(TimeoutError, match="no login with the pending password"):
        await asyncio.to_thread(aws.rotate_clients, lambda _user, _password: False, within_seconds=0.3)
    assert aws.current(aws.client_secret_arn) == before
    assert aws.read(aws.client_secret_arn, AWSPENDING)["password"] != before["password"]
    await works(load)
    del rig


def logins_of_pools(rig: Rig) -> int:
    """Return how many logins of pools the database has let in or refused so far."""
    words = re.compile(f"connection authorized: user={rig.database.role} |password authentication failed for user")
    lines = rig.database.primary.log_path.read_text().splitlines()
    return sum("application_name=emberpool-" not in line and bool(words.search(line)) for line in lines)


def is_let_in(rig: Rig, password: str) -> bool:
    """Say whether the database itself lets the pool's role in with this password."""
    database = rig.database
    login = database.primary.conninfo(database.role, password, database.name, by_socket=True)
    try:
        psycopg.connect(login).close()
    except psycopg.OperationalError:
        return False
    return True
