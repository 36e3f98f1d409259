"""A second PostgreSQL that follows the first, for a failover on one machine.

Made while the first one serves, so that the two can take turns again and again.
"""

from __future__ import annotations

from collections.abc import Mapping

import psycopg
from psycopg import sql

from emberpool_local.host.ports import LOOPBACK
from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.waiting import wait_until
from emberpool_local.postgres.base_backup import copied_while_it_runs
from emberpool_local.postgres.server import EmbeddedPostgres, quoted

# What the primary must be opened with. It keeps enough of its log for a standby that was away for a moment.
PRIMARY_SETTINGS: Mapping[str, str] = {"wal_level": "replica", "max_wal_senders": "4", "wal_keep_size": "128MB"}
FOLLOW_SECONDS = 30.0
ANY_STANDBY = "*"


class StandbyPostgres(EmbeddedPostgres):
    """A streaming standby of `primary`, which must be open, with PRIMARY_SETTINGS.

    From open() on `primary` acknowledges a commit only when the standby has it, so that a failover loses none.
    """

    def __init__(self, primary: EmbeddedPostgres, port: int | None = None, host: str = LOOPBACK) -> None:
        super().__init__(
            max_connections=primary.max_connections,
            port=port,
            settings=PRIMARY_SETTINGS,
            program=primary.program,
            host=host,
        )
        self.superuser_password = primary.superuser_password
        self._primary = primary

    def open(self) -> None:
        """Copy the primary, follow it, and wait until the two are in step."""
        super().open()
        try:
            wait_for_standby(self._primary)
        except BaseException:
            self.close()
            raise

    def promote(self) -> None:
        """Make the standby a primary that waits for nobody; returns when it takes writes."""
        promote(self)

    def _initdb(self) -> None:
        copied_while_it_runs(self._primary, self.data_folder, self._output_path)
        follow(self, self._primary)


def follow(server: EmbeddedPostgres, primary: EmbeddedPostgres) -> None:
    """Make a stopped server a standby of `primary` from its next start on.

    It must be a copy of the primary, or one that was stopped (`fast`) before its standby became the primary.
    """
    signal_file = server.data_folder / "standby.signal"
    signal_file.touch()
    give_to(server_user(), signal_file)
    with (server.data_folder / "postgresql.conf").open("a") as file:
        file.write(f"primary_conninfo = {quoted(primary.conninfo(by_socket=True))}\n")
        # A promotion waits for the next look at a primary that has gone, 5 s by default.
        file.write("wal_retrieve_retry_interval = 100ms\n")


def wait_for_standby(primary: EmbeddedPostgres) -> None:
    """Let the primary acknowledge what its standby has only; return when the two are in step. Raises TimeoutError."""
    with psycopg.connect(primary.conninfo(by_socket=True), autocommit=True) as connection:
        wait_until("the standby does not follow", lambda: _is_followed(connection, "streaming"), FOLLOW_SECONDS)
        _set_standby_names(connection, ANY_STANDBY)
        wait_until("the standby is not in step", lambda: _is_followed(connection, "sync"), FOLLOW_SECONDS)


def promote(standby: EmbeddedPostgres) -> None:
    """Make a standby a primary that waits for nobody; returns when it takes writes."""
    with psycopg.connect(standby.conninfo(by_socket=True), autocommit=True) as connection:
        _set_standby_names(connection, "")
        connection.execute("select pg_promote(true, 30)")


def _set_standby_names(connection: psycopg.Connection[tuple[object, ...]], names: str) -> None:
    connection.execute(sql.SQL("alter system set synchronous_standby_names = {}").format(sql.Literal(names)))
    connection.execute("select pg_reload_conf()")


def _is_followed(connection: psycopg.Connection[tuple[object, ...]], state: str) -> bool:
    row = connection.execute(
        "select count(*) from pg_stat_replication where %s in (state, sync_state)", (state,)
    ).fetchone()
    return row is not None and row[0] == 1
