"""Watches how many server connections PostgreSQL has while a burst runs.

Owns the time line (pg_stat_activity, about SAMPLES_PER_SECOND times a second) and the exact number of logins
(PostgreSQL's own log). Both see every client backend but the sampler's: clients of the function, the proxy's pool,
anybody else's. The sampler is a superuser and connects before the burst, so that it still sees when no connection is
left for others; its own takes one of max_connections.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from emberpool_local.burst.results import ConnectionSample
from emberpool_local.errors import PostgresUnavailable

SAMPLES_PER_SECOND = 50
LONGEST_LOG_DELAY_SECONDS = 10.0
# From 18 on PostgreSQL also shows connections that have not logged in yet, as 'starting'.
COUNT_OTHERS = """
    select count(*) from pg_stat_activity
    where backend_type = 'client backend' and pid <> pg_backend_pid() and state is distinct from 'starting'
"""
# log_connections writes this line once for each login that was accepted.
LOGIN = "connection authorized:"
TOO_MANY_CONNECTIONS = "53300"  # the SQLSTATE


class ConnectionSampler:
    """Samples the number of server connections in a thread, from entering the context until it is left.

    Raises PostgresUnavailable at the end when the server could not be asked while it was open.
    """

    def __init__(self, superuser_conninfo: str) -> None:
        self._conninfo = superuser_conninfo
        self._stop = threading.Event()
        self._counts: list[tuple[float, int]] = []
        self._zero: float | None = None
        self._failure: psycopg.Error | None = None
        self._thread = threading.Thread(target=self._run, name="connection-sampler", daemon=True)
        self._connection: psycopg.Connection[tuple[int]] | None = None

    def __enter__(self) -> Self:
        self._connection = psycopg.connect(self._conninfo, autocommit=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join()
        if self._connection is not None:
            self._connection.close()
        if self._failure is not None and error is None:
            raise PostgresUnavailable(
                f"the server connections could not be counted: {self._failure}",
                "look into PostgreSQL's log; if it was stopped on purpose, run the burst again",
            ) from self._failure

    def start_clock(self) -> None:
        """Make this moment the zero of the time line; what was sampled before gets negative times."""
        self._zero = time.monotonic()

    def stop(self) -> None:
        """End the time line here; leaving the context does it too."""
        self._stop.set()

    @property
    def is_running(self) -> bool:
        """Whether it samples; not before it is entered, and no more once the server cannot be asked."""
        return self._thread.is_alive()

    @property
    def samples(self) -> list[ConnectionSample]:
        """The time line so far, oldest first."""
        counts = list(self._counts)
        if not counts:
            return []
        zero = counts[0][0] if self._zero is None else self._zero
        return [ConnectionSample(round(at - zero, 3), count) for at, count in counts]

    def _run(self) -> None:
        assert self._connection is not None  # noqa: S101 (opened before the thread starts)
        try:
            while not self._stop.is_set():
                count = _count(self._connection)
                self._counts.append((time.monotonic(), count))
                self._stop.wait(1 / SAMPLES_PER_SECOND)
        except psycopg.Error as error:
            self._failure = error


class LoginCounter:
    """Counts the connections that ordinary users opened, in PostgreSQL's jsonlog, from its creation on.

    pg_stat_database.sessions would be simpler, but it counts a session only when its backend gets round to reporting
    its statistics, which may be long after the burst. The log has each login at once.
    """

    def __init__(self, log_path: Path, superuser_conninfo: str) -> None:
        self._log_path = log_path
        self._conninfo = superuser_conninfo
        self._offset = log_path.stat().st_size

    def count(self) -> int:
        """Return how many connections were opened so far, the superuser's own not counted.

        Raises PostgresUnavailable when the log lags by more than LONGEST_LOG_DELAY_SECONDS.
        """
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            superuser, marker = connection.info.user, connection.info.backend_pid
            deadline = time.monotonic() + LONGEST_LOG_DELAY_SECONDS
            # The log is written in order: when our own login is in it, all earlier ones are.
            while time.monotonic() < deadline:
                sessions = self._sessions()
                if any(user == superuser and pid == marker for user, pid in sessions.values()):
                    return sum(user != superuser for user, _ in sessions.values())
                time.sleep(0.02)
        raise PostgresUnavailable(
            f"no login appeared in {self._log_path} for {LONGEST_LOG_DELAY_SECONDS:.0f} s",
            "PostgreSQL needs log_connections = on and log_destination = jsonlog",
        )

    def _sessions(self) -> dict[str, tuple[str, int]]:
        """Return user and process id of each session that was let in, by PostgreSQL's id of the session."""
        with self._log_path.open("rb") as log:
            log.seek(self._offset)
            complete, _, _ = log.read().rpartition(b"\n")
        sessions: dict[str, tuple[str, int]] = {}
        for line in complete.splitlines():
            record = json.loads(line)
            if record.get("message", "").startswith(LOGIN):
                sessions[record["session_id"]] = (record["user"], record["pid"])
            elif record.get("state_code") == TOO_MANY_CONNECTIONS:
                # Who would get one of the reserved connections is sent away only after the login.
                sessions.pop(record["session_id"], None)
        return sessions


def count_others(superuser_conninfo: str) -> int:
    """Return how many client connections PostgreSQL has besides the one that asks."""
    with psycopg.connect(superuser_conninfo, autocommit=True) as connection:
        return _count(connection)


def wait_until_quiet(superuser_conninfo: str, server_connections: int = 0, timeout_seconds: float = 30.0) -> None:
    """Wait until PostgreSQL has at most this many client connections besides the one that asks.

    Raises PostgresUnavailable when it still has more after `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    with psycopg.connect(superuser_conninfo, autocommit=True) as connection:
        while (count := _count(connection)) > server_connections:
            if time.monotonic() > deadline:
                raise PostgresUnavailable(
                    f"{count} connections were still open {timeout_seconds:.0f} s after a burst",
                    "nothing else may use this PostgreSQL while the burst runs",
                )
            time.sleep(0.05)


def _count(connection: psycopg.Connection[tuple[int]]) -> int:
    row = connection.execute(COUNT_OTHERS, prepare=True).fetchone()
    return row[0] if row else 0
