"""What a PostgreSQL on RDS is told for clients that come in crowds and vanish: each parameter with its reason.

Owns names, values and ranges; knows nothing of the CDK.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from emberpool_proxy.settings import ProxySettings

# The pool's server connections are closed before, by PgBouncer: nothing else may end them first, as its next query
# would find it out. Twice, because PgBouncer looks at its clock now and then only.
LEAST_IDLE_SESSION_SECONDS = 2 * ProxySettings.server_idle_seconds
IDLE_SESSION_SECONDS = 600.0
IDLE_IN_TRANSACTION_SECONDS = 60.0
MOST_SECONDS = 86_400.0
FEWEST_CONNECTIONS, MOST_CONNECTIONS = 6, 262_143  # what RDS and Aurora take both
MILLISECONDS = 1000
KEEPALIVES_IDLE, KEEPALIVES_INTERVAL, KEEPALIVES_COUNT = 30, 10, 3
VANISHED_SECONDS = KEEPALIVES_IDLE + KEEPALIVES_INTERVAL * KEEPALIVES_COUNT


@dataclass(frozen=True)
class TunedParameter:
    """A parameter in the words and units of a parameter group; PostgreSQL has it since major version `since`."""

    name: str
    value: str
    reason: str
    since: int = 0


def tuned_parameters(
    *,
    max_connections: int | None = None,
    idle_session_seconds: float = IDLE_SESSION_SECONDS,
    idle_in_transaction_seconds: float = IDLE_IN_TRANSACTION_SECONDS,
) -> tuple[TunedParameter, ...]:
    """Return the parameters. Raises ValueError for a value out of range, or one that would end the pool's sessions."""
    _check_seconds("idle_session_seconds", idle_session_seconds, LEAST_IDLE_SESSION_SECONDS, "server_idle_seconds")
    _check_seconds(
        "idle_in_transaction_seconds",
        idle_in_transaction_seconds,
        2 * ProxySettings.idle_transaction_seconds,
        "idle_transaction_seconds",
    )
    return (
        *_limit(max_connections),
        TunedParameter(
            "idle_session_timeout",
            _milliseconds(idle_session_seconds),
            "a session that nobody uses takes a connection from others; PgBouncer closes its own after "
            f"{ProxySettings.server_idle_seconds:g} s, and the agents switch this off for theirs",
            since=14,
        ),
        TunedParameter(
            "idle_in_transaction_session_timeout",
            _milliseconds(idle_in_transaction_seconds),
            "a frozen function keeps its locks no longer; the pool ends its clients' transactions after "
            f"{ProxySettings.idle_transaction_seconds:g} s, so this is for those who connect past it",
        ),
        *_keepalives(),
        TunedParameter(
            "log_lock_waits", "1", "who waits for a lock for more than deadlock_timeout (1 s) stands in the log"
        ),
        TunedParameter(
            "shared_preload_libraries",
            "pg_stat_statements",
            "what the time goes to; `create extension pg_stat_statements` in the database shows it",
        ),
        TunedParameter("rds.force_ssl", "1", "no password and no row crosses the network in the clear"),
    )


def as_group(
    tuned: tuple[TunedParameter, ...], *, major_version: int | None, overrides: Mapping[str, str]
) -> dict[str, str]:
    """Return what a parameter group of that major version takes (None: the newest); `overrides` win."""
    known = {each.name: each.value for each in tuned if major_version is None or each.since <= major_version}
    return {**known, **overrides}


def _limit(max_connections: int | None) -> tuple[TunedParameter, ...]:
    if max_connections is None:
        return ()
    if not FEWEST_CONNECTIONS <= max_connections <= MOST_CONNECTIONS:
        raise ValueError(
            f"max_connections must be between {FEWEST_CONNECTIONS} and {MOST_CONNECTIONS}, got {max_connections}"
        )
    reason = "the limit that the connection budget is proven against; takes effect with the next restart"
    return (TunedParameter("max_connections", str(max_connections), reason),)


def _keepalives() -> tuple[TunedParameter, ...]:
    return (
        TunedParameter(
            "tcp_keepalives_idle",
            str(KEEPALIVES_IDLE),
            f"an environment that vanished says no goodbye: its session ends after {VANISHED_SECONDS} s",
        ),
        TunedParameter("tcp_keepalives_interval", str(KEEPALIVES_INTERVAL), "the same"),
        TunedParameter("tcp_keepalives_count", str(KEEPALIVES_COUNT), "the same"),
        TunedParameter(
            "tcp_user_timeout",
            str(VANISHED_SECONDS * MILLISECONDS),
            "the same while an answer is unacknowledged, when TCP sends no keepalives",
            since=12,
        ),
    )


def _check_seconds(name: str, value: float, least: float, pools: str) -> None:
    if value != 0 and not least <= value <= MOST_SECONDS:
        raise ValueError(
            f"{name} must be 0 (never) or between {least:g}, twice the pool's own {pools}, and {MOST_SECONDS:g}, "
            f"got {value:g}"
        )


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * MILLISECONDS))
