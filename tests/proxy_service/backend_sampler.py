"""Counts the fleet's backends in the database a hundred times a second, in a process of its own.

Whatever else runs in the test's process would make it late. It asks over one connection of a superuser, which takes
none of the budget's, and writes a line of JSON for each sample. It tells the tasks apart by their addresses.
"""

from __future__ import annotations

import hashlib
import json
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

SAMPLES_PER_SECOND = 100
LOOKS_PER_LOCKS = 5  # reading pg_locks holds up whoever wants a lock
LATE_SECONDS = 0.02  # a sample that came later than this after its time is said
SHOWN_AROUND = 12  # samples of the time line before and after one that is above the budget
BACKENDS = """
    select host(client_addr), count(*) filter (where not is_agents), count(*) filter (where is_agents)
    from (
        select client_addr, application_name ~ '^emberpool-(agent .*|probe|credentials)$' as is_agents
        from pg_stat_activity where usename = %s and client_addr is not null
    ) as backends group by 1
"""
SLOTS = """
    select host(client_addr), count(*) from pg_locks join pg_stat_activity using (pid)
    where locktype = 'advisory' and classid = %s::bigint::oid and objsubid = 2 and mode = 'ExclusiveLock'
    and granted group by 1
"""


def slot_class(budget_name: str) -> int:
    """Return the class of the slots' locks: as documented, not by the code that is tested."""
    return int.from_bytes(hashlib.sha256(f"emberpool:{budget_name}".encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class Sample:
    """One look, on the clock of time.monotonic(); counts by the tasks' addresses."""

    at: float
    late_seconds: float
    pool: dict[str, int]
    agents: dict[str, int]
    slots: dict[str, int]

    @property
    def connections(self) -> int:
        return sum(self.pool.values()) + sum(self.agents.values())

    def line(self, since: float) -> str:
        """One line of the time line: address: pool connections + agents' of slots."""
        tasks = " ".join(map(self._task, sorted({*self.pool, *self.agents, *self.slots})))
        late = f"  ({self.late_seconds * 1000:.0f} ms late)" if self.late_seconds > LATE_SECONDS else ""
        return f"{self.at - since:8.3f} {self.connections:3d} | {tasks}{late}"

    def _task(self, task: str) -> str:
        pool, agents, slots = (counts.get(task, 0) for counts in (self.pool, self.agents, self.slots))
        return f".{task.rsplit('.', 1)[1]}: {pool}+{agents} of {slots}"


@dataclass
class BackendSampler:
    """Samples while its context is open; `samples` are there after it."""

    conninfo: str = field(repr=False)
    role: str
    budget_name: str
    path: Path
    samples: list[Sample] = field(default_factory=list, repr=False)
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, __file__, self.role, self.budget_name, str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.process.stdin.write(self.conninfo + "\n")  # not in the command line: it has the password
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "sampling\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.stdin.close()  # it ends with its input
        self.process.wait(10)
        self.process.stdout.close()
        self.samples = self.read()

    def read(self) -> list[Sample]:
        """Return what was sampled until now."""
        lines = self.path.read_text().split("\n")[:-1]  # the last one may be half written
        return [Sample(**json.loads(line)) for line in lines]

    def time_line(self, around: float, notes: list[tuple[float, str]] = []) -> str:  # noqa: B006 (only read)
        """Return the samples around a moment, with what was done to the fleet in between."""
        begin = self.samples[0].at
        near = sorted(self.samples, key=lambda sample: abs(sample.at - around))[: 2 * SHOWN_AROUND + 1]
        lines = [(sample.at, sample.line(begin)) for sample in near]
        lines += [(at, f"{at - begin:8.3f}     * {note}") for at, note in notes if around - 20 < at < near[-1].at + 1]
        return "\n".join(line for _, line in sorted(lines))

    def above(self, budget: int) -> list[Sample]:
        """Return the samples with more connections than the budget has."""
        return [sample for sample in self.samples if sample.connections > budget]

    def above_slots(self, floor: int, slots: int) -> list[Sample]:
        """Return the samples with more pool connections than the slots and the floors of those tasks that have any.

        Stricter than `above`: what idle tasks and the agents leave unused of the budget would hide a few too many.
        """
        return [sample for sample in self.samples if sum(sample.pool.values()) > floor * len(sample.pool) + slots]

    def summary(self) -> str:
        """Say how many samples there are, how many came late, and the greatest count."""
        late = [sample.late_seconds for sample in self.samples if sample.late_seconds > LATE_SECONDS]
        seconds = self.samples[-1].at - self.samples[0].at
        most = max(self.samples, key=lambda sample: sample.connections)
        return (
            f"{len(self.samples)} samples in {seconds:.1f} s, {len(late)} late "
            f"(at most {max(late, default=0) * 1000:.0f} ms); at most {most.connections} connections: "
            f"{most.line(self.samples[0].at)}"
        )


def _sample(role: str, budget_name: str, path: str) -> None:
    conninfo, wanted = sys.stdin.readline().strip(), slot_class(budget_name)
    with psycopg.connect(conninfo, autocommit=True) as connection, Path(path).open("w", buffering=1) as out:
        sys.stdout.write("sampling\n")
        sys.stdout.flush()
        slots: dict[str, int] = {}
        due, number = time.monotonic(), 0
        while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
            late = time.monotonic() - due
            if number % LOOKS_PER_LOCKS == 0:
                slots = dict(connection.execute(SLOTS, [wanted], prepare=True).fetchall())
            rows = connection.execute(BACKENDS, [role], prepare=True).fetchall()
            pool, agents = ({task: count for task, *counts in rows if (count := counts[one])} for one in (0, 1))
            out.write(json.dumps(vars(Sample(time.monotonic(), late, pool, agents, slots))) + "\n")
            number += 1
            due = max(due + 1 / SAMPLES_PER_SECOND, time.monotonic())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _sample(*sys.argv[1:])
