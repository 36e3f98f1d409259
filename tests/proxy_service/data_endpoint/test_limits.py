"""How much one caller may ask of a task."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberpool_proxy.data_endpoint.errors import DataError
from emberpool_proxy.data_endpoint.limits import Limits


def test_as_many_run_at_once_as_are_allowed() -> None:
    """The next one is throttled, and taken when one has left; another caller has a share of its own."""
    limits = Limits(0, 2)
    limits.enter("app", 0)
    limits.enter("app", 0)
    with pytest.raises(DataError, match="app has 2 requests running at this task, as many as it may") as caught:
        limits.enter("app", 0)
    assert (caught.value.kind, caught.value.status) == ("ThrottlingException", 429)
    limits.enter("other", 0)
    limits.leave("app")
    limits.enter("app", 0)
    assert limits.running == 3


def test_as_many_come_in_a_second_as_are_allowed() -> None:
    """A second's worth at once, then one for each share of a second; those that have ended count as well."""
    limits = Limits(4, 100)

    def comes(now: float) -> bool:
        try:
            limits.enter("app", now)
        except DataError as error:
            assert "app sends more than 4 requests a second to this task" in error.message  # noqa: PT017
            return False
        limits.leave("app")
        return True

    assert [comes(10) for _ in range(6)] == [True] * 4 + [False] * 2
    assert [comes(10.25), comes(10.25)] == [True, False]
    assert [comes(60) for _ in range(6)] == [True] * 4 + [False] * 2


def test_less_than_one_request_a_second_lets_the_first_through() -> None:
    """Half a request a second is one every two seconds."""
    limits = Limits(0.5, 10)
    limits.enter("app", 0)
    with pytest.raises(DataError, match=r"more than 0\.5 requests a second"):
        limits.enter("app", 1.9)
    limits.enter("app", 2)


def test_who_is_refused_takes_no_place() -> None:
    """A refused request needs no leave, and costs none of the rate."""
    limits = Limits(1, 1)
    limits.enter("app", 0)
    for now in (5.0, 6.0):
        with pytest.raises(DataError):
            limits.enter("app", now)
    limits.leave("app")
    limits.enter("app", 6)
    assert limits.running == 1


@pytest.mark.parametrize("per_second", [0, 5])
def test_idle_callers_are_forgotten(per_second: float) -> None:
    """Names come and go with the users; memory is only for those who ask."""
    limits = Limits(per_second, 10)
    for number in range(100):
        limits.enter(f"user-{number}", number)
        limits.leave(f"user-{number}")
    limits.enter("busy", 100)
    limits.forget_idle(200)
    assert list(limits._shares) == ["busy"]
    limits.leave("busy")


@given(st.lists(st.tuples(st.floats(0, 0.5), st.booleans()), max_size=60), st.integers(1, 5), st.integers(1, 5))
def test_neither_limit_is_ever_exceeded(steps: list[tuple[float, bool]], per_second: int, at_once: int) -> None:
    """Whatever comes when: never more at once, and never more in a window than its seconds and one allow."""
    limits = Limits(per_second, at_once)
    now, running, entered = 0.0, 0, []
    for pause, leaves in steps:
        now += pause
        if leaves and running:
            limits.leave("app")
            running -= 1
        try:
            limits.enter("app", now)
        except DataError:
            continue
        running += 1
        entered.append(now)
        assert running <= at_once
        for begin in entered:
            count = sum(begin <= moment <= now for moment in entered)
            assert count <= per_second * (now - begin + 1) + 1e-6
