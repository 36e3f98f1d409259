"""The whole product on this machine: an embedded PostgreSQL and the proxy in front of it, as one task or several.

Owns the names and passwords of the database, what a handler's environment says of it, and what makes tasks one fleet.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from psycopg.conninfo import make_conninfo

from emberpool import settings as layer
from emberpool_local.errors import LocalStackError
from emberpool_local.host.ports import free_port
from emberpool_local.pgbouncer.program import PgbouncerProgram, find_pgbouncer
from emberpool_local.postgres.server import RESERVED_CONNECTIONS, EmbeddedPostgres
from emberpool_local.proxy import DatabaseAccess, LocalProxy
from emberpool_proxy.settings import AGENT_CONNECTIONS

DATABASE = "app"
ROLE = "app"
FLOOR_CONNECTIONS = 2  # of a task that shares the budget
MOST_TASKS = 50
LOCAL_REGION = "us-east-1"  # of the signature only: the endpoint takes any
AUTHORITIES = "authorities.crt"


class TasksInvalid(LocalStackError):  # noqa: N818 (named by what to do, as all errors of emberpool)
    """So many tasks cannot share so small a budget."""


def check_tasks(tasks: int, max_server_connections: int) -> None:
    """Raise TasksInvalid unless the floors of `tasks` that share the budget fit into it, with a slot to share."""
    needed = tasks * (FLOOR_CONNECTIONS + AGENT_CONNECTIONS) + 1
    if not 1 <= tasks <= MOST_TASKS:
        raise TasksInvalid(f"{tasks} tasks were asked for", f"give --tasks from 1 to {MOST_TASKS}")
    if tasks > 1 and max_server_connections < needed:
        raise TasksInvalid(
            f"{tasks} tasks that share {max_server_connections} server connections need {needed}: each a floor of "
            f"{FLOOR_CONNECTIONS} and {AGENT_CONNECTIONS} for its agent, and one to share",
            f"give --max-server-connections of at least {needed}, or fewer tasks",
        )


class LocalStack:
    """PostgreSQL and the proxy, started in that order: with LocalStack() as stack.

    Several `tasks` share `max_server_connections`; each listens on an address of its own, 127.0.0.1 and up, on the same
    port.
    `proxy_settings` are further fields of ProxySettings and win over ours.
    open() raises a LocalStackError: PostgresUnavailable, PgbouncerUnavailable, SystemPackagesMissing, ProxyUnavailable,
    PortTaken or CacheNotWritable. The constructor opens nothing.
    """

    def __init__(
        self,
        max_connections: int = 40,
        max_server_connections: int = 20,
        postgres_port: int | None = None,
        proxy_port: int | None = None,
        proxy_settings: Mapping[str, str] | None = None,
        progress: Callable[[str], None] = lambda _: None,
        tasks: int = 1,
        has_data_endpoint: bool = False,
    ) -> None:
        self.max_connections = max_connections
        self.max_server_connections = max_server_connections
        self.postgres = EmbeddedPostgres(max_connections, postgres_port)
        self._proxy_port = proxy_port
        self._proxy_settings = proxy_settings
        self._progress = progress
        self._tasks = tasks
        self._has_data_endpoint = has_data_endpoint
        self._role_password = secrets.token_urlsafe(24)
        self._proxies: list[LocalProxy] = []
        self._opened = ExitStack()

    @property
    def proxy(self) -> LocalProxy:
        """The proxy, of several tasks the first; open() made it."""
        if not self._proxies:
            raise RuntimeError("the local stack is not open")
        return self._proxies[0]

    @property
    def proxies(self) -> tuple[LocalProxy, ...]:
        """All tasks of the proxy; open() made them."""
        return tuple(self._proxies)

    @property
    def direct_conninfo(self) -> str:
        """The connection string of the function's role straight to the database."""
        return self.postgres.conninfo(ROLE, self._role_password, DATABASE)

    @property
    def proxy_conninfo(self) -> str:
        """The connection string of the function's user through the proxy, of several tasks each time to any one."""
        if len(self._proxies) == 1:
            return self.proxy.conninfo()
        return make_conninfo(
            self.proxy.conninfo(),
            host=",".join(proxy.host for proxy in self._proxies),
            sslrootcert=str(self._authorities),
            load_balance_hosts="random",
        )

    @property
    def superuser_conninfo(self) -> str:
        """The superuser's connection string, straight to the application's database."""
        return self.postgres.conninfo(database=DATABASE)

    def open(self) -> None:
        """Start both; nothing is left running when that fails."""
        with ExitStack() as undo:
            # First, as it may take half a minute and fail.
            pgbouncer = find_pgbouncer(self._progress)
            self._progress(f"Starting PostgreSQL ({self.postgres.program.origin})")
            undo.enter_context(self.postgres)
            self.postgres.create_role_and_database(ROLE, self._role_password, DATABASE)
            access = DatabaseAccess(self.postgres.host, self.postgres.port, DATABASE, ROLE, self._role_password)
            self._start_proxies(undo, access, pgbouncer)
            self._opened = undo.pop_all()

    def close(self) -> None:
        """Stop both, the proxy first, and remove their folders."""
        self._opened.close()
        self._proxies = []

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_proxies(self, undo: ExitStack, access: DatabaseAccess, pgbouncer: PgbouncerProgram) -> None:
        port, settings = self._proxy_port, dict(self._proxy_settings or {})
        hosts, shared = [""], {}
        if self._tasks > 1:
            port, health_port = port or free_port(), free_port()
            hosts = [f"127.0.0.{number}" for number in range(1, self._tasks + 1)]
            shared = {
                "health_port": str(health_port),
                "client_password": secrets.token_urlsafe(32),
                "most_tasks_alive": str(self._tasks),
                "floor_connections": str(FLOOR_CONNECTIONS),
                "reserved_connections": str(RESERVED_CONNECTIONS),
                "fleet_members": ",".join(f"{host}:{health_port}" for host in hosts),
            }
        proxies = []
        for number, host in enumerate(hosts, 1):
            self._progress("Starting the proxy" + (f", task {number} of {self._tasks}" if shared else ""))
            own = {"listen_host": host, "client_tls_host_names": host} if host else {}
            given = {**shared, **own, **settings}
            proxy = LocalProxy(
                access,
                self.max_server_connections,
                port,
                given,
                pgbouncer,
                has_data_endpoint=self._has_data_endpoint,
            )
            proxies.append(undo.enter_context(proxy))
        self._proxies = proxies
        if shared:
            # Each task has made a CA for itself; a client that may meet any of them trusts all.
            self._authorities.write_text("".join(proxy.certificate_path.read_text() for proxy in proxies))

    @property
    def _authorities(self) -> Path:
        return self.proxy.run_folder.parent / AUTHORITIES

    def handler_environment(self) -> dict[str, str]:
        """Return the layer's variables for a handler that goes through the proxy."""
        return {
            layer.HOST: self.proxy.host,
            layer.PORT: str(self.proxy.port),
            layer.DATABASE: DATABASE,
            layer.USER: self.proxy.client_user,
            layer.PASSWORD: self.proxy.client_password,
            layer.SSLMODE: "verify-full",
            layer.SSLROOTCERT: str(self.proxy.certificate_path),
            layer.METRICS: "off",  # their lines are for CloudWatch, which is not here
            **({layer.DATA_ENDPOINT: self.proxy.data_url} if self._has_data_endpoint else {}),
        }

    def data_client_environment(self) -> dict[str, str]:
        """Return the variables by which boto3's, or any AWS SDK's, rds-data client finds the data endpoint."""
        return {
            "AWS_ENDPOINT_URL_RDS_DATA": self.proxy.data_url,
            "AWS_ACCESS_KEY_ID": self.proxy.client_user,
            "AWS_SECRET_ACCESS_KEY": self.proxy.client_password,
            "AWS_DEFAULT_REGION": LOCAL_REGION,
        }

    def direct_handler_environment(self) -> dict[str, str]:
        """Return the layer's variables for a handler that goes straight to the database."""
        return {
            layer.HOST: self.postgres.host,
            layer.PORT: str(self.postgres.port),
            layer.DATABASE: DATABASE,
            layer.USER: ROLE,
            layer.PASSWORD: self._role_password,
            layer.SSLMODE: "disable",
            layer.METRICS: "off",
        }

    def describe(self) -> str:
        """Return what `emberpool up` prints, passwords included: where both listen and what a handler needs."""
        where, handlers = f"{self.proxy.host}:{self.proxy.port}", ""
        if self._tasks > 1:
            where = f"{self._proxies[0].host} to {self._proxies[-1].host}, port {self.proxy.port}: {self._tasks} tasks"
            handlers = " (of the first task: the layer connects to one host name)"
        data = ""
        if self._has_data_endpoint:
            data = (
                '\nboto3.client("rds-data") needs, and any ARN as resourceArn and secretArn:\n'
                f"{_exports(self.data_client_environment())}\n"
            )
        return (
            f"PostgreSQL {self.postgres.program.version} ({self.postgres.program.origin}) on "
            f"{self.postgres.host}:{self.postgres.port}, max_connections = {self.max_connections}\n"
            f"emberpool's proxy on {where}, at most {self.max_server_connections} server connections\n\n"
            f"Through the proxy:        {self.proxy_conninfo}\n"
            f"Straight to the database: {self.direct_conninfo}\n\n"
            f"A handler with @warm_connection needs{handlers}:\n{_exports(self.handler_environment())}\n{data}"
        )


def _exports(variables: Mapping[str, str]) -> str:
    return "\n".join(f"  export {name}={value}" for name, value in variables.items())
