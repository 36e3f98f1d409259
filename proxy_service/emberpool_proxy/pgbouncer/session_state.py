"""What of a session's state passes from one client to the next, as PgBouncer is told.

In transaction mode a server connection serves another client after each transaction. PgBouncer gives each client its
own value of the parameters that the server reports (`tracked`); everything else that SET, set_config, SET ROLE, LISTEN,
PREPARE, temporary tables, session advisory locks and WITH HOLD cursors leave behind goes to whoever comes next in the
same role's pool, unless it is reset after every transaction (`always`). Measured on PgBouncer 1.24, PostgreSQL 15.
"""

from __future__ import annotations

from emberpool_proxy.settings import ProxySettings

# A backend whose PgBouncer is gone, or whose client gave up, would otherwise run its statement to the end: a
# connection that no PgBouncer counts. Since PostgreSQL 14; the condition lets older ones be.
ORPHANS_END_AFTER_MS = 500
_END_ORPHANS = (
    f"set_config('client_connection_check_interval', '{ORPHANS_END_AFTER_MS}', false)",
    "current_setting('server_version_num')::int >= 140000",
)
CONNECT_QUERY = f"SELECT {_END_ORPHANS[0]} WHERE {_END_ORPHANS[1]}"

# DISCARD ALL, taken apart: it would switch the search for orphans off too, and cannot stand beside other statements.
# PgBouncer sees DEALLOCATE ALL and prepares the statements of its clients again.
RESET_QUERY = "; ".join(
    (
        "CLOSE ALL",
        "SET SESSION AUTHORIZATION DEFAULT",  # SET ROLE too
        "RESET ALL",
        "DEALLOCATE ALL",
        "UNLISTEN *",
        "DISCARD TEMP",
        "DISCARD SEQUENCES",
        "SELECT pg_advisory_unlock_all()",
        CONNECT_QUERY,
    )
)


def session_lines(settings: ProxySettings) -> list[str]:
    """Return the lines of pgbouncer.ini for the reset policy and the tracked parameters."""
    tracked = [f"track_extra_parameters = {settings.tracked_parameters}"]
    if settings.reset_policy == "tracked":
        return tracked
    return [*tracked, "server_reset_query_always = 1", f"server_reset_query = {RESET_QUERY}"]


def connect_query_option() -> str:
    """Return what an entry of [databases] says about a new server connection."""
    return "connect_query='" + CONNECT_QUERY.replace("'", "''") + "'"
