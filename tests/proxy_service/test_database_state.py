"""The decisions about a database that goes away, as a pure function: what must hold whatever happens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberpool_proxy.agent.database_state import (
    MOST_FAILED_RETURNS,
    REFUSED_SECONDS,
    UNWATCHED_PROBE_SECONDS,
    Action,
    Alarm,
    Answer,
    DatabaseState,
    Decision,
    Phase,
    Reading,
    pauses_at_once,
    step,
)

STEPS_TO_SETTLE = 40
SHORTEST_STEP_SECONDS = 0.001
CHECK_SECONDS = DatabaseState().check_seconds


@dataclass
class World:
    """A database and two PgBouncers, as the watch sees them and acts on them."""

    state: DatabaseState = field(default_factory=DatabaseState)
    database: Answer = Answer.WRITABLE
    pool_login: Answer | None = None  # what the pool's own logins come to; None: as ours
    paused: list[bool] = field(default_factory=lambda: [False, False])
    servers: int = 4
    clients_waiting: int = 0
    now: float = 0.0
    probe: Answer = Answer.NOT_ASKED
    pool: Answer = Answer.NOT_ASKED
    probed_at: list[float] = field(default_factory=list)

    def turn(self, alarm: Alarm = Alarm.NONE, *, is_busy: bool = False, is_stale: bool = False) -> Decision:
        if pauses_at_once(self.state, alarm):
            self.pause()
        reading = Reading(
            now=self.now,
            alarm=alarm,
            probe=self.probe,
            pool=self.pool,
            is_paused=any(self.paused),
            is_all_paused=all(self.paused),
            is_busy=is_busy,
            clients_waiting=self.clients_waiting,
            servers=self.servers,
            has_stale_servers=is_stale,
        )
        self.probe = self.pool = Answer.NOT_ASKED
        self.state, decision = step(self.state, reading)
        self.act(decision.actions)
        self.now += max(decision.wait_seconds, SHORTEST_STEP_SECONDS)
        return decision

    def act(self, actions: frozenset[Action]) -> None:
        if Action.PAUSE in actions:
            self.pause()
        if Action.RESUME in actions:
            self.pool = self.answer_to_pool()
            can_log_in = self.pool in (Answer.WRITABLE, Answer.READ_ONLY)
            self.paused = [not can_log_in] * 2
            self.servers = 1 if can_log_in else 0
            self.pool = self.pool if can_log_in else Answer.AWAY
        if Action.LET_GO in actions:
            self.paused = [False, False]
        if Action.PROBE in actions:
            self.probe = self.database
            self.probed_at.append(self.now)
        if Action.ASK_POOL in actions:
            self.pool = self.answer_to_pool()

    def pause(self) -> None:
        self.paused = [True, True]
        self.servers = 0

    def answer_to_pool(self) -> Answer:
        return self.pool_login or self.database


answers = st.sampled_from([answer for answer in Answer if answer is not Answer.NOT_ASKED])


@st.composite
def histories(draw: st.DrawFn) -> World:
    """A world after up to 30 turns in which anything happened to it."""
    world = World(state=DatabaseState(must_be_writable=draw(st.booleans())), now=draw(st.floats(0, 1e6)))
    for _ in range(draw(st.integers(0, 30))):
        if draw(st.booleans()):
            world.database = draw(answers)
            world.pool_login = draw(st.none() | answers)
        world.clients_waiting = draw(st.integers(0, 2))
        world.servers = draw(st.integers(0, 4))
        if draw(st.integers(0, 5)) == 0:  # a process has crashed and is back, not paused
            world.paused[draw(st.integers(0, 1))] = False
        world.turn(draw(st.sampled_from(Alarm)), is_busy=draw(st.booleans()), is_stale=draw(st.booleans()))
    return world


@settings(max_examples=50)
@given(histories(), st.integers(0, 2), st.booleans())
def test_nobody_stays_paused_once_the_database_serves(world: World, clients_waiting: int, is_busy: bool) -> None:
    """Whatever happened before: with a database that answers well, every process is resumed and serving."""
    world.database, world.pool_login, world.clients_waiting = Answer.WRITABLE, None, clients_waiting
    for _ in range(STEPS_TO_SETTLE):
        world.turn(is_busy=is_busy)
    # OPEN serves as well; without anybody who uses the pool there is no reason to ask it again.
    assert world.state.phase is Phase.SERVING or (world.state.phase is Phase.OPEN and not (is_busy or clients_waiting))
    assert world.paused == [False, False]


@settings(max_examples=50)
@given(histories())
def test_pool_is_never_resumed_into_a_read_only_server(world: World) -> None:
    """While our login finds a server in recovery and it must be writable, nothing ends the pause."""
    world.state = replace(world.state, must_be_writable=True)
    world.database, world.pool_login, world.clients_waiting = Answer.READ_ONLY, None, 1
    world.probe = world.pool = Answer.NOT_ASKED
    for _ in range(STEPS_TO_SETTLE):
        before = world.state.phase
        decision = world.turn(is_busy=True)
        if before is Phase.AWAY:
            assert not decision.actions & {Action.RESUME, Action.LET_GO}
    assert world.state.phase is Phase.AWAY
    assert world.paused == [True, True]


@settings(max_examples=50)
@given(histories())
def test_read_only_is_good_enough_when_it_need_not_be_writable(world: World) -> None:
    """A pool in front of replicas serves although they are in recovery."""
    world.state = replace(world.state, must_be_writable=False)
    world.database, world.pool_login, world.clients_waiting = Answer.READ_ONLY, None, 1
    for _ in range(STEPS_TO_SETTLE):
        world.turn(is_busy=True)
    assert world.state.phase is Phase.SERVING
    assert world.paused == [False, False]


@settings(max_examples=50)
@given(histories())
def test_clients_wait_while_nobody_can_log_in(world: World) -> None:
    """Whatever happened before: after an alarm, with the database away, every process is paused and stays so."""
    world.database, world.pool_login, world.clients_waiting = Answer.AWAY, None, 1
    world.probe = world.pool = Answer.NOT_ASKED
    for turn in range(STEPS_TO_SETTLE):
        world.turn(Alarm.AWAY)
        assert turn < STEPS_TO_SETTLE / 2 or world.paused == [True, True]


@settings(max_examples=50)
@given(histories(), st.integers(0, 1))
def test_probes_keep_their_distance(world: World, clients_waiting: int) -> None:
    """A database that stays away is asked every probe_seconds at most, and rarely when nobody waits for it."""
    world.database, world.pool_login, world.clients_waiting = Answer.AWAY, None, clients_waiting
    world.probe = world.pool = Answer.NOT_ASKED
    for _ in range(STEPS_TO_SETTLE):
        world.turn(Alarm.AWAY)
    world.probed_at.clear()
    for _ in range(STEPS_TO_SETTLE):
        world.turn(Alarm.AWAY)
    gaps = [later - sooner for sooner, later in zip(world.probed_at, world.probed_at[1:], strict=False)]
    least = world.state.probe_seconds if clients_waiting else UNWATCHED_PROBE_SECONDS
    assert gaps
    assert all(gap >= least - 0.01 for gap in gaps)


def test_nothing_is_asked_while_nobody_works() -> None:
    """A pool that serves without alarm and without traffic asks nothing: a paused database can stay paused."""
    world = World(servers=0)
    for _ in range(5):
        assert world.turn() == Decision(frozenset(), CHECK_SECONDS)


def test_pool_in_use_is_asked_once_a_check() -> None:
    """With traffic the pool's own connections are asked, and no login of our own is made."""
    world = World()
    assert world.turn(is_busy=True).actions == {Action.ASK_POOL}
    assert world.turn(is_busy=True) == Decision(frozenset(), CHECK_SECONDS)
    assert not world.probed_at


def test_pause_of_an_agent_before_us_ends_only_after_a_look() -> None:
    """A pool that is found paused is probed first, then resumed."""
    world = World(paused=[True, False], servers=0)
    assert world.turn().actions == {Action.PAUSE, Action.PROBE}
    assert world.turn().actions == {Action.RESUME}
    world.turn()
    assert (world.state.phase, world.paused) == (Phase.SERVING, [False, False])


def test_lost_connection_among_others_pauses_nobody() -> None:
    """When one backend was terminated and the database answers, the other connections go on."""
    world = World(servers=3)
    assert world.turn(Alarm.DOUBT).actions == {Action.PROBE}
    assert world.turn().actions == frozenset()
    assert world.state.phase is Phase.SERVING


def test_hanging_listener_does_not_stop_connections_that_work() -> None:
    """No new login comes about, but those that are in are served: nobody is paused."""
    world = World(database=Answer.SILENT, pool_login=Answer.WRITABLE)
    world.turn(Alarm.DOUBT)
    assert world.turn().actions == {Action.ASK_POOL}
    world.turn()
    assert (world.state.phase, world.paused) == (Phase.SERVING, [False, False])


def test_server_that_answers_nobody_lets_new_work_wait() -> None:
    """When neither a new login nor the pool's own connections get an answer, the pool is paused."""
    world = World(database=Answer.SILENT)
    world.turn(Alarm.DOUBT)
    world.turn()
    world.turn()
    assert (world.state.phase, world.paused) == (Phase.AWAY, [True, True])


def test_old_writer_that_turned_read_only_is_left() -> None:
    """A pool whose connections lead to a server in recovery is paused and reconnected."""
    world = World(pool_login=Answer.READ_ONLY)
    world.turn(is_busy=True)
    assert world.turn(is_busy=True).actions == {Action.PAUSE, Action.RECONNECT, Action.PROBE}


def test_pool_that_is_behind_the_name_is_reconnected() -> None:
    """Server connections at an address that the name no longer has are replaced, without a pause."""
    world = World()
    assert world.turn(is_busy=True, is_stale=True).actions == {Action.ASK_POOL, Action.RECONNECT}


def test_pool_with_other_credentials_gives_up_waiting_for_it() -> None:
    """We can log in and the pool cannot: after a few tries its clients are told so instead of kept waiting."""
    world = World(pool_login=Answer.REFUSED, clients_waiting=1)
    world.turn(Alarm.AWAY)
    decisions = [world.turn() for _ in range(STEPS_TO_SETTLE)]
    assert sum(Action.RESUME in decision.actions for decision in decisions) == MOST_FAILED_RETURNS
    assert (world.state.phase, world.paused) == (Phase.OPEN, [False, False])
    world.pool_login = None
    for _ in range(5):
        world.turn(is_busy=True)
    assert world.state.phase is Phase.SERVING


def test_refused_probe_keeps_clients_waiting_for_new_credentials_only_so_long() -> None:
    """A database that refuses our login is waited for a few seconds; then clients are told why."""
    world = World(database=Answer.REFUSED, servers=0, clients_waiting=1)
    world.turn(Alarm.DOUBT)
    begun = world.now
    while world.state.phase is Phase.AWAY:
        assert world.paused == [True, True]
        world.turn()
    assert world.state.phase is Phase.OPEN
    assert world.now - begun == pytest.approx(REFUSED_SECONDS, abs=1.0 + CHECK_SECONDS)
    assert world.paused == [False, False]
