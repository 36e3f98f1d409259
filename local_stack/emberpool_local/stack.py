"""The whole product on this machine: an embedded PostgreSQL and the proxy in front of it.

Owns the names and passwords of the database and what a handler's environment says of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from emberpool import settings as layer
from emberpool_local.pgbouncer.program import find_pgbouncer
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_local.proxy import DatabaseAccess, LocalProxy

DATABASE = "app"
ROLE = "app"


class LocalStack:
    """PostgreSQL and the proxy, started in that order: with LocalStack() as stack.

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
    ) -> None:
        self.max_connections = max_connections
        self.max_server_connections = max_server_connections
        self.postgres = EmbeddedPostgres(max_connections, postgres_port)
        self._proxy_port = proxy_port
        self._proxy_settings = proxy_settings
        self._progress = progress
        self._role_password = secrets.token_urlsafe(24)
        self._proxy: LocalProxy | None = None
        self._opened = ExitStack()

    @property
    def proxy(self) -> LocalProxy:
        """The proxy; open() made it."""
        if self._proxy is None:
            raise RuntimeError("the local stack is not open")
        return self._proxy

    @property
    def direct_conninfo(self) -> str:
        """The connection string of the function's role straight to the database."""
        return self.postgres.conninfo(ROLE, self._role_password, DATABASE)

    @property
    def proxy_conninfo(self) -> str:
        """The connection string of the function's user through the proxy."""
        return self.proxy.conninfo()

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
            self._progress("Starting the proxy")
            access = DatabaseAccess(self.postgres.host, self.postgres.port, DATABASE, ROLE, self._role_password)
            self._proxy = undo.enter_context(
                LocalProxy(access, self.max_server_connections, self._proxy_port, self._proxy_settings, pgbouncer)
            )
            self._opened = undo.pop_all()

    def close(self) -> None:
        """Stop both, the proxy first, and remove their folders."""
        self._opened.close()
        self._proxy = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
        exports = "\n".join(f"  export {name}={value}" for name, value in self.handler_environment().items())
        return (
            f"PostgreSQL {self.postgres.program.version} ({self.postgres.program.origin}) on "
            f"{self.postgres.host}:{self.postgres.port}, max_connections = {self.max_connections}\n"
            f"emberpool's proxy on {self.proxy.host}:{self.proxy.port}, "
            f"at most {self.max_server_connections} server connections\n\n"
            f"Through the proxy:        {self.proxy_conninfo}\n"
            f"Straight to the database: {self.direct_conninfo}\n\n"
            f"A handler with @warm_connection needs:\n{exports}\n"
        )
