"""Decides what to do about a database that goes away, comes back or turns read-only. Pure: opens and reads nothing.

A reading says what is known, `step` answers with the next state and with what to do. PAUSE makes clients wait in line
where PgBouncer alone would refuse them ("server login has been failing"); but it also closes the idle server
connections, so it must not be the answer to every lost connection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, IntEnum

UNWATCHED_PROBE_SECONDS = 2.0  # between two probes of a database that is away while nobody waits for it
REFUSED_SECONDS = 5.0  # new credentials may be on their way; after that, clients are better told than kept waiting
MOST_FAILED_RETURNS = 3  # we can log in and the pool cannot: waiting longer would only hide its error


class Alarm(IntEnum):
    """The worst that PgBouncer's log has told since the last reading."""

    NONE = 0
    DOUBT = 1  # a connection was lost, or a login failed: one of many, or the first of all
    AWAY = 2  # nobody can log in: refused, shutting down, starting up, no address


class Answer(Enum):
    """What a question to the database came to, be it by a login of our own or through the pool."""

    NOT_ASKED = "not asked"
    WRITABLE = "writable"
    READ_ONLY = "read-only"
    REFUSED = "refused"  # it is there, but not for this login
    AWAY = "away"  # it said so itself, or its host did
    SILENT = "silent"  # nothing came within the deadline


class Phase(Enum):
    """Where we are. AWAY is the only phase in which the pool is to be paused."""

    SERVING = "serving"
    DOUBTED = "doubted"  # still serving: somebody must look
    AWAY = "away"
    RETURNING = "returning"  # told to resume; the pool has not proven itself yet
    OPEN = "open"  # the database answers us, not the pool: clients see the pool's error instead of waiting


class Action(Enum):
    """What the watch can do."""

    PAUSE = "pause"  # every process, whatever it was before
    RECONNECT = "reconnect"
    PROBE = "probe"  # a login of our own
    ASK_POOL = "ask the pool"  # one query through each pool, as a client's
    RESUME = "resume"  # if the pools can log in; and ask them
    LET_GO = "let go"  # resume whatever the pools can


@dataclass(frozen=True)
class Reading:
    """What is known now. `probe` and `pool` are answers that came since the last reading."""

    now: float  # seconds of any clock that never goes back
    alarm: Alarm = Alarm.NONE
    probe: Answer = Answer.NOT_ASKED
    pool: Answer = Answer.NOT_ASKED
    is_paused: bool = False  # at least one process is
    is_all_paused: bool = False
    is_busy: bool = False  # clients have run transactions since the last look
    clients_waiting: int = 0
    servers: int = 0  # connections of the pools that are logged in
    has_stale_servers: bool = False  # some are at an address that the database's name no longer has


@dataclass(frozen=True)
class Decision:
    """What to do now, and how long the next reading may wait after that when nothing happens."""

    actions: frozenset[Action] = frozenset()
    wait_seconds: float = 0.0


@dataclass(frozen=True)
class DatabaseState:
    """The memory between two readings. `probe` and `pool` are the answers to the doubt at hand."""

    must_be_writable: bool = True
    probe_seconds: float = 0.2
    check_seconds: float = 2.0  # how long writes may fail on a server that has silently turned read-only
    phase: Phase = Phase.SERVING
    probe: Answer = Answer.NOT_ASKED
    pool: Answer = Answer.NOT_ASKED
    last_probe: float = float("-inf")
    refused_since: float | None = None
    failed_returns: int = 0

    def is_good(self, answer: Answer) -> bool:
        """Whether clients can work with a server that answers so."""
        return answer is Answer.WRITABLE or (answer is Answer.READ_ONLY and not self.must_be_writable)

    def is_read_only(self, answer: Answer) -> bool:
        """Whether the answer comes from a server that must not get the clients."""
        return answer is Answer.READ_ONLY and self.must_be_writable


Step = tuple[DatabaseState, Decision]


def step(state: DatabaseState, reading: Reading) -> Step:
    """Return the state after `reading` and what to do about it."""
    if reading.probe is not Answer.NOT_ASKED:
        state = replace(state, last_probe=reading.now)
    match state.phase:
        case Phase.SERVING:
            return _serving(state, reading)
        case Phase.DOUBTED:
            return _doubted(state, reading)
        case Phase.AWAY:
            return _away(state, reading)
        case Phase.RETURNING:
            return _returning(state, reading)
        case Phase.OPEN:
            return _open(state, reading)


def pauses_at_once(state: DatabaseState, alarm: Alarm) -> bool:
    """Whether an alarm decides alone, before anybody looks at the pools: each millisecond is clients' errors."""
    return alarm is Alarm.AWAY and state.phase in (Phase.SERVING, Phase.DOUBTED)


def _serving(state: DatabaseState, reading: Reading) -> Step:
    # Paused by an agent before us: as good a reason to look as an alarm.
    if reading.is_paused or reading.alarm is Alarm.AWAY:
        return _go_away(state)
    if reading.alarm is Alarm.DOUBT and not reading.servers:
        return _go_away(state)  # without a server connection there is nothing that a PAUSE could cost
    if state.is_read_only(reading.pool):
        return _go_away(state, Action.RECONNECT)
    if reading.alarm is Alarm.DOUBT or not (reading.pool is Answer.NOT_ASKED or state.is_good(reading.pool)):
        doubted = replace(state, phase=Phase.DOUBTED, probe=Answer.NOT_ASKED, pool=reading.pool)
        return _doubted(doubted, replace(reading, alarm=Alarm.NONE))
    if reading.pool is not Answer.NOT_ASKED or not reading.is_busy:
        return _at(state, Phase.SERVING)
    reconnect = (Action.RECONNECT,) if reading.has_stale_servers else ()
    return _at(state, Phase.SERVING, Action.ASK_POOL, *reconnect, wait_seconds=0.0)


def _doubted(state: DatabaseState, reading: Reading) -> Step:
    probe = state.probe if reading.probe is Answer.NOT_ASKED else reading.probe
    pool = state.pool if reading.pool is Answer.NOT_ASKED else reading.pool
    state = replace(state, probe=probe, pool=pool)
    if reading.alarm is Alarm.AWAY or probe is Answer.AWAY:
        return _go_away(state)
    if state.is_read_only(pool):
        return _go_away(state, Action.RECONNECT)
    if probe is Answer.NOT_ASKED:
        return _at(state, Phase.DOUBTED, Action.PROBE, wait_seconds=0.0)
    if probe is Answer.REFUSED or state.is_good(probe) or state.is_good(pool):
        return _at(state, Phase.SERVING)
    # No new login came about, or one at a read-only server. Those that are in may be served all the same.
    if pool is Answer.NOT_ASKED and reading.servers:
        return _at(state, Phase.DOUBTED, Action.ASK_POOL, wait_seconds=0.0)
    return _go_away(state)


def _away(state: DatabaseState, reading: Reading) -> Step:
    pause = () if reading.is_all_paused else (Action.PAUSE,)  # a process that has just started is not
    if state.is_good(reading.probe):
        # What still runs was begun before: it may end where it is, but no new work may go there.
        leftover = (Action.RECONNECT,) if reading.servers else ()
        return _at(replace(state, refused_since=None), Phase.RETURNING, Action.RESUME, *leftover, wait_seconds=0.0)
    if reading.probe is Answer.NOT_ASKED:
        since_probe = reading.now - state.last_probe
        if reading.clients_waiting or since_probe >= UNWATCHED_PROBE_SECONDS:
            return _at(state, Phase.AWAY, Action.PROBE, *pause, wait_seconds=0.0)
        return _at(state, Phase.AWAY, *pause, wait_seconds=state.probe_seconds)
    refused_since = None
    if reading.probe is Answer.REFUSED:
        refused_since = reading.now if state.refused_since is None else state.refused_since
        if reading.now - refused_since >= REFUSED_SECONDS:
            return _at(state, Phase.OPEN, Action.LET_GO)
    return _at(replace(state, refused_since=refused_since), Phase.AWAY, *pause, wait_seconds=state.probe_seconds)


def _returning(state: DatabaseState, reading: Reading) -> Step:
    if state.is_read_only(reading.pool):
        return _go_away(state, Action.RECONNECT)
    if reading.pool in (Answer.AWAY, Answer.REFUSED):
        state = replace(state, failed_returns=state.failed_returns + 1)
        if state.failed_returns >= MOST_FAILED_RETURNS:
            return _at(state, Phase.OPEN, Action.LET_GO)
        return _go_away(state)
    if reading.is_paused:  # a console hung
        return _at(state, Phase.RETURNING, Action.RESUME, wait_seconds=state.probe_seconds)
    # It answered well, or not yet: our question waits behind the clients that were there first.
    return _at(replace(state, failed_returns=0), Phase.SERVING)


def _open(state: DatabaseState, reading: Reading) -> Step:
    state = replace(state, failed_returns=0, refused_since=None)
    if reading.is_paused:
        return _at(state, Phase.OPEN, Action.LET_GO, wait_seconds=state.probe_seconds)
    if reading.probe in (Answer.AWAY, Answer.SILENT):
        return _go_away(state)
    if state.is_read_only(reading.pool):
        return _go_away(state, Action.RECONNECT)
    if state.is_good(reading.pool):
        return _at(state, Phase.SERVING)
    is_wanted = reading.is_busy or reading.clients_waiting or reading.alarm is not Alarm.NONE
    if reading.probe is Answer.NOT_ASKED and is_wanted:
        return _at(state, Phase.OPEN, Action.PROBE, Action.ASK_POOL, wait_seconds=0.0)
    return _at(state, Phase.OPEN)


def _go_away(state: DatabaseState, *more: Action) -> Step:
    state = replace(state, probe=Answer.NOT_ASKED, pool=Answer.NOT_ASKED, refused_since=None)
    return _at(state, Phase.AWAY, Action.PAUSE, Action.PROBE, *more, wait_seconds=0.0)


def _at(state: DatabaseState, phase: Phase, *actions: Action, wait_seconds: float | None = None) -> Step:
    wait = state.check_seconds if wait_seconds is None else wait_seconds
    return replace(state, phase=phase), Decision(frozenset(actions), wait)
