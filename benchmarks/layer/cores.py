"""Keeps the measured process and the servers off each other's core, where the machine has more than one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Cores:
    """The core of what is measured, and those of the servers. Threads and children inherit their starter's."""

    measured: frozenset[int]
    servers: frozenset[int]

    @classmethod
    def chosen(cls) -> Cores:
        """Take the core that is busy least now for what is measured, the others for the servers."""
        cores = os.sched_getaffinity(0)
        before = _busy_ticks()
        time.sleep(LOOK_SECONDS)
        after = _busy_ticks()
        quietest = min(cores, key=lambda core: after[core] - before[core])
        return cls(frozenset({quietest}), frozenset(cores - {quietest} or cores))

    def together(self) -> Cores:
        """Return the same with the servers on the core of what is measured: nobody waits for a core to wake up."""
        return Cores(self.measured, self.measured)

    def text(self) -> str:
        if self.measured == self.servers:
            return f"measured and the servers together on core {_names(self.measured)}"
        return f"measured on core {_names(self.measured)}, the servers on {_names(self.servers)}"


@contextmanager
def on(cores: frozenset[int]) -> Iterator[None]:
    """Run this process, and what it starts meanwhile, on these cores.

    All of its threads: children are started by a thread of their own, which would keep the cores it was born with.
    """
    before = os.sched_getaffinity(0)
    _place_threads(cores)
    try:
        yield
    finally:
        _place_threads(before)


def confirm(cores: frozenset[int]) -> None:
    """Ask the kernel where the servers run, before anything is said of it. Raises RuntimeError if it is elsewhere."""
    for pid in _descendants(os.getpid()):
        with suppress(ProcessLookupError):
            allowed = os.sched_getaffinity(pid)
            if allowed != cores:
                raise RuntimeError(f"the server {pid} runs on cores {_names(frozenset(allowed))}, not {_names(cores)}")


def _place_threads(cores: Iterable[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def _descendants(pid: int) -> Iterator[int]:
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, children.read_text().split()):
                yield child
                yield from _descendants(child)


def _names(cores: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(cores)))


def _busy_ticks() -> dict[int, int]:
    busy = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            ticks = list(map(int, fields))
            busy[int(name[3:])] = sum(ticks[:8]) - ticks[3] - ticks[4]  # without idle and iowait
    return busy
