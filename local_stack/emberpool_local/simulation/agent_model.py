"""The agent of a simulated task: the loop of agent/budget.py around the real decide.step, with a delay at each call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING

from emberpool_local.simulation.clock import Delays, Process
from emberpool_local.simulation.coordination_model import ConnectionLost, Coordination
from emberpool_local.simulation.database import ControlSession, DatabaseAway
from emberpool_local.simulation.timing import draw
from emberpool_proxy.agent.budget_reading import PoolKey, PoolUse, Reading
from emberpool_proxy.agent.decide import Decision, State

if TYPE_CHECKING:
    from emberpool_local.simulation.task import Task

Step = Callable[[State, Reading], tuple[State, Decision]]
QUIET_SECONDS = 0.02  # between two steps, however often something calls for one


class Agent:
    """One agent process. `inherited` is the control session of an agent before it, kept by the supervisor."""

    def __init__(self, task: Task, inherited: ControlSession | None) -> None:
        self._task = task
        self._state: State | None = None
        self._is_woken = False
        self._is_waiting = False
        self._losses = 0
        self.is_taking_over = inherited is not None
        self.steps = 0
        self.coordination = Coordination(task, inherited, self._lost)
        self._loop = Process(task.clock, self._run())

    def wake(self) -> None:
        """Have the next step taken now."""
        self._is_woken = True
        if self._is_waiting and not self._loop.is_over:
            self._is_waiting = False
            self._loop.wake()

    def end(self) -> None:
        """Die, as SIGKILL does."""
        self._loop.end()
        self.coordination.end()

    def _lost(self) -> None:
        """Lower the limits at once: somebody else may take the slots from now on."""
        self._losses += 1
        pools = self._task.pools
        share = max(1, (self._task.terms.floor - (len(pools) - 1)) // len(pools))
        for pool in pools.values():
            pool.set_limit(min(pool.limit, share), shrinks=pool.shrinks)
        self.wake()

    def _run(self) -> Delays:
        with contextlib.suppress(ConnectionLost, DatabaseAway):  # its loop tries again
            yield from self.coordination.open()
        self.is_taking_over = False
        while True:
            self._is_woken = False
            wait_seconds = yield from self._step()
            yield QUIET_SECONDS
            if not self._is_woken:
                self._is_waiting = True
                yield max(wait_seconds - QUIET_SECONDS, 0.0)
                self._is_waiting = False

    def _step(self) -> Generator[float, None, float]:
        task, coordination = self._task, self.coordination
        pools = yield from self._read()
        yield draw(task.random, task.timing.slow_step if task.is_slow else task.timing.step_delay)
        now = task.clock.now
        reading = Reading(
            now=now,
            pools=pools,
            held=coordination.held,
            lingering=sum(number for until, number in task.dead_pgbouncers.values() if until > now),
            is_connected=coordination.session is not None,
            is_draining=task.is_draining,
            fleet=coordination.fleet,
            taken_now=coordination.last_taken(),
            is_anybody_hungry=coordination.last_hunger(),
        )
        if self._state is None:
            self._state = State(replace(task.terms, pools=len(task.pools)), seed=task.random.getrandbits(32))
        self.steps += 1
        self._state, decision = task.step(self._state, reading)
        if not reading.held <= coordination.held:
            return 0.0  # the connection was lost meanwhile: what was decided is no longer true
        yield from self._apply(decision)
        coordination.begin(decision)
        return decision.wait_seconds

    def _read(self) -> Generator[float, None, dict[PoolKey, PoolUse]]:
        task = self._task
        uses: dict[PoolKey, PoolUse] = {}
        for process in range(task.shape.processes):
            yield draw(task.random, task.timing.console)
            until, _ = task.dead_pgbouncers.get(process, (0.0, 0))
            for key, pool in task.pools.items():
                if key.process == process and pool.is_running:
                    uses[key] = pool.use(is_settling=until > task.clock.now)
        return uses

    def _apply(self, decision: Decision) -> Delays:
        """Put the limits in force, process by process; a loss meanwhile has lowered them, and must not be undone."""
        task, losses = self._task, self._losses
        for process in range(task.shape.processes):
            pools = {key: task.pools[key] for key in decision.limits if key.process == process}
            changes = any(
                pool.limit != decision.limits[key] or pool.shrinks != (key in decision.shrink)
                for key, pool in pools.items()
            )
            if not changes:
                continue
            yield draw(task.random, task.timing.reload)
            if self._losses != losses:
                return
            for key, pool in pools.items():
                if pool.is_running:
                    pool.set_limit(decision.limits[key], shrinks=key in decision.shrink)
