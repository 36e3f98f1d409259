"""Which clients are refused after wrong passwords, for any sequence of failures."""

from __future__ import annotations

import ipaddress

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberpool_local.host.server_user import give_to, server_user
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_proxy.credentials.login_failures import LoginFailures, Pair, hba_rows

from .bare_pgbouncer import CLIENT, DATABASE, HBA, bare_pgbouncer

PAIRS = st.builds(Pair, st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1"]), st.sampled_from(["app", "reports"]))
EVENTS = st.lists(st.tuples(st.floats(0, 5), PAIRS), max_size=80)
MOST, WINDOW, REFUSED = 4, 10.0, 7.0


def played(events: list[tuple[float, Pair]], failures: LoginFailures) -> list[tuple[float, Pair, bool]]:
    """Feed the failures, a pause before each, and refuse whoever reaches the limit, as the guard does."""
    now, seen = 0.0, []
    for pause, pair in events:
        now += pause
        has_reached = failures.add(pair, now)
        if has_reached:
            failures.refuse(pair, now)
        seen.append((now, pair, has_reached))
    return seen


@given(EVENTS)
def test_limit_is_reached_exactly_by_enough_failures_of_that_pair_within_the_window(
    events: list[tuple[float, Pair]],
) -> None:
    """A pair reaches the limit when its last MOST failures since it was refused last lie within the window."""
    since_refusal: dict[Pair, list[float]] = {}
    for now, pair, has_reached in played(events, LoginFailures(MOST, WINDOW, REFUSED)):
        times = since_refusal.setdefault(pair, [])
        times.append(now)
        assert has_reached == (len(times) >= MOST and now - times[-MOST] <= WINDOW)
        if has_reached:
            times.clear()


@given(EVENTS, st.floats(0, 20))
def test_refusal_ends_by_itself_and_touches_no_other_pair(events: list[tuple[float, Pair]], later: float) -> None:
    """Refused are exactly the pairs that reached the limit less than REFUSED ago."""
    failures = LoginFailures(MOST, WINDOW, REFUSED)
    seen = played(events, failures)
    now = (seen[-1][0] if seen else 0.0) + later
    expected = {pair for at, pair, has_reached in seen if has_reached and at + REFUSED > now}
    assert set(failures.refused(now)) == expected
    left = failures.seconds_to_next_end(now)
    assert (left is None) == (not expected)
    if left is not None:
        assert len(failures.refused(now + left)) < len(expected)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 10_000)), max_size=120))
def test_memory_is_bounded_whoever_tries(events: list[tuple[float, int]]) -> None:
    """However many addresses fail, only `most_pairs` are remembered and refused."""
    failures = LoginFailures(1, WINDOW, REFUSED, most_pairs=5)
    played([(pause, Pair(str(ipaddress.ip_address(number)), "app")) for pause, number in events], failures)
    assert len(failures.refused(0.0)) <= 5
    assert len(failures._failed_at) <= 5


def test_rows_refuse_one_address_and_one_user() -> None:
    """Each pair becomes one row of PgBouncer's hba file, for its address alone."""
    assert hba_rows([Pair("10.0.0.1", "app"), Pair("fd00::1", "a_b-c")]) == (
        'host all "app" 10.0.0.1/32 reject',
        'host all "a_b-c" fd00::1/128 reject',
    )


@given(st.text(max_size=20), st.text(max_size=20))
def test_text_that_a_stranger_chose_never_becomes_a_row(address: str, user: str) -> None:
    """Whatever a client calls itself, and whatever the log says of its address, a row has exactly its five words."""
    for row in hba_rows([Pair(address, "app"), Pair("10.0.0.1", user), Pair("unix(4711)", "app")]):
        assert len(row.split()) == 5
        assert row.isascii()
        assert row.isprintable()


async def test_pgbouncer_refuses_the_pair_and_nobody_else(pgbouncer_program: PgbouncerProgram) -> None:
    """The rows are in PgBouncer's own form: after RELOAD that user is refused from that address, others are asked."""
    with bare_pgbouncer(
        pgbouncer_program, {DATABASE: "host=127.0.0.1 port=1", "quick": "host=127.0.0.1 port=1"}
    ) as bare:
        async with await bare.console() as console:
            for pair, words in (
                (Pair("127.0.0.1", CLIENT), "login rejected"),
                (Pair("127.0.0.2", CLIENT), "SASL authentication failed"),
                (Pair("127.0.0.1", "another"), "SASL authentication failed"),
                (Pair("fd00::1", CLIENT), "SASL authentication failed"),
            ):
                fresh = bare.folder / "hba.new"
                fresh.write_text("\n".join(hba_rows([pair])) + HBA)
                give_to(server_user(), fresh)
                fresh.replace(bare.folder / "hba.conf")
                await console.reload()
                with pytest.raises(psycopg.OperationalError, match=words):
                    psycopg.connect(bare.conninfo(password="wrong"))
