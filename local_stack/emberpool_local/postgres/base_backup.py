"""A copy of a PostgreSQL that goes on serving, by SQL and `cp`: not every distribution of it has pg_basebackup."""

from __future__ import annotations

from pathlib import Path

import psycopg

from emberpool_local.errors import PostgresUnavailable
from emberpool_local.host.children import run_child
from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.postgres.server import SERVER_ENVIRONMENT, EmbeddedPostgres

# What belongs to the running server only (source: PostgreSQL's documentation, "Making a Base Backup Using the Low
# Level API"). A standby gets the log from its primary.
NOT_COPIED = frozenset({"postmaster.pid", "postmaster.opts", "standby.signal", "backup_label"})
EMPTIED = frozenset(
    {"pg_wal", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"}
)
VANISHED = "No such file or directory"  # a table that was dropped, a temporary file: the log tells the standby of it


def copied_while_it_runs(server: EmbeddedPostgres, target: Path, output_path: Path) -> None:
    """Copy the server's data into the empty folder `target` of the servers' user, for a standby to be started from.

    What `cp` says goes to `output_path`. Raises psycopg.Error, PostgresUnavailable.
    """
    with psycopg.connect(server.conninfo(by_socket=True), autocommit=True) as connection:
        connection.execute("select pg_backup_start('standby', fast => true)")
        _copy(server.data_folder, target, output_path)
        row = connection.execute("select labelfile from pg_backup_stop(wait_for_archive => false)").fetchone()
    label = target / "backup_label"
    label.write_text(str(row[0]) if row else "")
    give_to(server_user(), label)


def _copy(source: Path, target: Path, output_path: Path) -> None:
    # By a process of the servers' user: a thousand files by Python, in a process that does other work, take seconds.
    entries = [path for path in source.iterdir() if path.name not in NOT_COPIED | EMPTIED]
    command: list[str | Path] = ["cp", "-R", "--", *entries, target]
    exit_code = run_child(command, log_path=output_path, environment=SERVER_ENVIRONMENT, as_user=server_user())
    said = output_path.read_text(errors="replace").splitlines()
    if exit_code and not (said and all(line.endswith(VANISHED) for line in said)):
        raise PostgresUnavailable(
            f"The data of PostgreSQL could not be copied for a standby: {'; '.join(said[-3:]) or exit_code}",
            "Free disk space if the message says so",
        )
    folders = [source / name for name in EMPTIED]
    for folder in (*folders, *(path for each in folders for path in each.iterdir() if path.is_dir())):
        made = target / folder.relative_to(source)
        made.mkdir(mode=0o700)
        give_to(server_user(), made)
