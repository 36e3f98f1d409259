"""A task's control connection, as agent/coordination.py uses it: one piece of work at a time, each question delayed.

What is lost: a question or its answer in a partition (until TCP repeats it, or the deadline), all answers once the
session has ended. A deadline closes the client's side; the database may keep the session, and its locks, for longer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from emberpool_local.simulation.clock import Delays, Process
from emberpool_local.simulation.database import ControlSession, DatabaseAway
from emberpool_local.simulation.timing import draw
from emberpool_proxy.agent.budget_reading import FleetView
from emberpool_proxy.agent.coordination import FIRST_PAUSE_SECONDS, JITTER, LONGEST_PAUSE_SECONDS
from emberpool_proxy.agent.decide import Decision

if TYPE_CHECKING:
    from emberpool_local.simulation.task import Task

PARTITION_LOOK_SECONDS = 0.2
# Until TCP repeats what it could not deliver, after a partition: less than the retransmission timeout it has grown to.
REPEATED_WITHIN_SECONDS = 1.0
NO_SLOTS: frozenset[int] = frozenset()


class ConnectionLost(Exception):  # noqa: N818 (an outcome of the model, not an error of the program)
    """The control connection ended, or a question missed its deadline."""


class Coordination:
    """The control connection of one agent. `session` is the one of an agent before it, whose socket is kept."""

    def __init__(self, task: Task, inherited: ControlSession | None, on_lost: Callable[[], None]) -> None:
        self._task = task
        self._inherited = inherited
        self._on_lost = on_lost
        self._work: Process | None = None
        self._giving = NO_SLOTS
        self._held = NO_SLOTS
        self._published = 0
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._not_before = 0.0
        self._taken: int | None = None
        self._hunger: bool | None = None
        self.session: ControlSession | None = None
        self.fleet: FleetView | None = None

    @property
    def held(self) -> frozenset[int]:
        """The slots that this task may rely on."""
        return self._held - self._giving

    @property
    def kept_session(self) -> ControlSession | None:
        """The session whose socket the supervisor keeps, should this agent die."""
        return self._inherited or self.session

    def last_taken(self) -> int | None:
        """Return how many slots were got since the last call; None when none were asked for."""
        taken, self._taken = self._taken, None
        return taken

    def last_hunger(self) -> bool | None:
        """Return whether anybody else was hungry, if that was asked since the last call."""
        hunger, self._hunger = self._hunger, None
        return hunger

    def begin(self, decision: Decision) -> None:
        """Do what `decision` wants of the database, unless something is still being done."""
        if (self._work and not self._work.is_over) or not self._is_work(decision):
            return
        self._giving = decision.give & self._held
        self._work = Process(self._task.clock, self._do(decision))

    def end(self) -> None:
        """Die with the agent. The session stays, if somebody keeps its socket."""
        if self._work:
            self._work.end()

    def close(self) -> None:
        """Close the control connection: its session ends when the database hears of it."""
        session, self.session = self.session, None
        self._held, self.fleet, self._published, self._inherited = NO_SLOTS, None, 0, None
        if session:
            self._task.close_session(session)

    def heard_end(self, session: ControlSession) -> None:
        """Take note of the end of the session, if its notice comes through."""
        if session is self.session and not self._task.is_partitioned:
            self._lose()

    def _lose(self) -> None:
        self.close()
        self._on_lost()

    def _is_work(self, decision: Decision) -> bool:
        if self.session is None:
            return decision.wants_connection and self._task.clock.now >= self._not_before
        return decision.is_work(self._published)

    def _do(self, decision: Decision) -> Delays:
        try:
            if self.session is None:
                yield from self.open()
                self._pause_seconds = FIRST_PAUSE_SECONDS
            elif not decision.wants_connection and not self._held:
                self.close()
            else:
                yield from self._exchange(decision)
        except (ConnectionLost, DatabaseAway):
            self._not_before = self._task.clock.now + self._pause_seconds * draw(self._task.random, JITTER)
            self._pause_seconds = min(self._pause_seconds * 2, LONGEST_PAUSE_SECONDS)
        self._giving = NO_SLOTS
        self._task.wake_agent()

    def open(self) -> Delays:
        """Open the control connection, and take over the slots of an agent that died. Raises DatabaseAway."""
        task = self._task
        if task.is_partitioned:
            yield task.timing.connect_timeout
        yield draw(task.random, task.timing.control_login)
        if task.is_partitioned:
            raise DatabaseAway
        session = task.database.open_session(task.number, task.terms.floor, task.terms.shared_slots)
        session.on_end = lambda: task.tell_end(session)
        self.session = session
        if self._inherited:
            yield from self._inherit(self._inherited)
        self._inherited = None
        self.fleet = yield from self._view()

    def _inherit(self, before: ControlSession) -> Delays:
        def end_session() -> tuple[int, ...]:
            numbers = tuple(sorted(before.slots))
            self._task.database.end_session(before, is_told=False)
            return numbers

        numbers = yield from self._ask(end_session)
        if numbers:
            yield from self._take(numbers, len(numbers))

    def _exchange(self, decision: Decision) -> Delays:
        database = self._task.database
        if giving := self._giving:
            yield from self._ask(lambda: database.give(self._own_session, giving))
            self._held -= giving
        if decision.take_count:
            self._taken = len((yield from self._take(decision.take, decision.take_count)))
        if decision.missing != self._published:
            yield from self._ask(lambda: database.publish(self._own_session, decision.missing))
            self._published = decision.missing
        if decision.wants_fleet or self._taken:
            self.fleet = yield from self._view()
        elif decision.wants_hunger:
            self._hunger = yield from self._ask(lambda: database.is_anybody_else_hungry(self._own_session))

    def _take(self, candidates: tuple[int, ...], most: int) -> Generator[float, None, frozenset[int]]:
        got: frozenset[int] = yield from self._ask(
            lambda: self._task.database.take(self._own_session, candidates, most)
        )
        self._held |= got
        return got

    def _view(self) -> Generator[float, None, FleetView]:
        asked_at = self._task.clock.now
        view: FleetView = yield from self._ask(lambda: self._task.database.view(self._own_session, asked_at))
        return view

    @property
    def _own_session(self) -> ControlSession:
        assert self.session is not None  # noqa: S101 (a question is only asked while there is a session)
        return self.session

    def _ask(self, effect: Callable[[], Any]) -> Generator[float, None, Any]:
        session, asked_at = self.session, self._task.clock.now
        yield from self._travel(session, asked_at)
        self._task.database.queries += 1
        answer = effect()
        yield from self._travel(session, asked_at)
        return answer

    def _travel(self, session: ControlSession | None, asked_at: float) -> Delays:
        task = self._task
        yield draw(task.random, task.timing.network)
        was_cut_off = task.is_partitioned
        while task.is_partitioned:
            self._check(session)
            if task.clock.now - asked_at >= task.timing.question_deadline:
                self._lose()
                raise ConnectionLost
            yield PARTITION_LOOK_SECONDS
        if was_cut_off:
            yield draw(task.random, (0.0, REPEATED_WITHIN_SECONDS))
        self._check(session)
        if session is not None and not session.is_alive:
            self._lose()
            raise ConnectionLost

    def _check(self, session: ControlSession | None) -> None:
        if session is None or session is not self.session:
            raise ConnectionLost
