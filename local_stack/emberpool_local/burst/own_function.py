"""Fires the demo's burst at a function of the user's own: `emberpool burst MODULE:HANDLER`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from emberpool_local.burst.demo import ENVIRONMENTS, INVOCATIONS, MAX_CONNECTIONS, MAX_SERVER_CONNECTIONS
from emberpool_local.burst.fire import DEFAULT_TIMEOUT_SECONDS, Burst, ShowProgress, Way, run_burst
from emberpool_local.burst.results import DemoResult
from emberpool_local.burst.target import check_limits, put_together, run_sql_file, watched_database
from emberpool_local.stack import LocalStack


def run_own_burst(
    handler: str,
    code_folder: Path,
    event: bytes,
    *,
    environments: int = ENVIRONMENTS,
    invocations: int = INVOCATIONS,
    max_connections: int = MAX_CONNECTIONS,
    max_server_connections: int = MAX_SERVER_CONNECTIONS,
    schema: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    progress: ShowProgress | None = None,
    stack_progress: Callable[[str], None] = lambda _: None,
    command: str = "emberpool burst",
) -> DemoResult:
    """Start a local stack, fire one burst at `handler` (MODULE:FUNCTION) through the proxy, and stop the stack.

    `schema` is an SQL file that is run before, `environment` holds further variables for the function. It also gets
    DATABASE_URL (straight to the database) for code that does not use emberpool yet. Raises LocalStackError
    (BurstInvalid, EventInvalid, HandlerInvalid, SqlFileInvalid, and whatever keeps the stack from starting).
    """
    burst = Burst(environments, invocations, [event], timeout_seconds)
    check_limits(max_connections, max_server_connections)
    with LocalStack(
        max_connections=max_connections,
        max_server_connections=max_server_connections,
        progress=stack_progress,
    ) as stack:
        if schema is not None:
            run_sql_file(stack.direct_conninfo, schema)
        variables = {
            "DATABASE_URL": stack.direct_conninfo,
            **stack.handler_environment(),
            **(environment or {}),
        }
        way = Way("emberpool", handler, "through emberpool's proxy", handler, code_folder, variables)
        return put_together(stack, [run_burst(burst, way, watched_database(stack), progress)], command)
