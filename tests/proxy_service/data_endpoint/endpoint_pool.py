"""A real PgBouncer with the files that the product renders, and the endpoint's sessions at it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

from emberpool_local.host.children import Child, start_child
from emberpool_local.host.ports import free_port
from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.host.waiting import wait_until
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.credentials.snapshot import ClientUser, Snapshot
from emberpool_proxy.data_endpoint.calls import Call, Caller, ExecuteStatement, Place
from emberpool_proxy.data_endpoint.errors import DataError
from emberpool_proxy.data_endpoint.operations import Operations
from emberpool_proxy.data_endpoint.pool import SessionPool
from emberpool_proxy.pgbouncer.config import RUNNING_INI_FILE, EngineIdentity, RunningTerms, render
from emberpool_proxy.pgbouncer.scram import verifier
from emberpool_proxy.settings import ProxySettings

ROLE, ROLE_PASSWORD = "data_role", "role-password"
CLIENT, PASSWORD = "data_client", "client-password-of-43-characters-or-more-0123456789"
AGENT_PASSWORD = "agent-password-of-43-characters-or-more-0123456789"
BOUND_SECONDS = 20.0


@dataclass
class EndpointPool:
    """A running PgBouncer, the database behind it, and what sees it all: the superuser."""

    folder: Path
    port: int
    database: str
    postgres: EmbeddedPostgres
    child: Child
    start: Callable[[], Child]

    def caller(self, **changes: Any) -> Caller:
        return replace(Caller(CLIENT, self.database, PASSWORD), **changes)

    def sql(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a query as the superuser, straight at the database."""
        with psycopg.connect(self.postgres.conninfo(database=self.database), autocommit=True) as connection:
            cursor = connection.execute(query, values or None)
            return cursor.fetchall() if cursor.description else []

    def running(self) -> list[str]:
        """The statements that run in the database now for the endpoint."""
        return [
            query
            for (query,) in self.sql(
                "select query from pg_stat_activity where usename = %s and state = 'active' and datname = %s",
                ROLE,
                self.database,
            )
        ]

    def signal(self, number: signal.Signals) -> None:
        self.child.process.send_signal(number)

    def again(self) -> None:
        """Start PgBouncer after it has ended."""
        self.child = self.start()


@contextmanager
def endpoint_pool(
    postgres: EmbeddedPostgres, program: PgbouncerProgram, database: str, **settings: Any
) -> Iterator[EndpointPool]:
    """Run a PgBouncer as the proxy renders it, with a database of its own."""
    with psycopg.connect(postgres.conninfo(), autocommit=True) as connection:
        if not connection.execute("select 1 from pg_roles where rolname = %s", [ROLE]).fetchone():
            connection.execute(f"create role {ROLE} login password '{ROLE_PASSWORD}'")
        connection.execute(f"create database {database} owner {ROLE}")
    with TempFolder("endpoint") as temp:
        rendered = ProxySettings(
            database_host=postgres.host,
            database_port=postgres.port,
            database_name=database,
            database_user=ROLE,
            database_password=ROLE_PASSWORD,
            client_user=CLIENT,
            client_password=PASSWORD,
            server_tls_mode="disable",
            client_tls_mode="disable",
            data_tls_mode="disable",
            listen_host="127.0.0.1",
            run_folder=str(temp),
            **{
                "client_port": free_port(),
                "data_port": free_port(),
                "max_server_connections": 5,
                "query_wait_seconds": 3,
                **settings,
            },
        )
        folder = _written(rendered, database)
        log = temp / "pgbouncer.log"

        def start() -> Child:
            child = start_child([program.path, folder / RUNNING_INI_FILE], log_path=log, as_user=server_user())
            wait_until("PgBouncer did not listen", lambda: _listens(folder, rendered.client_port), BOUND_SECONDS)
            return child

        pool = EndpointPool(folder, rendered.client_port, database, postgres, start(), start)
        try:
            yield pool
        finally:
            pool.signal(signal.SIGCONT)
            pool.child.stop(signal.SIGQUIT)


def _listens(folder: Path, port: int) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(folder / f".s.PGSQL.{port}")) == 0


def _written(settings: ProxySettings, entry: str) -> Path:
    client = ClientUser(CLIENT, verifier(PASSWORD), entry, ROLE, passwords=(PASSWORD,))
    snapshot = Snapshot({ROLE: ROLE_PASSWORD}, (client,), {entry: ROLE})
    folder = settings.engine_path(0)
    folder.mkdir(mode=0o700)
    terms = RunningTerms(limits={entry: settings.floor})  # of a PgBouncer that the agent has given its connections
    config = render(settings, snapshot, EngineIdentity(0, 0, verifier(AGENT_PASSWORD)), terms=terms)
    for name, text in config.files.items():
        (folder / name).write_text(text)
    for path in (settings.run_path, folder, *folder.iterdir()):
        give_to(server_user(), path)
    return folder


@asynccontextmanager
async def operations(pool: EndpointPool, login_seconds: float = 15.0, **options: Any) -> AsyncIterator[Running]:
    """The endpoint's operations at this PgBouncer."""
    sessions = SessionPool([pool.folder], pool.port, login_seconds=login_seconds)
    running = Running(pool, sessions, Operations(sessions, **options))
    try:
        yield running
    finally:
        await running.operations.close()


@dataclass
class Running:
    """The operations, and short words for calls."""

    pool: EndpointPool
    sessions: SessionPool
    operations: Operations

    async def run(self, call: Call, **caller: Any) -> dict[str, Any]:
        async with asyncio.timeout(BOUND_SECONDS):
            answer: dict[str, Any] = json.loads(await self.operations.run(self.pool.caller(**caller), call))
            return answer

    async def values(self, sql: str, transaction_id: str = "", **caller: Any) -> list[list[Any]]:
        """Return the records without the names of their types."""
        call = ExecuteStatement(sql, Place(transaction_id=transaction_id))
        answer = await self.run(call, **caller)
        return [[next(iter(value.values())) for value in record] for record in answer.get("records", [])]

    async def error(self, call: Call | str, transaction_id: str = "", **caller: Any) -> DataError:
        """Return the error that a call is answered with."""
        if isinstance(call, str):
            call = ExecuteStatement(call, Place(transaction_id=transaction_id))
        try:
            answer = await self.run(call, **caller)
        except DataError as error:
            return error
        raise AssertionError(f"it was answered: {answer}")


async def fact(sentence: str, look: Callable[[], Any]) -> Any:
    """Return the fact once it is true; `sentence` is the failure. The loop goes on."""
    until = asyncio.get_running_loop().time() + BOUND_SECONDS
    while asyncio.get_running_loop().time() < until:
        if seen := look():
            return seen
        await asyncio.sleep(0.01)
    raise AssertionError(sentence)
