"""One environment's life in random order: invocations that end in any way, faults between and during them, freezes.

The model says for each invocation what may come of it; the ledger in PostgreSQL says what did.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from psycopg.rows import dict_row

from emberpool import (
    CommitOutcomeUnknown,
    ConnectionUnavailable,
    DeadlineTooClose,
    NoAnswer,
    NotCommitted,
    PoolBusy,
    warm_connection,
)
from emberpool import connection as layer_connection
from emberpool.declared import shared_connection
from emberpool.settings import LayerSettings
from emberpool_local.host.waiting import wait_until
from emberpool_local.postgres.server import EmbeddedPostgres

from .conftest import ROLE, Context

Connection = psycopg.Connection[Any]

# In one of these the handler's work must be there, in one it must not, in the last it may be.
ACKNOWLEDGED, NOT_KEPT, UNKNOWN = "acknowledged", "not kept", "unknown"

ENDINGS = ("returns", "raises", "rolls back", "commits by itself")
LEFTOVERS = ("nothing", "pipeline", "stream", "block", "row factory", "autocommit", "closed")
# Enough for each pair of rules to meet often; a few seconds of real invocations.
EXAMPLES, STEPS = 14, 20


@dataclass
class World:
    """The environment under test and those who meddle with it."""

    admin: Connection
    settings: LayerSettings
    kept: list[object] = field(default_factory=list)

    def backend(self) -> int | None:
        """Return the environment's backend, None when it has no connection."""
        connection = shared_connection(self.settings)._connection
        return None if connection is None or connection.closed else connection.info.backend_pid

    def left_running(self) -> list[Any]:
        """Return what the environment's role still does in the database."""
        return self.admin.execute(
            "select query from pg_stat_activity where usename = %s and state <> 'idle'", [ROLE]
        ).fetchall()

    def terminate(self, backend: int) -> None:
        self.admin.execute("select pg_terminate_backend(%s, 5000)", [backend])


class Life(RuleBasedStateMachine):
    """The rules are what can happen; what must hold is asserted where it happens, and at the end of each step."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.admin.execute("truncate ledger")
        self.executions: dict[str, int] = {}
        self.expected: dict[str, str] = {}

    # --- what happens between invocations

    @rule()
    def backend_dies_while_frozen(self) -> None:
        backend = self.world.backend()
        if backend is not None:
            self.world.terminate(backend)

    @rule(seconds=st.sampled_from([-3600.0, 4.0, 6.0, 86_400.0]))
    def freeze(self, seconds: float) -> None:
        """The wall clock runs on (or is set back) while nothing else does."""
        shared_connection(self.world.settings)._last_used -= seconds

    # --- invocations

    @rule(
        ending=st.sampled_from(ENDINGS),
        leftover=st.sampled_from(LEFTOVERS),
        transaction=st.booleans(),
        idempotent=st.booleans(),
    )
    def undisturbed(self, ending: str, leftover: str, transaction: bool, idempotent: bool) -> None:
        """Whatever happened before, a handler that nothing disturbs sees a live connection and gets its outcome."""

        def handler(identity: str, context: object, connection: Connection) -> None:
            # The first statement: a connection that died before the invocation would fail it.
            assert connection.execute("select 1").fetchone() == (1,)
            self.write(connection, identity)
            if ending == "commits by itself":
                connection.commit()
            if ending == "rolls back":
                connection.rollback()
            self.leave(connection, leftover)
            if ending == "raises":
                raise KeyError(identity)

        identity, error = self.invoke(handler, transaction=transaction, idempotent=idempotent)
        assert not isinstance(error, psycopg.OperationalError) or leftover in ("pipeline", "stream", "block"), error
        assert isinstance(error, KeyError) is (ending == "raises")
        # To close a connection is to roll back, as in psycopg.
        was_committed = ending == "returns" and error is None and leftover != "closed"
        if was_committed or not transaction or ending == "commits by itself":
            self.expected[identity] = ACKNOWLEDGED
        else:
            self.expected[identity] = NOT_KEPT
        self.ran_at_most(identity, 1)

    @rule(idempotent=st.booleans(), swallows=st.booleans(), resolve=st.booleans())
    def lost_during_the_handler(self, idempotent: bool, swallows: bool, resolve: bool) -> None:
        """A backend that dies in the middle: an error and nothing kept, or one repetition when that was allowed."""

        def handler(identity: str, context: object, connection: Connection) -> None:
            self.write(connection, identity)
            if self.executions[identity] > 1:
                return
            self.world.terminate(connection.info.backend_pid)
            with contextlib.suppress(psycopg.OperationalError) if swallows else contextlib.nullcontext():
                connection.execute("select 1")

        identity, error = self.invoke(handler, idempotent=idempotent, resolve_commit=resolve)
        if swallows:
            assert isinstance(error, ConnectionUnavailable)
        else:
            assert (error is None) is idempotent, error
        self.expected[identity] = ACKNOWLEDGED if error is None else NOT_KEPT
        self.ran_at_most(identity, 2 if idempotent else 1)

    @rule(idempotent=st.booleans(), resolve=st.booleans())
    def lost_during_commit(self, idempotent: bool, resolve: bool) -> None:
        """A backend that dies in COMMIT: unknown, or found out; never a success that was none."""

        def handler(identity: str, context: object, connection: Connection) -> None:
            self.write(connection, identity, dies_at_commit=self.executions.get(identity, 0) == 0)

        identity, error = self.invoke(handler, idempotent=idempotent, resolve_commit=resolve)
        if idempotent:
            assert error is None
            self.expected[identity] = ACKNOWLEDGED
        else:
            assert isinstance(error, NotCommitted if resolve else CommitOutcomeUnknown)
            self.expected[identity] = NOT_KEPT if resolve else UNKNOWN
        self.ran_at_most(identity, 2 if idempotent else 1)

    @rule(remaining_ms=st.integers(0, 209))
    def too_late(self, remaining_ms: int) -> None:
        """With less than the margin (200 ms) and a round trip left, nothing runs."""

        def handler(identity: str, context: object, connection: Connection) -> None:
            self.write(connection, identity)

        identity, error = self.invoke(handler, remaining_ms=remaining_ms)
        assert isinstance(error, DeadlineTooClose)
        self.expected[identity] = NOT_KEPT
        self.ran_at_most(identity, 0)

    @rule(transaction=st.booleans())
    def late_statement(self, transaction: bool) -> None:
        """A statement that would outlive the invocation is cancelled, and the connection is usable afterwards."""

        def handler(identity: str, context: object, connection: Connection) -> None:
            connection.execute("select pg_sleep(60)")
            self.write(connection, identity)

        identity, error = self.invoke(handler, remaining_ms=260, transaction=transaction)
        # 60 ms are left for all of it: a busy machine may need them to open a connection, to begin or to be cancelled.
        too_late = (psycopg.errors.QueryCanceled, DeadlineTooClose, NoAnswer, ConnectionUnavailable, PoolBusy)
        assert isinstance(error, too_late), error
        self.expected[identity] = NOT_KEPT
        self.ran_at_most(identity, 0)

    # --- what must hold

    @invariant()
    def ledger_agrees(self) -> None:
        kept = {row[0] for row in self.world.admin.execute("select id from ledger")}
        for identity, expected in self.expected.items():
            assert expected == UNKNOWN or (identity in kept) is (expected == ACKNOWLEDGED), (identity, expected)
        assert kept <= self.expected.keys()

    @invariant()
    def nothing_is_left_running(self) -> None:
        # A backend takes a moment to notice that its client is gone.
        wait_until("a statement or a transaction was left in the database", lambda: not self.world.left_running())

    def teardown(self) -> None:
        self.let_go()
        shared_connection(self.world.settings).discard()

    # --- how a rule does it

    def invoke(
        self, handler: Callable[..., None], *, remaining_ms: int = 30_000, **options: Any
    ) -> tuple[str, BaseException | None]:
        """Invoke a handler once with an identity of its own; return that and the error."""
        identity = uuid.uuid4().hex
        try:
            warm_connection(**options)(handler)(identity, Context(remaining_ms))
        except (psycopg.Error, KeyError) as error:
            return identity, error
        finally:
            self.let_go()
        return identity, None

    def write(self, connection: Connection, identity: str, *, dies_at_commit: bool = False) -> None:
        self.executions[identity] = self.executions.get(identity, 0) + 1
        connection.execute("insert into ledger values (%s)", [identity])
        if dies_at_commit:
            connection.execute("insert into ledger values ('dies')")

    def ran_at_most(self, identity: str, times: int) -> None:
        assert self.executions.get(identity, 0) <= times, "a handler was repeated that must not be"

    def leave(self, connection: Connection, leftover: str) -> None:
        """Leave something half done, held by something that outlives the handler."""
        if leftover == "pipeline":
            self.enter(connection.pipeline())
        elif leftover == "block":
            self.enter(connection.transaction())
        elif leftover == "stream":
            rows = connection.cursor().stream("select generate_series(1, 10000)")
            self.world.kept.append(rows)
            next(rows)
        elif leftover == "row factory":
            connection.row_factory = dict_row
        elif leftover == "autocommit" and connection.info.transaction_status.name == "IDLE":
            connection.autocommit = not connection.autocommit
        elif leftover == "closed":
            connection.close()

    def enter(self, manager: contextlib.AbstractContextManager[Any]) -> None:
        self.world.kept.append(manager)
        manager.__enter__()

    def let_go(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self.world.kept.clear()


@pytest.fixture
def dies_at_commit(admin: Connection) -> Iterator[None]:
    """A row 'dies' ends its backend while COMMIT runs."""
    admin.execute(
        """
        create or replace function die() returns trigger language plpgsql security definer as
        $$ begin perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(5); return null; end $$;
        create constraint trigger die_at_commit after insert on ledger
        deferrable initially deferred for each row when (new.id = 'dies') execute function die();
        """
    )
    yield
    admin.execute("drop function die cascade")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("pipeline_begin", ["off", "on"])
def test_every_life_of_an_environment_keeps_its_promises(
    environment: Callable[..., None],
    database: EmbeddedPostgres,
    admin: Connection,
    dies_at_commit: None,
    monkeypatch: pytest.MonkeyPatch,
    pipeline_begin: str,
) -> None:
    """No handler starts on a dead connection or runs twice unasked; what was acknowledged is kept, and nothing else."""
    assert layer_connection.LONGEST_TRUSTED_IDLE_SECONDS == 5.0, "the freezes are around this"
    monkeypatch.setattr("emberpool.commit.COMMIT_PATIENCE_SECONDS", 0.02)
    environment(EMBERPOOL_PIPELINE_BEGIN=pipeline_begin)
    world = World(admin, LayerSettings.from_environment())
    # Derandomized: the same lives each time, as a failure in a pull request has to be that request's. Hypothesis prints
    # the steps that lead to it; it does not look for fewer, which takes minutes with a real server.
    chosen = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        derandomize=True,
        phases=[Phase.generate],
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(type("LifeHere", (Life,), {"world": world}), settings=chosen)
