"""What happens to passwords: the pool's at the database and the functions' at the pool are rotated."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager

import psycopg

from emberpool_local.lab.faults.fault import Fault
from emberpool_local.lab.lab_aws import LabAws
from emberpool_local.lab.rig import Rig
from emberpool_local.lab.task import LabTask

LATE_SECRET_SECONDS = (0.2, 1.5)  # between the database and its secret when people do it, one after the other
CLIENTS_OF_A_TASK, HOLD_SECONDS = 16, 0.2  # each of them needs a server connection at the same moment
BURST = 20  # cold starts, which need logins at the pool
LOGIN_SECONDS = 5


def has_secrets(rig: Rig) -> bool:
    """Whether passwords come from Secrets Manager."""
    return rig.aws is not None


@asynccontextmanager
async def database_password_rotated(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Give the pool's role a new password, in Secrets Manager's order or as people do it, while pools must grow."""
    secret_first = chance.random() < 0.5  # noqa: PLR2004 (both orders happen)
    late = 0.0 if secret_first else chance.uniform(*LATE_SECRET_SECONDS)
    order = "the secret first" if secret_first else f"the secret {late:.1f} s after the database"
    rig.note(f"the database's password is rotated, {order}")
    await asyncio.to_thread(_rotate_while_pools_grow, rig, secret_first, late)
    yield "the database's password"


def _rotate_while_pools_grow(rig: Rig, secret_first: bool, late_seconds: float) -> None:
    """Rotate; once the old password is refused, ask every pool for more than it has. Raises psycopg.Error."""
    with ExitStack() as stack:
        clients = [stack.enter_context(_client(rig, task)) for task in rig.tasks for _ in range(CLIENTS_OF_A_TASK)]
        threads = stack.enter_context(ThreadPoolExecutor(len(clients)))
        asked: list[Future[object]] = []

        def ask() -> None:
            asked.extend(threads.submit(client.execute, "select pg_sleep(%s)", [HOLD_SECONDS]) for client in clients)
            time.sleep(late_seconds)

        _aws(rig).rotate_database(secret_first=secret_first, meanwhile=ask)
        for question in asked:
            question.result()


@asynccontextmanager
async def client_password_rotated(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Give the functions the other user with a new password, as Secrets Manager does, and start functions with it."""
    del chance
    rig.note("the functions' password is rotated")
    user = await asyncio.to_thread(_aws(rig).rotate_clients, lambda *login: _accept(rig, *login))
    rig.note(f"the functions' user is {user} from now on")
    if rig.load:
        await rig.load.burst(BURST)
    yield "the functions' password"


def _aws(rig: Rig) -> LabAws:
    if rig.aws is None:
        raise RuntimeError("this rig has no Secrets Manager")
    return rig.aws


def _accept(rig: Rig, user: str, password: str) -> bool:
    """Say whether every task lets this login in."""
    # Every task each time: one that refuses a user looks for its new password.
    accepted = [_lets_in(rig, task, user, password) for task in list(rig.tasks)]
    return all(accepted)


def _lets_in(rig: Rig, task: LabTask, user: str, password: str) -> bool:
    try:
        _login(rig, task, user, password).close()
    except psycopg.OperationalError:
        return False
    return True


def _client(rig: Rig, task: LabTask) -> psycopg.Connection[tuple[object, ...]]:
    members = _aws(rig).current(_aws(rig).client_secret_arn)
    return _login(rig, task, members["username"], members["password"])


def _login(rig: Rig, task: LabTask, user: str, password: str) -> psycopg.Connection[tuple[object, ...]]:
    host, port = rig.network.way(rig.functions, task.node, task.proxy.port)
    return psycopg.connect(
        host=host,
        port=port,
        dbname=rig.database.name,
        user=user,
        password=password,
        sslmode="require",
        connect_timeout=LOGIN_SECONDS,
        autocommit=True,
    )


FAULTS_OF_CREDENTIALS = (
    Fault(
        name="database-password-rotated",
        title="the database's password is rotated",
        promise="nothing: no failed login reaches a client",
        happen=database_password_rotated,
        lasts_seconds=(0.5, 1.0),
        is_possible=has_secrets,
    ),
    Fault(
        name="client-password-rotated",
        title="the functions' password is rotated",
        promise="nothing: the old one and the new one are accepted while functions change over",
        happen=client_password_rotated,
        lasts_seconds=(0.5, 1.0),
        is_possible=has_secrets,
    ),
)
