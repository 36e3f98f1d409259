"""The database of a simulated fleet: who is connected, who holds which lock, and what a fleet view says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from emberpool_local.simulation.clock import Clock
from emberpool_proxy.agent.budget_reading import FleetView, Session

AGENT_CONNECTIONS = 2  # of each task, as in the proxy's settings: control connection, and one login at a time


class DatabaseAway(Exception):  # noqa: N818 (an outcome of the model, not an error of the program)
    """No connection could be opened: the database is down, or full."""


@dataclass(eq=False)
class ControlSession:
    """The backend of one control connection. Its locks end with it; `on_end` hears of an end that was not asked for."""

    process_id: int
    task: int
    floor: int
    claim: int
    on_end: Callable[[], None] = lambda: None
    slots: set[int] = field(default_factory=set)
    missing: int = 0
    is_alive: bool = True
    shown: Session | None = None  # as the last view showed it; None: it has changed since

    def as_session(self) -> Session:
        """Return it as pg_locks shows it."""
        if self.shown is None:
            self.shown = Session(self.process_id, len(self.slots), self.floor, self.missing)
        return self.shown


@dataclass
class Database:
    """Counts of connections by kind, the locks, and the limits that the database itself has.

    `on_growth` is called after each new connection, `on_move` with the signed number of slots after each
    take and give. `others_excess` answers for a task what addresses tell of the others.
    """

    clock: Clock
    max_connections: int
    reserved_connections: int
    most_tasks: int
    floor: int
    superuser_reserved: int = 3
    other_clients: int = 0
    is_up: bool = True
    incarnation: int = 0
    pool_backends: int = 0
    agent_logins: int = 0
    queries: int = 0
    views: int = 0
    refused_logins: int = 0
    holders: dict[int, ControlSession] = field(default_factory=dict)
    sessions: dict[int, ControlSession] = field(default_factory=dict)
    sessions_of: dict[int, list[ControlSession]] = field(default_factory=dict)  # by task
    others_excess: Callable[[int], int | None] = lambda _task: None
    on_growth: Callable[[], None] = lambda: None
    on_move: Callable[[ControlSession, int], None] = lambda _session, _slots: None
    _process_ids: Iterator[int] = field(default_factory=lambda: count(1000))
    _free: tuple[int, tuple[int, ...]] | None = None
    _shown: tuple[Session, ...] | None = None
    _smallest_claim: int | None = None
    _hungry: int = 0

    # Connections

    @property
    def our_connections(self) -> int:
        """All connections of the fleet: of its pools, and of its agents."""
        return self.pool_backends + len(self.sessions) + self.agent_logins

    def _admit(self) -> None:
        if (
            not self.is_up
            or self.our_connections + self.other_clients >= self.max_connections - self.superuser_reserved
        ):
            self.refused_logins += self.is_up
            raise DatabaseAway

    def open_pool_backend(self) -> None:
        """Count one more server connection of a pool; raises DatabaseAway."""
        self._admit()
        self.pool_backends += 1
        self.on_growth()

    def open_agent_login(self) -> None:
        """Count a short login of an agent; raises DatabaseAway."""
        self._admit()
        self.agent_logins += 1
        self.on_growth()

    def open_session(self, task: int, floor: int, claim: int) -> ControlSession:
        """Log a control connection in; raises DatabaseAway."""
        self._admit()
        session = ControlSession(next(self._process_ids), task, floor, claim)
        self.sessions[session.process_id] = session
        self.sessions_of.setdefault(task, []).append(session)
        self._shown = self._smallest_claim = None
        self.on_growth()
        return session

    def end_session(self, session: ControlSession, *, is_told: bool = True) -> None:
        """End a control session; its locks are free at once."""
        if not session.is_alive:
            return
        session.is_alive = False
        del self.sessions[session.process_id]
        self.sessions_of[session.task].remove(session)
        self.publish(session, 0)
        self.give(session, tuple(session.slots))
        self._shown = self._smallest_claim = None
        if is_told:
            session.on_end()

    def restart(self) -> None:
        """Lose all connections and locks, and refuse new ones until `is_up` is set again."""
        self.is_up = False
        self.incarnation += 1
        self.pool_backends = self.agent_logins = self.other_clients = 0
        for session in tuple(self.sessions.values()):
            self.end_session(session)

    # Locks

    def take(self, session: ControlSession, candidates: Sequence[int], most: int) -> frozenset[int]:
        """Try the locks in their order until `most` are got."""
        got: list[int] = []
        for number in candidates:
            if len(got) == most:
                break
            if number not in self.holders:
                self.holders[number] = session
                got.append(number)
        if got:
            session.slots.update(got)
            session.shown = self._shown = self._free = None
            self.on_move(session, len(got))
        return frozenset(got)

    def give(self, session: ControlSession, numbers: Iterable[int]) -> None:
        """Unlock those of the numbers that the session holds."""
        mine = session.slots.intersection(numbers)
        if not mine:
            return
        for number in mine:
            del self.holders[number]
        session.slots -= mine
        session.shown = self._shown = self._free = None
        self.on_move(session, -len(mine))

    def publish(self, session: ControlSession, missing: int) -> None:
        """Change the session's mark of hunger."""
        self._hungry += (missing > 0) - (session.missing > 0)
        session.missing = missing
        session.shown = self._shown = None

    # Views

    def is_anybody_else_hungry(self, session: ControlSession) -> bool:
        """Answer the cheap question."""
        return self._hungry > (session.missing > 0)

    @property
    def room(self) -> int:
        """Slots that fit below the database's own limit now."""
        kept = max(self.reserved_connections, self.superuser_reserved + self.other_clients)
        return max(0, self.max_connections - kept - self.most_tasks * (self.floor + AGENT_CONNECTIONS))

    @property
    def smallest_claim(self) -> int:
        """The fewest shared slots that any task's settings promise; 0 when nobody is connected."""
        if self._smallest_claim is None:
            self._smallest_claim = min((session.claim for session in self.sessions.values()), default=0)
        return self._smallest_claim

    def view(self, session: ControlSession, at: float) -> FleetView:
        """Answer a session's question about the fleet, as of this moment."""
        self.views += 1
        if self._shown is None:
            self._shown = tuple(one.as_session() for one in self.sessions.values())
        slots = min(session.claim, self.smallest_claim, self.room)
        if self._free is None or self._free[0] != slots:
            holders = self.holders
            self._free = (slots, tuple(number for number in range(slots) if number not in holders))
        own = session.process_id
        return FleetView(
            at=at,
            own=session.as_session(),
            others=tuple([one for one in self._shown if one.process_id != own]),
            free=self._free[1],
            slots=slots,
            pool_connections=self.pool_backends,
            promised_slots=session.claim,
            smallest_claim=self.smallest_claim,
            database_has_room_for=self.room,
            others_excess=self.others_excess(session.task),
        )
