"""The lab's database: a primary, a standby that has every acknowledged commit, and the name that leads to the primary.

What can be done to it is here: outages, failovers, a new password. It can be done again and again: after a
failover the two servers have changed places, and a new standby is made while the new primary serves.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from emberpool_local.host.ports import free_port
from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.lab.database_name import DATABASE_HOST, DatabaseName, open_database_name
from emberpool_local.lab.name_service import NameService
from emberpool_local.lab.network import LabNetwork, Node
from emberpool_local.postgres.program import PostgresProgram, find_postgres
from emberpool_local.postgres.server import EmbeddedPostgres, StopMode
from emberpool_local.postgres.standby import (
    PRIMARY_SETTINGS,
    StandbyPostgres,
    follow,
    promote,
    wait_for_standby,
)
from emberpool_proxy.tls.authority import Authority, utc_now

DATABASE, ROLE = "ledger", "pool"
PORT = 5432
# A database's certificate is older than the clock of a task could be wrong by.
CERTIFICATE_AGE = timedelta(days=30)
PASSWORD_BYTES = 24


class LabDatabase:
    """The database; open_database() makes it. Every method blocks until what it does is done."""

    role = ROLE
    name = DATABASE

    def __init__(self, network: LabNetwork, folder: Path, port: int, program: PostgresProgram) -> None:
        self.password = secrets.token_urlsafe(PASSWORD_BYTES)
        self.port = port
        # The relays of loopback must be able to tell a task's connections from each other.
        self.has_tls = network.kind == "namespaces" and program.has_tls
        self._program = program
        self._network = network
        self._folder = folder
        self._primary: EmbeddedPostgres | None = None
        self._standby: EmbeddedPostgres | None = None
        self._nodes = [network.node("primary"), network.node("standby")]  # in the roles of the moment
        self._name: DatabaseName | None = None

    # --- the two servers

    @property
    def primary(self) -> EmbeddedPostgres:
        """The server that takes writes now, or that did so last; another one after a failover."""
        if self._primary is None:
            raise RuntimeError("the lab's database is not open")
        return self._primary

    @property
    def standby(self) -> EmbeddedPostgres | None:
        """The server that follows it; None between a failover and rebuild_standby()."""
        return self._standby

    @property
    def primary_node(self) -> Node:
        """Where the primary is now."""
        return self._nodes[0]

    @property
    def standby_node(self) -> Node:
        """Where the standby is, or will be, now."""
        return self._nodes[1]

    def open(self, max_connections: int) -> None:
        """Start both servers and the name. Raises what EmbeddedPostgres does."""
        tls = self._write_certificate() if self.has_tls else {}
        self._primary = EmbeddedPostgres(
            max_connections,
            self.port,
            {**PRIMARY_SETTINGS, **tls},
            self._program,
            self.primary_node.address,
            ("host all postgres all scram-sha-256", f"{'hostssl' if tls else 'host'} all all all scram-sha-256"),
        )
        self._primary.open()
        self._primary.create_role_and_database(ROLE, self.password, DATABASE)
        self._point_at_primary()

    def close(self) -> None:
        """Stop both servers."""
        with ExitStack() as stack:
            for server in (self._primary, self._standby):
                if server is not None:
                    stack.callback(server.close)

    # --- its name

    def use(self, name: DatabaseName) -> None:
        """Move this name in failovers."""
        self._name = name

    @property
    def names(self) -> NameService | None:
        """The DNS server of the lab; None where the tasks resolve nothing."""
        return self._known_name.service

    @property
    def resolv_conf(self) -> str | None:
        """The text of a task's /etc/resolv.conf; None where the tasks resolve nothing."""
        return self.names.resolv_conf if self.names else None

    def proxy_settings(self, task: Node) -> dict[str, str]:
        """Return the settings of a task for this database, its login left out."""
        host, port = self._known_name.known_to(task)
        tls = {"server_tls_mode": "disable", "server_tls_unverified": "accepted"}
        if self.has_tls:
            tls = {"server_tls_mode": "verify-full", "server_tls_ca_file": str(self._authority_path)}
        return {"database_host": host, "database_port": str(port), "database_name": DATABASE, **tls}

    def forget(self, task: Node) -> None:
        """Note that a task has ended."""
        self._known_name.forget(task)

    # --- what it says

    def superuser_conninfo(self) -> str:
        """Return a superuser's connection string to the primary, past the network; the same after a failover."""
        return psycopg.conninfo.make_conninfo(
            self.primary.conninfo(database=DATABASE, by_socket=True), host=str(self._primary_link)
        )

    def ask(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask the primary as a superuser."""
        with psycopg.connect(self.superuser_conninfo(), autocommit=True) as connection:
            return connection.execute(query, parameters).fetchall()

    # --- what is done to it

    def set_password(self, password: str) -> None:
        """Give the pool's role another password: from now on no login with the one before."""
        with psycopg.connect(self.superuser_conninfo(), autocommit=True) as connection:
            # Only a verifier goes to the server: a statement that fails would be logged with the password.
            verifier = connection.pgconn.encrypt_password(password.encode(), ROLE.encode(), b"scram-sha-256").decode()
            connection.execute(sql.SQL("alter role {} password {}").format(sql.Identifier(ROLE), sql.Literal(verifier)))
        self.password = password

    def stop(self, mode: StopMode) -> None:
        """End the primary: `fast` as for a reboot, `immediate` as by a crash."""
        self.primary.stop(mode)

    def start(self) -> None:
        """Start the primary again; return when it takes writes that its standby gets."""
        self.primary.start()
        wait_for_standby(self.primary)

    def promote_standby(self) -> None:
        """Make the standby the primary, which waits for nobody from now on. Its name stays where it is."""
        if self._standby is None:
            raise RuntimeError("there is no standby: rebuild_standby() comes first")
        promote(self._standby)
        self._primary, self._standby = self._standby, self._primary
        self._nodes.reverse()
        self._point_at_primary()

    def lead_name(self, server: Node) -> None:
        """Let the name lead to this node from now on."""
        self._known_name.lead(server)

    def rejoin_as_standby(self) -> None:
        """Start the server that was the primary before as a standby; it must have been stopped `fast`.

        Returns when it takes logins, and the primary acknowledges only what it has.
        """
        if self._standby is None:
            raise RuntimeError("the former primary has been removed")
        follow(self._standby, self.primary)
        self._standby.start()
        wait_for_standby(self.primary)

    def rebuild_standby(self) -> None:
        """Make a new standby, where the former primary was; return when the two are in step."""
        if self._standby is not None:
            self._standby.close()
            self._standby = None
        standby = StandbyPostgres(self.primary, self.port, self.standby_node.address)
        standby.open()
        self._standby = standby

    # --- parts

    @property
    def _known_name(self) -> DatabaseName:
        if self._name is None:
            raise RuntimeError("the lab's database has no name yet")
        return self._name

    @property
    def _primary_link(self) -> Path:
        return self._folder / "primary"

    @property
    def _authority_path(self) -> Path:
        return self._folder / "ca.crt"

    def _point_at_primary(self) -> None:
        new = self._folder / "primary.new"
        new.symlink_to(self.primary.socket_folder)
        new.replace(self._primary_link)  # whoever looks meanwhile finds the old one or the new one

    def _write_certificate(self) -> Mapping[str, str]:
        """Make a CA and the servers' certificate; return their lines of postgresql.conf."""
        then = utc_now() - CERTIFICATE_AGE
        authority = Authority.make(then)
        certificate, key = authority.issue((DATABASE_HOST, *(node.address for node in self._nodes)), then)
        self._authority_path.write_text(authority.certificate_pem)
        files = {"ssl_cert_file": (certificate, 0o644), "ssl_key_file": (key, 0o600)}
        lines = {"ssl": "on", "ssl_min_protocol_version": "TLSv1.2"}
        for setting, (text, mode) in files.items():
            path = self._folder / setting
            path.touch(mode=mode)
            path.write_text(text)
            give_to(server_user(), path)
            lines[setting] = str(path)
        return lines


@contextmanager
def open_database(
    network: LabNetwork, max_connections: int = 100, progress: Callable[[str], None] = lambda _: None
) -> Iterator[LabDatabase]:
    """Start the database with its standby and its name. Raises what EmbeddedPostgres does, and OSError."""
    port = PORT if network.kind == "namespaces" else free_port()
    with ExitStack() as stack:
        database = LabDatabase(network, stack.enter_context(TempFolder("database")), port, find_postgres())
        stack.callback(database.close)
        database.open(max_connections)
        progress("Making its standby")
        database.rebuild_standby()
        database.use(stack.enter_context(open_database_name(network, database.primary_node, port)))
        yield database
