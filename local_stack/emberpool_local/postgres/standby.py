"""A second PostgreSQL that follows the first, for a failover on one machine."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import psycopg

from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.host.waiting import wait_until
from emberpool_local.postgres.server import EmbeddedPostgres, quoted

# What the primary must be opened with.
PRIMARY_SETTINGS: Mapping[str, str] = {"wal_level": "replica", "max_wal_senders": "4"}
FOLLOW_SECONDS = 30.0
ANY_STANDBY = "*"


class StandbyPostgres(EmbeddedPostgres):
    """A streaming standby of `primary`, which must be open, with PRIMARY_SETTINGS; it is restarted once at open().

    From then on `primary` acknowledges a commit only when the standby has it, so that a failover loses none.
    """

    def __init__(self, primary: EmbeddedPostgres) -> None:
        super().__init__(max_connections=primary.max_connections, settings=PRIMARY_SETTINGS, program=primary.program)
        self.superuser_password = primary.superuser_password
        self._primary = primary

    def open(self) -> None:
        """Copy the primary, follow it, and wait until the two are in step."""
        super().open()
        try:
            with psycopg.connect(self._primary.conninfo(), autocommit=True) as connection:
                wait_until("the standby does not follow", lambda: _is_followed(connection, "streaming"), FOLLOW_SECONDS)
                connection.execute(f"alter system set synchronous_standby_names = '{ANY_STANDBY}'")
                connection.execute("select pg_reload_conf()")
                wait_until("the standby is not in step", lambda: _is_followed(connection, "sync"), FOLLOW_SECONDS)
        except BaseException:
            self.close()
            raise

    def promote(self) -> None:
        """Make the standby a primary that waits for nobody; returns when it takes writes."""
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            connection.execute("alter system set synchronous_standby_names = ''")
            connection.execute("select pg_reload_conf()")
            connection.execute("select pg_promote(true, 30)")

    def _initdb(self) -> None:
        # A copy of a stopped server needs no pg_basebackup, which not every distribution of PostgreSQL has.
        self._primary.stop()
        try:
            shutil.copytree(self._primary.data_folder, self.data_folder, dirs_exist_ok=True)
        finally:
            self._primary.start()
        (self.data_folder / "standby.signal").touch()
        with (self.data_folder / "postgresql.conf").open("a") as file:
            file.write(f"primary_conninfo = {quoted(self._primary.conninfo())}\n")
            # A promotion waits for the next look at a primary that has gone, 5 s by default.
            file.write("wal_retrieve_retry_interval = 100ms\n")
        for path in (self.data_folder, *self.data_folder.rglob("*")):
            _give_to_server(path)


def _is_followed(connection: psycopg.Connection[tuple[object, ...]], state: str) -> bool:
    row = connection.execute(
        "select count(*) from pg_stat_replication where %s in (state, sync_state)", (state,)
    ).fetchone()
    return row is not None and row[0] == 1


def _give_to_server(path: Path) -> None:
    give_to(server_user(), path)
