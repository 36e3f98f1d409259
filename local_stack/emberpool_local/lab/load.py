"""The load: every execution environment runs one transfer after the other, and what came of each is kept.

Each worker has an environment of its own, as a warm function's caller cannot choose, so that all connections are
used. What a worker asks for comes from the run's seed; when it asks depends on how fast the answers are.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

from emberpool_local.lab.ledger import ACCOUNTS, LARGEST_AMOUNT, Transfer
from emberpool_local.lambda_runtime import Environment, Fleet, Outcome

CODE_FOLDER = Path(__file__).with_name("handlers")
HANDLER = "transfers:handler"
FUNCTION_NAME = "transfers"
INVOCATION_SECONDS = 20.0  # the function's timeout

UNKNOWN_OUTCOME = "CommitOutcomeUnknown"  # the layer's error, as the runtime reports it
NUMBERS_OF_A_WORKER = 1_000_000

PAUSE_SECONDS = (0.03, 0.12)  # between two invocations of one environment
SLEEP_SECONDS = (0.01, 0.15)  # of a transaction, in the database
# Some environments die in the middle of a statement that would go on for so long without them.
DOOMED_SHARE = 0.004
DOOMED_SLEEP_SECONDS = 4.0
DOOMED_DIE_AFTER_SECONDS = (0.15, 0.5)

Kind = Literal["succeeded", "failed", "unknown", "killed"]


@dataclass(frozen=True)
class Failure:
    """Why an invocation failed and how far its handler was; `handler_began` is None when its handler did not run."""

    error_type: str
    message: str
    step: str = ""
    handler_began: float | None = None
    failed_at: float | None = None
    is_connection_error: bool = False

    def __str__(self) -> str:
        step = f" ({self.step})" if self.step else ""
        return f"{self.error_type}{step}: {self.message}"


@dataclass(frozen=True)
class Invocation:
    """One invocation, on the clock of time.monotonic(); `killed` means that its environment was, by us."""

    transfer: Transfer
    begun: float
    ended: float
    kind: Kind
    environment: int
    failure: Failure | None = None

    @property
    def duration_ms(self) -> float:
        """As its caller sees it."""
        return (self.ended - self.begun) * 1000


@dataclass
class _Worker:
    """Who invokes one environment time after time."""

    environment: Environment
    chance: Random
    numbers: Iterator[int]
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)
    is_free: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Load:
    """Keeps `environments` environments of the fleet at work while running() is entered.

    `invocations` grow by what has ended. The fleet must have room for `environments` and what burst() adds.
    """

    fleet: Fleet
    seed: int
    environments: int
    pause_seconds: tuple[float, float] = PAUSE_SECONDS
    sleep_seconds: tuple[float, float] = SLEEP_SECONDS
    doomed_share: float = DOOMED_SHARE
    invocations: list[Invocation] = field(default_factory=list, repr=False)
    _is_over: bool = field(default=False, repr=False)
    _workers: list[_Worker] = field(default_factory=list, repr=False)
    _streams: int = field(default=0, repr=False)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the environments and let them work until the context is left; then wait for what is under way."""
        self._workers = [_Worker(one, *self._stream()) for one in await self.fleet.scale_out(self.environments)]
        tasks = [asyncio.create_task(self._work(worker)) for worker in self._workers]
        try:
            yield
        finally:
            self._is_over = True
            for worker in self._workers:
                worker.may_go_on.set()
            await asyncio.gather(*tasks)

    @asynccontextmanager
    async def idle(self, count: int) -> AsyncIterator[Sequence[Environment]]:
        """Begin no invocation in `count` environments while the context is open; entered when they are free.

        They are frozen then, as Lambda does between invocations.
        """
        resting = self._workers[:count]
        for worker in resting:
            worker.may_go_on.clear()
        try:
            for worker in resting:
                await worker.is_free.wait()
            yield [worker.environment for worker in resting]
        finally:
            for worker in resting:
                worker.may_go_on.set()

    async def burst(self, count: int) -> None:
        """Invoke so often at once, each in a new environment, beside what runs; counted like any other."""
        await asyncio.gather(*(self._invoke_cold(*self._stream()) for _ in range(count)))

    def count(self, kind: Kind) -> int:
        """Return how many invocations ended so."""
        return sum(invocation.kind == kind for invocation in self.invocations)

    async def _work(self, worker: _Worker) -> None:
        worker.is_free.set()
        worker.may_go_on.set()
        await asyncio.sleep(worker.chance.uniform(0, sum(self.pause_seconds)))  # not all at once
        while not self._is_over:
            await worker.may_go_on.wait()
            worker.is_free.clear()
            try:
                if worker.environment.has_ended:
                    (worker.environment,) = await self.fleet.scale_out(1)
                await self._invoke(worker.environment, worker.chance, worker.numbers, may_die=True)
            finally:
                worker.is_free.set()
            await asyncio.sleep(worker.chance.uniform(*self.pause_seconds))

    def _stream(self) -> tuple[Random, Iterator[int]]:
        self._streams += 1
        first = self._streams * NUMBERS_OF_A_WORKER
        chance = Random(f"{self.seed} worker {self._streams}")  # noqa: S311 (a reproducible run)
        return chance, iter(range(first, first + NUMBERS_OF_A_WORKER))

    async def _invoke_cold(self, chance: Random, numbers: Iterator[int]) -> None:
        (environment,) = await self.fleet.scale_out(1)
        try:
            await self._invoke(environment, chance, numbers, may_die=False)
        finally:
            await environment.kill()

    async def _invoke(self, environment: Environment, chance: Random, numbers: Iterator[int], may_die: bool) -> None:
        source, target = chance.sample(range(ACCOUNTS), 2)
        transfer = Transfer(next(numbers), source, target, chance.randint(1, LARGEST_AMOUNT))
        # Drawn whether they are needed or not: what comes next must not depend on it.
        sleep_seconds, dies_after = chance.uniform(*self.sleep_seconds), chance.uniform(*DOOMED_DIE_AFTER_SECONDS)
        is_doomed = chance.random() < self.doomed_share and may_die
        event = {**asdict(transfer), "sleep_seconds": DOOMED_SLEEP_SECONDS if is_doomed else sleep_seconds}
        begun = time.monotonic()
        killing = asyncio.create_task(_kill_after(environment, dies_after)) if is_doomed else None
        try:
            outcome = await self.fleet.invoke(json.dumps(event).encode(), environment)
        except RuntimeError:
            return  # it ended between two invocations: nothing was asked
        finally:
            if killing:
                killing.cancel()
        kind = "killed" if is_doomed and outcome.status == "crashed" else kind_of(outcome)
        failure = None if kind == "succeeded" else failure_of(outcome)
        self.invocations.append(Invocation(transfer, begun, time.monotonic(), kind, environment.number, failure))


def kind_of(outcome: Outcome) -> Kind:
    """Say what the caller of the function knows: done, not done, or that nobody knows."""
    if outcome.status == "succeeded":
        return "succeeded"
    return "unknown" if outcome.error_type == UNKNOWN_OUTCOME else "failed"


def failure_of(outcome: Outcome) -> Failure:
    """Put together what the runtime and the handler's own line say of a failure."""
    told = _told(outcome.log)
    return Failure(
        error_type=outcome.error_type or outcome.status,
        message=(outcome.error_message or "").strip(),
        step=str(told.get("step", "")),
        handler_began=told.get("handler_began"),
        failed_at=told.get("failed_at"),
        is_connection_error=bool(told.get("is_connection_error")),
    )


def _told(log: str) -> Mapping[str, Any]:
    for line in log.splitlines():
        with suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict) and "transfer" in told:
                return told
    return {}


async def _kill_after(environment: Environment, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await environment.kill()
