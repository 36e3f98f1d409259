"""When the gate of a pool closes and opens, for any sequence of looks."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from emberpool_proxy.credentials.gate_state import Act, Gate, GateState, Look, step

SLEEP, REFRESH = 10.0, 100.0
COUNTS = st.integers(0, 3)
LOOKS = st.builds(
    Look,
    now=st.floats(0, 30),  # since the look before
    is_paused=st.booleans(),
    servers=COUNTS,
    logging_in=st.integers(0, 1),
    active=COUNTS,
    waiting=COUNTS,
    transactions=st.integers(0, 2),  # since the look before
    is_refused=st.booleans(),
)
CALM = Look(now=0, is_paused=False, servers=2, logging_in=0, active=0, waiting=0, transactions=0)


def played(looks: list[Look]) -> list[tuple[GateState, Look, Act]]:
    """Each look with the state before it and the answer; what is told to close does."""
    state, now, transactions, seen = GateState(), 0.0, 0, []
    for drawn in looks:
        now += drawn.now
        transactions += drawn.transactions
        look = replace(drawn, now=now, transactions=transactions, active=min(drawn.active, drawn.servers))
        before = state
        state, act = step(state, look, SLEEP, REFRESH)
        seen.append((before, look, act))
        if act in (Act.CLOSE, Act.REFRESH):
            state = replace(state, gate=Gate.CLOSED)
    return seen


@given(st.lists(LOOKS, max_size=30))
def test_gate_never_closes_on_a_login_that_may_succeed(looks: list[Look]) -> None:
    """A PAUSE ends a login that is under way, and PgBouncer then fails clients: only a refused one may be ended."""
    for _, look, act in played(looks):
        if act in (Act.CLOSE, Act.REFRESH) and not look.is_refused:
            assert not look.logging_in
            assert not look.waiting


@given(st.lists(LOOKS, max_size=30))
def test_closed_gate_opens_when_somebody_waits(looks: list[Look]) -> None:
    """Also one that an agent before this one closed; until then it stays closed."""
    for _, look, act in played(looks):
        assert (act is Act.WAKE) == (look.is_paused and look.waiting > 0)
        if look.is_paused:
            assert act in (Act.WAKE, Act.NOTHING)


@given(st.lists(LOOKS, max_size=30))
def test_empty_pool_that_nobody_waits_for_is_closed_at_once(looks: list[Look]) -> None:
    """PgBouncer must not log in on an empty pool before we have."""
    for _, look, act in played(looks):
        if not (look.is_paused or look.servers or look.waiting or look.logging_in):
            assert act is Act.CLOSE


@given(st.lists(LOOKS, max_size=30))
def test_servers_of_a_refused_role_are_kept(looks: list[Look]) -> None:
    """A PAUSE would close them, and they are all that still works."""
    for _, look, act in played(looks):
        if look.is_refused and look.servers:
            assert act not in (Act.CLOSE, Act.REFRESH)


def test_pool_sleeps_after_its_last_transaction_not_before() -> None:
    """Sleeping starts when nothing has run for `sleep_seconds`; a new transaction starts the time again."""
    state, act = step(GateState(proven_at=0), replace(CALM, now=1, transactions=5), SLEEP, REFRESH)
    assert act is Act.NOTHING
    state, act = step(state, replace(CALM, now=10.9, transactions=5), SLEEP, REFRESH)
    assert act is Act.NOTHING
    state, act = step(state, replace(CALM, now=10.95, transactions=6), SLEEP, REFRESH)
    assert step(state, replace(CALM, now=20.9, transactions=6), SLEEP, REFRESH)[1] is Act.NOTHING
    assert step(state, replace(CALM, now=20.95, transactions=6), SLEEP, REFRESH)[1] is Act.CLOSE


def test_single_server_connection_is_refreshed_in_time() -> None:
    """A pool with one busy server connection is refreshed `refresh_seconds` after its login was proven."""
    busy = replace(CALM, servers=1, active=1)
    state = GateState(proven_at=0.0)
    assert step(state, replace(busy, now=99), SLEEP, REFRESH)[1] is Act.NOTHING
    assert step(state, replace(busy, now=100), SLEEP, REFRESH)[1] is Act.REFRESH
    assert step(state, replace(busy, now=100, servers=2), SLEEP, REFRESH)[1] is Act.NOTHING


def test_clients_are_told_until_a_login_works_again() -> None:
    """After giving up nothing is closed; when nobody knows the login to be refused any more, it is proven first."""
    state = GateState(has_given_up=True)
    empty = replace(CALM, servers=0)
    assert step(state, replace(empty, is_refused=True), SLEEP, REFRESH)[1] is Act.NOTHING
    assert step(state, empty, SLEEP, REFRESH)[1] is Act.PROVE
