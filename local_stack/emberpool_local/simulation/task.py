"""One task of a simulated fleet: its PgBouncer processes, its agent, and its backends in the database."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from emberpool_local.simulation.agent_model import Agent, Step
from emberpool_local.simulation.clients import Clients
from emberpool_local.simulation.clock import Clock, Delays, Process
from emberpool_local.simulation.database import ControlSession, Database, DatabaseAway
from emberpool_local.simulation.pgbouncer_model import Pool
from emberpool_local.simulation.timing import Span, Timing, draw
from emberpool_proxy.agent.budget_reading import PoolKey
from emberpool_proxy.agent.decide import Terms

DRAIN_LOOK_SECONDS = 0.2
STOP_TIMEOUT_SECONDS = 25.0  # ECS kills a task that has not stopped by then
SESSION_CLOSED_WITHIN_SECONDS = 2.0  # of the partition's end: TCP repeats the FIN


@dataclass(frozen=True)
class Shape:
    """What all tasks of one world have in common."""

    terms: Terms
    processes: int = 1
    entries: int = 1
    think: Span = (0.0, 0.3)


@dataclass(eq=False)
class Task:
    """A task. `transaction_seconds` draws the length of a client's transaction; `on_growth` sees each new backend."""

    number: int
    shape: Shape
    clock: Clock
    random: Random
    timing: Timing
    database: Database
    step: Step
    transaction_seconds: Callable[[], float]
    on_growth: Callable[[Task], None]
    is_alive: bool = True
    is_draining: bool = False
    is_partitioned: bool = False
    is_slow: bool = False
    backends: int = 0  # as the database counts them
    lost_at: float = -1e9  # when the last control session with slots ended under this task
    agent: Agent | None = None
    agent_since: float = 0.0  # infinite while there is none
    pools: dict[PoolKey, Pool] = field(default_factory=dict)
    clients: dict[PoolKey, Clients] = field(default_factory=dict)
    dead_pgbouncers: dict[int, tuple[float, int]] = field(default_factory=dict)  # until when, how many backends
    _kept_session: ControlSession | None = None
    _partitions: int = 0
    _has_timed_out: bool = False  # in this partition, the database has ended the pools' backends
    _abandoned: list[ControlSession] = field(default_factory=list)

    def __post_init__(self) -> None:
        for process in range(self.shape.processes):
            for entry in range(self.shape.entries):
                key = PoolKey(process, f"entry{entry}")
                pool = Pool(self.clock, self.random, self.timing, self, self.transaction_seconds)
                self.pools[key] = pool
                self.clients[key] = Clients(self.clock, self.random, pool, self.shape.think)
        self.agent = Agent(self, None)
        self._probes = Process(self.clock, self._probe())

    # What others see

    @property
    def terms(self) -> Terms:
        """What the agent knows from its settings."""
        return self.shape.terms

    @property
    def servers(self) -> int:
        """Server connections as PgBouncer counts them."""
        return sum(pool.servers for pool in self.pools.values())

    @property
    def steps(self) -> int:
        """Decisions of its last agent."""
        return self.agent.steps if self.agent else 0

    @property
    def demand(self) -> int:
        """Connections that its clients could use now."""
        return sum(pool.busy + len(pool.waiting) for pool in self.pools.values())

    @property
    def waiting(self) -> int:
        """Clients in line."""
        return sum(len(pool.waiting) for pool in self.pools.values())

    @property
    def slots_locked(self) -> int:
        """Slots that the database has locked for it, whatever the task knows of it."""
        return sum([len(one.slots) for one in self.database.sessions_of.get(self.number, ())])

    @property
    def has_session(self) -> bool:
        """Whether the database still has a control connection of it."""
        return bool(self.database.sessions_of.get(self.number))

    @property
    def is_unaware(self) -> bool:
        """Whether its control session has ended, and the agent has not heard of it."""
        session = self.agent.coordination.session if self.agent else None
        return session is not None and not session.is_alive

    @property
    def has_dead_pgbouncer(self) -> bool:
        """Whether backends of a PgBouncer that died may still be there beside those of the next one."""
        return any(until > self.clock.now for until, _ in self.dead_pgbouncers.values())

    @property
    def environments(self) -> int:
        """Environments that its load balancer has sent here."""
        return sum(clients.target for clients in self.clients.values())

    def wake_agent(self) -> None:
        """Have the agent step now."""
        if self.agent:
            self.agent.wake()

    def serve(self, environments: int, *, skew: float = 0.5) -> None:
        """Have so many environments, most of them in one pool if `skew` is far from the equal share."""
        left = environments
        for index, clients in enumerate(self.clients.values()):
            part = left if index == len(self.clients) - 1 else round(left * skew)
            clients.become(part)
            left -= part

    # The pools' way to the database

    def open_backend(self) -> None:
        """Have one more backend; raises DatabaseAway."""
        self.database.open_pool_backend()
        self.backends += 1
        self.on_growth(self)

    def end_backends_in(self, seconds: float, number: int = 1) -> None:
        """Have so many backends gone after that time."""
        self.clock.after(seconds, self._backends_gone, self.database.incarnation, number)

    def _backends_gone(self, incarnation: int, number: int) -> None:
        if incarnation == self.database.incarnation:
            number = min(number, self.backends)  # those behind a partition have all gone at its bound
            self.backends -= number
            self.database.pool_backends -= number

    def database_restarted(self) -> None:
        """Lose all server connections: the database has counted them out."""
        self.backends = 0
        for pool in self.pools.values():
            pool.forget_servers()

    # The control connection's way to the database

    def tell_end(self, session: ControlSession) -> None:
        """Have the agent hear of its session's end, a moment later."""
        self.lost_at = self.clock.now
        if self.agent:
            self.clock.after(draw(self.random, self.timing.lost_notice), self.agent.coordination.heard_end, session)

    def close_session(self, session: ControlSession) -> None:
        """End the session when the database hears of it: after a partition, or by its own keepalives."""
        if self.is_partitioned:
            self._abandoned.append(session)
        else:
            self.clock.after(draw(self.random, self.timing.network), self._end_session, session)

    def _end_session(self, session: ControlSession) -> None:
        self.database.end_session(session, is_told=False)

    # Faults

    def kill_pgbouncer(self, process: int) -> None:
        """Kill one PgBouncer process; the agent starts it again."""
        pools = [pool for key, pool in self.pools.items() if key.process == process]
        if not all(pool.is_running for pool in pools):
            return
        bound = sum(max(pool.limit, pool.servers) for pool in pools)
        self.dead_pgbouncers[process] = (self.clock.now + 2 * self.timing.orphan_check, bound)
        for key, pool in self.pools.items():
            if key.process == process:
                pool.kill()
                self.clients[key].connect_again(within_seconds=0.5)
        self.wake_agent()
        self.clock.after(draw(self.random, self.timing.pgbouncer_restart), self._start_pgbouncer, process)

    def _start_pgbouncer(self, process: int) -> None:
        if not self.is_alive:
            return
        if self.agent is None:
            self.clock.after(0.1, self._start_pgbouncer, process)
            return
        for key, pool in self.pools.items():
            if key.process == process:
                pool.start()
        self.wake_agent()

    def kill_agent(self) -> None:
        """Kill the agent: PgBouncer serves on, the supervisor keeps the locks, a new agent takes over."""
        if self.agent is None:
            return
        coordination = self.agent.coordination
        self._kept_session = coordination.kept_session
        if coordination.session and coordination.session is not self._kept_session:
            self.close_session(coordination.session)  # nobody but this agent had its socket
        self.agent.end()
        self.agent, self.agent_since = None, math.inf
        self.clock.after(draw(self.random, self.timing.agent_restart), self._start_agent)

    def _start_agent(self) -> None:
        if self.is_alive and self.agent is None:
            self.agent, self.agent_since = Agent(self, self._kept_session), self.clock.now

    def cut_control_connection(self) -> None:
        """Have somebody terminate the control connection's backend."""
        for session in tuple(self.database.sessions_of.get(self.number, ())):
            self.database.end_session(session)

    def kill(self) -> None:
        """End with all processes; the kernel tells the database."""
        sessions = self._die()
        for pool in self.pools.values():
            pool.kill()
        for session in sessions:
            self.clock.after(draw(self.random, self.timing.network), self._end_session, session)

    def vanish(self) -> None:
        """End without a word: the database's keepalives find it out."""
        sessions = self._die()
        for pool in self.pools.values():
            pool.is_running = False
            pool.forget_servers()
        self.end_backends_in(self.timing.vanished_pool * draw(self.random, (0.7, 1.0)), self.backends)
        for session in sessions:
            seconds = self.timing.vanished_session * draw(self.random, (0.8, 1.0))
            self.clock.after(seconds, self._end_session, session)

    def _die(self) -> list[ControlSession]:
        self.is_alive = False
        self._probes.end()
        if self.agent:
            self.agent.end()
        self.agent = None
        for clients in self.clients.values():
            clients.become(0)
        return list(self.database.sessions_of.get(self.number, ()))

    def partition(self) -> None:
        """Cut the task off from the database, silently."""
        self._partitions += 1
        self.is_partitioned = True
        self.clock.after(self.timing.vanished_pool, self._pools_time_out, self._partitions)
        self.clock.after(self.timing.vanished_session, self._sessions_time_out, self._partitions)

    def heal(self) -> None:
        """End the partition."""
        if not self.is_partitioned:
            return
        self._partitions += 1
        self.is_partitioned = False
        for session in self._abandoned:
            self.clock.after(draw(self.random, (0.0, SESSION_CLOSED_WITHIN_SECONDS)), self._end_session, session)
        self._abandoned.clear()
        if self._has_timed_out:
            self._has_timed_out = False
            for pool in self.pools.values():
                pool.forget_servers()

    def _pools_time_out(self, partition: int) -> None:
        if partition == self._partitions and self.is_alive:
            self._has_timed_out = True
            self._backends_gone(self.database.incarnation, self.backends)

    def _sessions_time_out(self, partition: int) -> None:
        if partition == self._partitions:
            self.cut_control_connection()

    def stop(self) -> None:
        """Stop as SIGTERM says: drain, then end PgBouncer, then the agent."""
        if self.is_alive and not self.is_draining:
            self.is_draining = True
            for clients in self.clients.values():
                clients.become(0)
            Process(self.clock, self._drain())

    def _drain(self) -> Delays:
        until = self.clock.now + STOP_TIMEOUT_SECONDS
        while self.is_alive and self.clock.now < until:
            yield DRAIN_LOOK_SECONDS
            if not self.demand and not any(clients.present for clients in self.clients.values()):
                break
        if self.is_alive:
            for pool in self.pools.values():
                pool.kill()
            yield DRAIN_LOOK_SECONDS / 2
        if self.is_alive:
            self.kill()

    def _probe(self) -> Delays:
        while True:
            yield draw(self.random, self.timing.probe_every)
            if self.agent is None or self.agent.is_taking_over or self.is_partitioned or not self.servers:
                continue
            try:
                self.database.open_agent_login()
            except DatabaseAway:
                continue
            incarnation = self.database.incarnation
            yield draw(self.random, self.timing.probe)
            if incarnation == self.database.incarnation:
                self.database.agent_logins -= 1
