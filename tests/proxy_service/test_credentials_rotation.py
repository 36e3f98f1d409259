"""The pool's password is rotated while clients work: a real PgBouncer and PostgreSQL, Secrets Manager by moto."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psycopg
import pytest
import pytest_asyncio

from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.aws import AwsCalls
from emberpool_proxy.credentials.gate import LoginGate
from emberpool_proxy.credentials.snapshot import Snapshot
from emberpool_proxy.credentials.watch import Credentials
from emberpool_proxy.pgbouncer.admin import AdminConsole
from emberpool_proxy.pgbouncer.log_lines import ServerLoginFailed, event_of

from .bare_pgbouncer import (
    AGENT_PASSWORD,
    AGENT_USER,
    CLIENT,
    CLIENT_PASSWORD,
    DATABASE,
    ROLE,
    ROLE_PASSWORD,
    BarePgbouncer,
    add_role,
    bare_pgbouncer,
    verifier,
)
from .credential_settings import settings
from .simulated_aws import SimulatedAws, login, simulated_aws

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENTS = 20
BOUND_SECONDS = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL whose role's password these tests change."""
    with EmbeddedPostgres(max_connections=40) as running:
        add_role(running)
        yield running


@pytest.fixture(scope="module")
def aws() -> Iterator[SimulatedAws]:
    with simulated_aws() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def calls(aws: SimulatedAws) -> AsyncIterator[AwsCalls]:
    made = AwsCalls(linger_seconds=60)
    yield made
    await made.close()


def set_password(server: EmbeddedPostgres, password: str) -> None:
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        made = connection.pgconn.encrypt_password(password.encode(), ROLE.encode(), b"scram-sha-256").decode()
        connection.execute(f"ALTER ROLE {ROLE} PASSWORD '{made}'")


@dataclass
class Engine:
    """What the gate needs of a process."""

    pid: int
    console: AdminConsole | None


@dataclass
class Pool:
    """A PgBouncer whose files, log and console are kept as the agent does it."""

    pgbouncer: BarePgbouncer
    console: AdminConsole
    credentials: Credentials
    failed_server_logins: int = 0
    client_failures: list[str] = field(default_factory=list)
    transactions: int = 0
    last_lines: list[str] = field(default_factory=list)

    async def write(self, snapshot: Snapshot) -> None:
        secrets = {
            **snapshot.database_logins,
            CLIENT: verifier(CLIENT_PASSWORD),
            AGENT_USER: verifier(AGENT_PASSWORD),
        }
        fresh = self.pgbouncer.folder / "users.new"
        fresh.write_text("".join(f'"{user}" "{secret}"\n' for user, secret in secrets.items()))
        give_to(server_user(), fresh)
        fresh.replace(self.pgbouncer.folder / "users.txt")
        await self.console.reload()

    async def follow_log(self) -> None:
        """Tell the credentials what PgBouncer logs."""
        seen = len(self.pgbouncer.log_lines())
        while True:
            lines = self.pgbouncer.log_lines()
            for line in lines[seen:]:
                if isinstance(event := event_of(line), ServerLoginFailed):
                    self.failed_server_logins += 1
                    self.credentials.login_failed(event)
            seen = len(lines)
            await asyncio.sleep(0.005)

    async def work(self) -> None:
        """One client that runs transactions until cancelled; every error is kept."""
        connection = await psycopg.AsyncConnection.connect(self.pgbouncer.conninfo(), prepare_threshold=None)
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                try:
                    async with connection.transaction():
                        await connection.execute("select 1")
                    self.transactions += 1
                except psycopg.Error as error:
                    self.client_failures.append(str(error))
                    return
                await asyncio.sleep(0.01)
        await connection.close()

    async def servers(self) -> int:
        return sum(pool.server_connections for pool in await self.console.show_pools() if pool.database == DATABASE)

    async def is_paused(self) -> bool:
        return any(row.paused for row in await self.console.show_databases() if row.name == DATABASE)

    async def until(self, sentence: str, fact: Callable[[], Awaitable[bool]]) -> None:
        try:
            async with asyncio.timeout(BOUND_SECONDS):
                while not await fact():  # noqa: ASYNC110 (another process tells nobody)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{sentence}; the log:\n" + "\n".join(self.pgbouncer.log_lines()[-20:])) from None


NEW_SERVER = "new connection to server"
PGBOUNCER_DEFAULTS = {"server_lifetime": "3600", "server_idle_timeout": "600"}


@asynccontextmanager
async def kept_pool(
    program: PgbouncerProgram,
    server: EmbeddedPostgres,
    calls: AwsCalls,
    arn: str,
    sleep_seconds: float,
    refresh_seconds: float = 60.0,
    **pgbouncer_settings: str,
) -> AsyncIterator[Pool]:
    """Run PgBouncer, credentials and gate together, without the rest of the agent."""
    database = f"host={server.host} port={server.port} dbname={DATABASE} user={ROLE}"
    where = {"database_host": server.host, "database_port": server.port, "database_name": DATABASE}
    with bare_pgbouncer(program, {DATABASE: database}, settings=pgbouncer_settings) as pgbouncer:
        async with await pgbouncer.console() as console, await pgbouncer.console() as gate_console:
            engine = Engine(pgbouncer.child.pid, gate_console)
            gate = LoginGate(
                lambda: [engine],
                lambda entry: credentials.prove(entry),  # noqa: PLW0108 (made below, with the gate)
                lambda _, values: {
                    name: ({**PGBOUNCER_DEFAULTS, **pgbouncer_settings}[name] if value is None else value)
                    for name, value in values.items()
                },
                patience_seconds=1.0,
                tick_seconds=0.2,
                sleep_seconds=sleep_seconds,
                refresh_seconds=refresh_seconds,
            )
            credentials = Credentials(settings(database_secret_arn=arn, **where), calls, hold=gate)
            pool = Pool(pgbouncer, console, credentials)
            await pool.write(await credentials.load())
            tasks = [
                asyncio.create_task(part) for part in (gate.run(), credentials.watch(pool.write), pool.follow_log())
            ]
            try:
                yield pool
            finally:
                pool.last_lines = [line for line in pgbouncer.log_lines() if " C-0x" not in line][-60:]
                for task in tasks:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(isinstance(result, asyncio.CancelledError) for result in results), results


@pytest.fixture
def arn(aws: SimulatedAws, server: EmbeddedPostgres, request: pytest.FixtureRequest) -> str:
    set_password(server, ROLE_PASSWORD)
    return aws.secret(request.node.name, login(ROLE, ROLE_PASSWORD))


async def test_rotation_under_load_fails_no_client(
    pgbouncer_program: PgbouncerProgram, server: EmbeddedPostgres, aws: SimulatedAws, calls: AwsCalls, arn: str
) -> None:
    """Twenty busy clients, server connections that live for 4 s, a new password: failed logins, no failed client.

    First as Secrets Manager rotates, AWSPENDING before the database; then as people do, the secret long after it.
    """
    async with kept_pool(pgbouncer_program, server, calls, arn, 60, server_lifetime="4") as pool:
        workers = [asyncio.create_task(pool.work()) for _ in range(CLIENTS)]
        for password, stage, failures_before_the_secret in (("first", "AWSPENDING", 0), ("second", "AWSCURRENT", 18)):
            await pool.until("the pool did not fill", lambda: has_servers(pool))
            before = pool.failed_server_logins
            if not failures_before_the_secret:
                aws.put(arn, login(ROLE, password), stage)
            set_password(server, password)

            async def has_failed(least: int = before + (failures_before_the_secret or 1)) -> bool:
                return pool.failed_server_logins >= least

            await pool.until("no login failed", has_failed)
            if failures_before_the_secret:
                aws.put(arn, login(ROLE, password), stage)
            await pool.until("the pool did not log in with the new password", lambda: logs_in_again(pool))
        await pool.until("the pool did not fill", lambda: has_servers(pool))
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers)
    assert pool.client_failures == [], "\n".join(pool.last_lines)
    assert pool.transactions > CLIENTS


async def logs_in_again(pool: Pool) -> bool:
    """Whether a login was good since the last one that failed: PgBouncer tries one at a time."""
    lines = [line for line in pool.pgbouncer.log_lines() if "server login failed" in line or NEW_SERVER in line]
    return len(lines) >= 2 and all(NEW_SERVER in line for line in lines[-2:])


async def test_rotation_while_the_pool_is_empty_fails_no_client(
    pgbouncer_program: PgbouncerProgram, server: EmbeddedPostgres, aws: SimulatedAws, calls: AwsCalls, arn: str
) -> None:
    """An idle pool sleeps; the password changes; twenty clients come at once, and PgBouncer never tries the old one."""
    async with kept_pool(pgbouncer_program, server, calls, arn, sleep_seconds=0.5) as pool:
        async with await psycopg.AsyncConnection.connect(pool.pgbouncer.conninfo(), autocommit=True) as idle:
            await idle.execute("select 1")
            await pool.until("the idle pool was not put to sleep", pool.is_paused)
            await pool.until("a sleeping pool has server connections", lambda: is_empty(pool))
            aws.put(arn, login(ROLE, "rotated-asleep"), "AWSPENDING")
            set_password(server, "rotated-asleep")
            workers = [asyncio.create_task(pool.work()) for _ in range(CLIENTS)]
            await idle.execute("select 1")
            await pool.until("the clients did not work", lambda: have_worked(pool))
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers)
    assert pool.client_failures == []
    assert pool.failed_server_logins == 0


async def has_servers(pool: Pool) -> bool:
    return await pool.servers() >= 3


async def is_empty(pool: Pool) -> bool:
    return await pool.servers() == 0


async def have_worked(pool: Pool) -> bool:
    return pool.transactions >= CLIENTS * 3 or bool(pool.client_failures)


async def test_client_of_a_role_that_stays_refused_is_told_so(
    pgbouncer_program: PgbouncerProgram, server: EmbeddedPostgres, aws: SimulatedAws, calls: AwsCalls, arn: str
) -> None:
    """With no valid password anywhere clients do not wait for ever; once the secret is right again they work."""
    async with kept_pool(pgbouncer_program, server, calls, arn, sleep_seconds=60, query_wait_timeout="20") as pool:
        await pool.until("the empty pool was not put to sleep", pool.is_paused)
        set_password(server, "known-to-nobody")
        with pytest.raises(psycopg.Error, match="password authentication failed"):
            await psycopg.AsyncConnection.connect(pool.pgbouncer.conninfo())
        aws.put(arn, login(ROLE, "known-to-nobody"))

        async def works_again() -> bool:
            try:
                async with await psycopg.AsyncConnection.connect(pool.pgbouncer.conninfo()) as another:
                    await another.execute("select 1")
            except psycopg.Error:
                return False
            return True

        await pool.until("the right password was not taken over", works_again)


async def test_only_server_connection_is_replaced_after_a_proof(
    pgbouncer_program: PgbouncerProgram, server: EmbeddedPostgres, aws: SimulatedAws, calls: AwsCalls, arn: str
) -> None:
    """A pool with one connection gets a new one before that one's lifetime is over, with the right password."""
    async with kept_pool(pgbouncer_program, server, calls, arn, sleep_seconds=60, refresh_seconds=0.5) as pool:
        worker = asyncio.create_task(pool.work())
        await pool.until("no client worked", lambda: has_worked_once(pool))
        aws.put(arn, login(ROLE, "rotated-single"), "AWSPENDING")
        set_password(server, "rotated-single")
        first = {row.remote_pid for row in await pool.console.show_servers()}

        async def is_replaced() -> bool:
            return not first & {row.remote_pid for row in await pool.console.show_servers()}

        await pool.until("the server connection was not replaced", is_replaced)
        done = pool.transactions

        async def goes_on() -> bool:
            return pool.transactions > done or bool(pool.client_failures)

        await pool.until("the client did not go on", goes_on)
        worker.cancel()
        await asyncio.gather(worker)
    assert pool.client_failures == []
    assert pool.failed_server_logins == 0


async def has_worked_once(pool: Pool) -> bool:
    return pool.transactions > 0
