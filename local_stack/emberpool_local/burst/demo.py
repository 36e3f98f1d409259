"""The demo: the same burst over three ways to connect, against one database with few connections.

Owns the three ways, the example that they run and the defaults. The defaults are chosen so that the naive way really
fails and emberpool does not, also on a slow machine with two cores: every environment connects at the same moment,
and there are twice as many of them as the database has connections.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from emberpool import settings as layer
from emberpool_local.burst.fire import Burst, ShowProgress, Way, run_burst
from emberpool_local.burst.results import DemoResult, WayResult
from emberpool_local.burst.sampler import count_others, wait_until_quiet
from emberpool_local.burst.target import check_limits, put_together, run_sql_file, watched_database
from emberpool_local.errors import LocalStackError
from emberpool_local.stack import LocalStack

ENVIRONMENTS = 100
INVOCATIONS = 2000
MAX_CONNECTIONS = 40
MAX_SERVER_CONNECTIONS = 20

# All environments log in at once on the cores of one machine, TLS included. On Lambda each has a core of its own, and
# the layer's default is for that; psycopg alone, the naive way, waits for minutes.
CONNECT_TIMEOUT_SECONDS = 20

PRODUCTS = 500  # as many as examples/orders/schema.sql puts into the shop


class ExampleMissing(LocalStackError):  # noqa: N818 (named by what to do, as all errors of emberpool)
    """The example that the demo runs is not where it belongs."""


def run_demo(
    environments: int = ENVIRONMENTS,
    invocations: int = INVOCATIONS,
    max_connections: int = MAX_CONNECTIONS,
    max_server_connections: int = MAX_SERVER_CONNECTIONS,
    progress: ShowProgress | None = None,
    stack_progress: Callable[[str], None] = lambda _: None,
    command: str = "emberpool demo",
) -> DemoResult:
    """Start a local stack, fire the burst over all three ways, and stop the stack.

    `progress` sees every invocation end, `stack_progress` each step of the start. Whether the result keeps the
    demo's promises is for `promises.promises_broken` to say. Raises LocalStackError (BurstInvalid for a burst that
    cannot be fired, and whatever keeps the stack from starting).
    """
    folder = example_folder("orders")
    burst = Burst(environments, invocations, order_events(folder))
    check_limits(max_connections, max_server_connections)
    with LocalStack(
        max_connections=max_connections,
        max_server_connections=max_server_connections,
        progress=stack_progress,
    ) as stack:
        database = watched_database(stack)
        idle = count_others(database.superuser_conninfo)
        ways: list[WayResult] = []
        for way in demo_ways(stack, folder):
            wait_until_quiet(database.superuser_conninfo, idle)
            run_sql_file(stack.direct_conninfo, folder / "schema.sql")
            ways.append(run_burst(burst, way, database, progress))
        return put_together(stack, ways, command)


def demo_ways(stack: LocalStack, folder: Path) -> tuple[Way, Way, Way]:
    """Return the three ways, the same business code in each."""
    patience = {layer.CONNECT_TIMEOUT_SECONDS: str(CONNECT_TIMEOUT_SECONDS)}

    def way(name: str, title: str, how: str, handler: str, environment: Mapping[str, str]) -> Way:
        return Way(name, title, how, handler, folder, environment)

    return (
        way(
            "naive",
            "naive",
            "a new connection for each invocation, straight to the database",
            "naive_handler:handler",
            {"DATABASE_URL": stack.direct_conninfo},
        ),
        way(
            "warm",
            "warm only",
            "emberpool's layer, straight to the database",
            "handler:handler",
            {**stack.direct_handler_environment(), **patience},
        ),
        way(
            "emberpool",
            "emberpool",
            "emberpool's layer, through its proxy",
            "handler:handler",
            {**stack.handler_environment(), **patience},
        ),
    )


def order_events(folder: Path) -> list[bytes]:
    """Return the example's event for each product: real customers do not all want the same one."""
    event = json.loads((folder / "event.json").read_text(encoding="utf-8"))
    return [json.dumps({**event, "product_id": product}).encode() for product in range(1, PRODUCTS + 1)]


def example_folder(name: str) -> Path:
    """Return the folder of an example: inside the installed package, else in the repository.

    Raises ExampleMissing.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "examples" / name, package.parents[1] / "examples" / name):
        if folder.is_dir():
            return folder
    raise ExampleMissing(f"the example {name} is missing", "install emberpool again, or run it in its repository")
