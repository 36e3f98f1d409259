"""The clock on the wall may go back; what PgBouncer has resolved must not live on because of that."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberpool_proxy.agent import wall_clock
from emberpool_proxy.agent.wall_clock import WallClock, respelled, watch_wall_clock


@dataclass
class Clocks:
    """Two clocks that a test moves."""

    wall: float = 1_000_000.0
    monotonic: float = 50.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


def test_only_a_step_back_is_seen_and_once() -> None:
    """Time that passes and a step forwards are nothing; a step back is told with its size, at the next look only."""
    clocks = Clocks()
    clock = WallClock(lambda: clocks.wall, lambda: clocks.monotonic)
    clocks.pass_by(10)
    assert clock.went_back() == 0
    clocks.wall += 3600
    assert clock.went_back() == 0
    clocks.pass_by(5)
    clocks.wall -= 3600
    assert clock.went_back() == pytest.approx(3600)
    assert clock.went_back() == 0


async def test_a_step_back_is_acted_upon_and_a_small_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch calls back for a step of seconds; what an NTP client does to a clock is not worth it."""
    steps = iter((0.0, 0.5, 2.9, 3600.0, 0.0))
    done = asyncio.Event()
    called: list[float] = []

    class Stepped(WallClock):
        def went_back(self) -> float:
            step = next(steps, None)
            if step is None:
                done.set()
            else:
                called.append(step)
            return step or 0.0

    acted_after: list[int] = []

    async def on_back() -> None:
        acted_after.append(len(called))

    monkeypatch.setattr(wall_clock, "WallClock", Stepped)
    watch = asyncio.create_task(watch_wall_clock(0.001, on_back))
    await asyncio.wait_for(done.wait(), 10)
    watch.cancel()
    assert acted_after == [4]


@given(st.from_regex(r"[a-z][a-z0-9.-]{1,20}", fullmatch=True), st.integers(1, 20))
def test_spelling_changes_each_time_and_the_name_never(name: str, times: int) -> None:
    """Each spelling differs from the one before, and DNS and TLS, which know no upper case, see one name."""
    spelled = name
    for _ in range(times):
        other = respelled(spelled)
        assert other != spelled
        assert other.lower() == name
        spelled = other


def test_many_steps_back_are_many_spellings() -> None:
    """A name of ten letters has a thousand spellings before one comes again."""
    seen, name = set(), "abcdefghij"
    for _ in range(1024):
        seen.add(name)
        name = respelled(name)
    assert len(seen) == 1024
    assert name == "abcdefghij"


def test_address_has_no_other_spelling() -> None:
    """An address is nobody's to resolve."""
    assert respelled("10.0.0.1") == "10.0.0.1"
