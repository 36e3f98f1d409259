"""Servers that all tests share: one PostgreSQL and one PgBouncer program per xdist worker.

A test makes its own database (`create_role_and_database`) rather than count on what others left in the server.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from emberpool_local.pgbouncer.program import PgbouncerProgram, find_pgbouncer
from emberpool_local.postgres.server import EmbeddedPostgres

from .local_lambda import NewFleet, fleet_of

# Whoever is started in the background (`make test &`) ignores SIGINT, and so would all that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A run tells of the change, not of the chance: the same examples each time. `make explore` looks for others.
# No deadlines: a machine that stalls for a second says nothing of the code.
timeless = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", timeless, derandomize=True)
settings.register_profile("explore", timeless, derandomize=False, print_blob=True)
settings.load_profile("same")


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A running PostgreSQL; a test that stops it or counts all its connections starts one of its own."""
    with EmbeddedPostgres(max_connections=100) as server:
        yield server


@pytest.fixture(scope="session")
def pgbouncer_program() -> PgbouncerProgram:
    """The PgBouncer program, built before the first test that wants it (once per machine)."""
    return find_pgbouncer()


@pytest.fixture
def new_fleet(tmp_path: Path) -> NewFleet:
    """What makes a fleet of a handler's source, in the test's own folder; see `fleet_of`."""
    return functools.partial(fleet_of, tmp_path)
