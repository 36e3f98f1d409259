"""What of a session's state passes from one client to the next, as PgBouncer is told.

In transaction mode a server connection serves another client after each transaction. PgBouncer gives each client its
own value of the parameters that the server reports (`tracked`); everything else that SET, set_config, SET ROLE, LISTEN,
PREPARE, temporary tables, session advisory locks and WITH HOLD cursors leave behind goes to whoever comes next in the
same role's pool, unless it is reset after every transaction (`always`). Measured on PgBouncer 1.24, PostgreSQL 15.
"""

from __future__ import annotations

from emberpool_proxy.settings import ProxySettings

# A backend whose PgBouncer is gone, or whose client gave up, would otherwise run its statement to the end: a
# connection that no PgBouncer counts, and for which PgBouncer opens another one at once. A look is one poll() of the
# backend's own socket, only while a statement runs.
ORPHANS_END_AFTER_MS = 50
# Of a task that vanished without a word the backends must end before its control connection's does (30 s there), for
# that one's locks are the right to them: 5 + 3 x 2 s when idle, and 10 s for an answer that nobody acknowledges.
_AT_CONNECT = (
    ("client_connection_check_interval", str(ORPHANS_END_AFTER_MS)),
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "10000"),
)
# One statement, one round trip. What an older PostgreSQL lacks is left out (before 14 the first, before 12 the last);
# on a unix socket the server takes the others and does nothing.
CONNECT_QUERY = (
    "SELECT set_config(name, value, false) FROM (VALUES "  # noqa: S608 (of our own constants)
    + ", ".join(f"('{name}', '{value}')" for name, value in _AT_CONNECT)
    + ") AS at_connect (name, value) WHERE current_setting(name, true) IS NOT NULL"
)

# DISCARD ALL, taken apart: it would undo CONNECT_QUERY too, and cannot stand beside other statements.
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
