"""The faults of a run, one after the other: which comes next, when the fleet is well enough for it, and doing it.

Each fault has its own source of chance, made of the seed, its place in the run and its name: what it does must not
depend on how long the ones before took.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import psycopg

from emberpool_local.errors import LocalStackError
from emberpool_local.lab.faults import Fault
from emberpool_local.lab.load import Load
from emberpool_local.lab.rig import Rig
from emberpool_local.lab.throughput import BACK_SHARE, BASELINE_SECONDS, WINDOW_SECONDS

LOOK_SECONDS = 0.05
TAKES_FROM_THE_LOAD = ("environments-frozen", "silent-drop", "cold-start-burst")  # there is less of it meanwhile
PAUSE_SECONDS = (1.0, 2.0)  # between two faults, once the fleet is well
SETTLE_SECONDS = 10.0
POSSIBLE_SECONDS = 45.0  # until the database has forgotten a task that vanished
# A fault that does not come to its end is broken off; the longest are a rolling deployment and a new standby.
LONGEST_FAULT_SECONDS = 120.0


@dataclass(frozen=True)
class Happened:
    """A fault that was done, on the clock of time.monotonic(); `error` says why the rig did not become whole again."""

    fault: Fault
    subject: str
    begun: float
    ended: float  # when its healing began
    healed: float
    error: str | None = None

    @property
    def lasts(self) -> bool:
        """Whether there is a time between its beginning and its end, and with it an end to come back from."""
        return self.fault.lasts_seconds[1] > 0 or self.fault.name in TAKES_FROM_THE_LOAD


@dataclass
class FaultSequence:
    """Does faults to the rig while the load runs; `happened` and `left_out` tell of them."""

    rig: Rig
    load: Load
    faults: Mapping[str, Fault]
    seed: int
    tell: Callable[[str], None]
    happened: list[Happened] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)  # the fault's name, why

    async def each(self, names: Sequence[str]) -> None:
        """Do these faults in this order; leave out what this rig cannot do."""
        for name in names:
            fault = self.faults[name]
            reason = self.why_never(fault) or await self._why_not_now(fault)
            if reason:
                self.left_out.append((name, reason))
                self.tell(f"{name} is left out: {reason}")
            elif not await self._do(fault):
                return

    async def at_random(self, seconds: float) -> None:
        """Do faults until so many seconds have passed: all that are possible in an order of chance, then again."""
        end = time.monotonic() + seconds
        chance = Random(f"{self.seed} order")  # noqa: S311 (a reproducible run)
        possible = [fault for fault in self.faults.values() if not self.why_never(fault)]
        order: list[Fault] = []
        while time.monotonic() < end:
            order = order or _weighted_order(possible, chance)
            fault = next((one for one in order if one.is_possible(self.rig)), None)
            if fault is None:
                order = []
                await asyncio.sleep(LOOK_SECONDS)
                continue
            order.remove(fault)
            if not await self._do(fault):
                return

    def why_never(self, fault: Fault) -> str | None:
        """Return why this rig cannot do the fault; None when it can."""
        if fault.needs_namespaces and self.rig.network.kind != "namespaces":
            return "it needs network namespaces, that is root and /dev/net/tun"
        return None

    async def _why_not_now(self, fault: Fault) -> str | None:
        end = time.monotonic() + POSSIBLE_SECONDS
        while not fault.is_possible(self.rig):
            if time.monotonic() > end:
                return "the rig does not have what it needs"
            await asyncio.sleep(LOOK_SECONDS)
        return None

    async def _do(self, fault: Fault) -> bool:
        """Do one fault and wait until the fleet is well; return False when the rig did not become whole again."""
        chance = Random(f"{self.seed} fault {len(self.happened)} {fault.name}")  # noqa: S311 (a reproducible run)
        usual = self._rate(BASELINE_SECONDS)
        self.rig.note(f"{fault.name} begins")
        begun, ended, subject, error = time.monotonic(), 0.0, "", None
        try:
            async with asyncio.timeout(LONGEST_FAULT_SECONDS):
                async with fault.happen(self.rig, chance) as subject:
                    await asyncio.sleep(chance.uniform(*fault.lasts_seconds))
                    ended = time.monotonic()
        except (LocalStackError, TimeoutError, OSError, RuntimeError, psycopg.Error) as failure:
            error = str(failure).splitlines()[0] if str(failure) else f"it took more than {LONGEST_FAULT_SECONDS:g} s"
            self.rig.note(f"{fault.name}: {failure}")
        healed = time.monotonic()
        done = Happened(fault, subject, begun, ended or healed, healed, error)
        self.happened.append(done)
        await self._settle(done, usual)
        self._tell_of(done)
        await asyncio.sleep(chance.uniform(*PAUSE_SECONDS))
        return error is None

    async def _settle(self, done: Happened, usual: float) -> None:
        """Return when it may hit nothing any more and the throughput is back, or SETTLE_SECONDS have passed."""
        await asyncio.sleep(done.ended + (done.fault.may_fail_seconds or 0.0) + WINDOW_SECONDS - time.monotonic())
        end = time.monotonic() + SETTLE_SECONDS
        while self._rate(WINDOW_SECONDS) < BACK_SHARE * usual and time.monotonic() < end:  # noqa: ASYNC110 (a count)
            await asyncio.sleep(LOOK_SECONDS)

    def _rate(self, seconds: float) -> float:
        """Return the invocations a second that succeeded lately."""
        since, count = time.monotonic() - seconds, 0
        for invocation in reversed(self.load.invocations):
            if invocation.ended < since:
                break
            count += invocation.kind == "succeeded"
        return count / seconds

    def _tell_of(self, done: Happened) -> None:
        since = [one for one in self.load.invocations if one.ended >= done.begun]
        failed, unknown = (sum(one.kind == kind for one in since) for kind in ("failed", "unknown"))
        begin = self.load.invocations[0].begun if self.load.invocations else done.begun
        came = "" if done.error is None else f"; the rig did not become whole again: {done.error}"
        self.tell(
            f"{done.begun - begin:6.1f} s  {done.fault.name:<26} {done.healed - done.begun:5.1f} s  {done.subject}: "
            f"{failed} failed, {unknown} unknown of {len(since)}{came}"
        )


def _weighted_order(faults: Sequence[Fault], chance: Random) -> list[Fault]:
    """Return the faults in an order of chance, the heavier sooner; light ones may be left out for once."""
    drawn = [(chance.random(), chance.random() ** (1 / fault.weight), fault) for fault in faults]
    kept = [(key, fault) for share, key, fault in drawn if share < fault.weight]
    return [fault for _, fault in sorted(kept, key=lambda one: one[0], reverse=True)]
