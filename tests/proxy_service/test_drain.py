"""Whom a drain closes when: decided by a pure function, carried out by a real PgBouncer."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from emberpool_proxy.agent.drain import SHORTEST_IDLE_SECONDS, Choice, choose, idle_seconds, step_seconds
from emberpool_proxy.pgbouncer.rows import ClientRow

JANITOR_SECONDS = 1 / 3  # PgBouncer's own
ROUNDING_SECONDS = 1e-6


@dataclass
class Client:
    """A client that begins a transaction every `period` seconds, which lasts `transaction` seconds."""

    period: float
    transaction: float
    offset: float

    def idle_since(self, now: float) -> float | None:
        """Return since when it has been idle (PgBouncer counts from the last request), or None in a transaction."""
        began = now - (now + self.offset) % self.period
        return None if now - began < self.transaction else began


def drain(clients: list[Client], seconds: int, seed: int) -> tuple[list[int], list[Client], float]:
    """Drain a simulated PgBouncer; return how many were closed in each second, who is left, and the time of the end."""
    rng, now, last, closed = random.Random(seed), 1000.0, None, [0] * seconds
    until, janitor_at = now + seconds, now + JANITOR_SECONDS
    while until - now > ROUNDING_SECONDS:
        since = [client.idle_since(now) for client in clients]
        idle = [int(now) - int(begun) for begun in since if begun is not None]
        step = step_seconds(seconds, last)
        last = choose(idle, since.count(None), int((until - now) / step + ROUNDING_SECONDS), last, rng)
        now = min(now + step, until)
        while janitor_at <= now + ROUNDING_SECONDS:
            gone = [client for client in clients if _is_idle_for(client, last.idle_seconds, janitor_at)]
            clients = [client for client in clients if client not in gone]
            closed[int(janitor_at - 1000.0 - ROUNDING_SECONDS)] += len(gone)
            janitor_at += JANITOR_SECONDS
    return closed, clients, janitor_at - JANITOR_SECONDS


def _is_idle_for(client: Client, seconds: float, now: float) -> bool:
    since = client.idle_since(now)
    return since is not None and now - since > seconds


seeds = st.integers(0, 2**32)
clients = st.builds(Client, st.floats(0.02, 600), st.floats(0, 2), st.floats(0, 600))


@settings(max_examples=50)
@given(st.lists(clients, max_size=200), st.integers(1, 20), seeds)
def test_everybody_who_is_idle_is_closed_by_the_end(some: list[Client], steps: int, seed: int) -> None:
    """After the last step nobody is left but who was in a transaction, or had just ended one, at each look."""
    closed, left, now = drain(some, steps, seed)
    assert sum(closed) + len(left) == len(some)
    for client in left:
        since = client.idle_since(now)
        assert since is None or now - since <= SHORTEST_IDLE_SECONDS


@settings(max_examples=50)
@given(st.integers(200, 1000), st.floats(20, 600), st.integers(8, 20), seeds)
def test_idle_clients_are_closed_at_an_even_rate(count: int, longest: float, steps: int, seed: int) -> None:
    """Of clients that have been idle for seconds to minutes, each step closes about its share."""
    rng = random.Random(seed)
    clients = [Client(1e9, 0.0, rng.uniform(-999, longest - 1000)) for _ in range(count)]
    closed, _, _ = drain(clients, steps, seed)
    assert max(closed[:-1]) <= 3 * count / steps + 10
    assert closed[-1] <= count / 2


@settings(max_examples=50)
@given(st.floats(0.02, 2.0), st.integers(0, 300), seeds)
def test_busy_clients_are_not_closed_all_at_once(period: float, idle: int, seed: int) -> None:
    """Of clients that are never idle for long, no step closes more than two thirds (in the median: a quarter).

    Neither when there are others beside them that have been idle for minutes.
    """
    rng = random.Random(seed)
    clients = [Client(period * rng.uniform(0.5, 2), 0.0, rng.uniform(0, 10)) for _ in range(300)]
    clients += [Client(1e9, 0.0, rng.uniform(-700, -400)) for _ in range(idle)]
    closed, _, _ = drain(clients, 20, seed)
    assert max(closed) <= 200 + 3 * idle / 20


@given(st.lists(st.integers(0, 3600), max_size=50), st.integers(0, 50), st.integers(-1, 30), seeds)
def test_timeout_is_always_one_that_pgbouncer_takes(idle: list[int], busy: int, steps: int, seed: int) -> None:
    """0 would switch it off: the choice is above 0, finite, and the shortest of all in the last step."""
    choice = choose(idle, busy, steps, Choice(0.5, len(idle) + busy, 1.0), random.Random(seed))
    assert SHORTEST_IDLE_SECONDS <= choice.idle_seconds <= max(idle, default=0) + 1
    assert steps > 1 or choice.idle_seconds == SHORTEST_IDLE_SECONDS


def row(database: str, second: int, **changes: object) -> ClientRow:
    return ClientRow(database=database, state="active", request_time=f"2026-01-31 12:00:{second:02} CET", **changes)


def test_ages_come_from_pgbouncers_own_clock() -> None:
    """The console's row is the present; who is linked or waits is busy; the console itself does not count."""
    rows = [
        row("app", 10),
        row("app", 40, link="0x55"),
        ClientRow(database="app", state="waiting", request_time="2026-01-31 12:00:41 CET"),
        row("app", 59),
        row("pgbouncer", 59),
    ]
    assert idle_seconds(rows) == ([49, 0], 2)
    assert idle_seconds([]) == ([], 0)
