"""Counts the fleet's backends in the database a hundred times a second, in a process of its own.

Whatever else runs in the process that asks for it would make it late. It asks over one connection of a superuser, which
takes none of the budget's, to each server that it is told of, and writes a line of JSON for each sample. It tells the
tasks apart by their addresses. While a server does not answer there is no sample of it.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import psycopg

SAMPLES_PER_SECOND = 100
LOOKS_PER_LOCKS = 5  # reading pg_locks holds up whoever wants a lock
LOOKS_PER_TRANSFERS = 10
LATE_SECONDS = 0.02  # a sample that came later than this after its time is said
SHOWN_AROUND = 12  # samples of the time line before and after one that is above the budget
NOTES_BEFORE_SECONDS, NOTES_AFTER_SECONDS = 20.0, 1.0
TRY_AGAIN_SECONDS = 0.05
CONNECT_SECONDS = 2
FIRST_SAMPLE_SECONDS, END_SECONDS = 10.0, 15.0
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
# The comment is that of lab/handlers/transfers.py.
TRANSFERS = r"""
    select array_agg(number order by number) filter (where number is not null) from (
        select substring(query from '/\* transfer (\d+) \*/')::bigint as number
        from pg_stat_activity where usename = %s and state = 'active'
    ) as running
"""


def slot_class(budget_name: str) -> int:
    """Return the class of the slots' locks: as documented, not by the code that is tested."""
    return int.from_bytes(hashlib.sha256(f"emberpool:{budget_name}".encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class Sample:
    """One look, on the clock of time.monotonic(); counts by the tasks' addresses.

    `transfers` are the numbers of those whose statement runs, looked up in every tenth sample and empty in the others.
    """

    at: float
    late_seconds: float
    pool: Mapping[str, int]
    agents: Mapping[str, int]
    slots: Mapping[str, int]
    server: str = ""
    transfers: Sequence[int] = ()

    @property
    def connections(self) -> int:
        """All of the fleet's, the agents' too."""
        return sum(self.pool.values()) + sum(self.agents.values())

    def line(self, since: float) -> str:
        """Return one line of the time line: address: pool connections + agents' of slots."""
        tasks = " ".join(map(self._task, sorted({*self.pool, *self.agents, *self.slots})))
        late = f"  ({self.late_seconds * 1000:.0f} ms late)" if self.late_seconds > LATE_SECONDS else ""
        return f"{self.at - since:8.3f} {self.connections:3d} | {self.server and f'{self.server}: '}{tasks}{late}"

    def _task(self, task: str) -> str:
        pool, agents, slots = (counts.get(task, 0) for counts in (self.pool, self.agents, self.slots))
        return f".{task.rsplit('.', 1)[1]}: {pool}+{agents} of {slots}"


@dataclass
class BackendSampler:
    """Samples while its context is open; `samples` are there after it.

    `conninfo` is the first server's, of a superuser; add_server() tells of others.
    """

    conninfo: str = field(repr=False)
    role: str
    budget_name: str
    path: Path
    samples: list[Sample] = field(default_factory=list, repr=False)
    server: str = ""
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            # -P: the modules beside this one are not to be taken for those of the standard library.
            [sys.executable, "-P", __file__, self.role, self.budget_name, str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.add_server(self.server, self.conninfo)
        said = _pipe(self._process.stdout).readline()
        if said != "sampling\n":
            raise RuntimeError(f"the sampler did not reach {self.server or 'the database'}")
        return self

    def add_server(self, name: str, conninfo: str) -> None:
        """Sample one more server, as soon as it answers and whenever it does."""
        pipe = _pipe(self._process and self._process.stdin)
        pipe.write(json.dumps([name, conninfo]) + "\n")  # not in the command line: it has the password
        pipe.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process:
            _pipe(self._process.stdin).close()  # it ends with its input
            self._process.wait(END_SECONDS)
            _pipe(self._process.stdout).close()
        self.samples = self.read()

    def read(self) -> list[Sample]:
        """Return what was sampled until now."""
        lines = self.path.read_text().split("\n")[:-1]  # the last one may be half written
        return [Sample(**json.loads(line)) for line in lines]

    def time_line(self, around: float, notes: Sequence[tuple[float, str]] = ()) -> str:
        """Return the samples around a moment, with what was done to the fleet in between."""
        return time_line(self.samples, around, notes)

    def above(self, budget: int) -> list[Sample]:
        """Return the samples with more connections than the budget has."""
        return above(self.samples, budget)

    def above_slots(self, floor: int, slots: int) -> list[Sample]:
        """Return the samples with more pool connections than the slots and the floors of those tasks that have any."""
        return above_slots(self.samples, floor, slots)

    def summary(self) -> str:
        """Say how many samples there are, how many came late, and the greatest count."""
        return summary(self.samples)


def above(samples: Sequence[Sample], budget: int) -> list[Sample]:
    """Return the samples with more connections than the budget has."""
    return [sample for sample in samples if sample.connections > budget]


def above_slots(samples: Sequence[Sample], floor: int, slots: int) -> list[Sample]:
    """Return the samples with more pool connections than the slots and the floors of those tasks that have any.

    Stricter than above(): what idle tasks and the agents leave unused of the budget would hide a few too many.
    """
    return [sample for sample in samples if sum(sample.pool.values()) > floor * len(sample.pool) + slots]


def summary(samples: Sequence[Sample]) -> str:
    """Say how many samples there are, how many came late, and the greatest count."""
    late = [sample.late_seconds for sample in samples if sample.late_seconds > LATE_SECONDS]
    seconds = samples[-1].at - samples[0].at
    most = max(samples, key=lambda sample: sample.connections)
    return (
        f"{len(samples)} samples in {seconds:.1f} s, {len(late)} late "
        f"(at most {max(late, default=0) * 1000:.0f} ms); at most {most.connections} connections: "
        f"{most.line(samples[0].at)}"
    )


def time_line(
    samples: Sequence[Sample], around: float, notes: Sequence[tuple[float, str]] = (), begin: float | None = None
) -> str:
    """Return the samples around a moment, with the notes in between; times are since `begin`, or the first sample."""
    begin = samples[0].at if begin is None else begin
    near = sorted(samples, key=lambda sample: abs(sample.at - around))[: 2 * SHOWN_AROUND + 1]
    first, last = around - NOTES_BEFORE_SECONDS, max((one.at for one in near), default=around) + NOTES_AFTER_SECONDS
    lines = [(sample.at, sample.line(begin)) for sample in near]
    lines += [(at, f"{at - begin:8.3f}     * {note}") for at, note in notes if first < at < last]
    return "\n".join(line for _, line in sorted(lines))


def _pipe(pipe: Any) -> TextIO:
    if pipe is None:
        raise RuntimeError("the sampler is not open")
    opened: TextIO = pipe
    return opened


@dataclass
class _Program:
    """The sampler's process: a thread for each server, all writing to one file."""

    role: str
    slot_class: int
    out: TextIO
    is_over: threading.Event = field(default_factory=threading.Event)
    is_sampling: threading.Event = field(default_factory=threading.Event)

    def watch(self, server: str, conninfo: str) -> None:
        """Sample the server whenever it answers."""
        while not self.is_over.is_set():
            with (
                suppress(psycopg.Error),
                psycopg.connect(conninfo, autocommit=True, connect_timeout=CONNECT_SECONDS) as connection,
            ):
                self.sample(server, connection)
            self.is_over.wait(TRY_AGAIN_SECONDS)

    def sample(self, server: str, connection: psycopg.Connection[Any]) -> None:
        """Sample until the end, or until the connection is lost."""
        slots: dict[str, int] = {}
        due, number = time.monotonic(), 0
        while not self.is_over.wait(max(0.0, due - time.monotonic())):
            late = time.monotonic() - due
            if number % LOOKS_PER_LOCKS == 0:
                slots = dict(connection.execute(SLOTS, [self.slot_class], prepare=True).fetchall())
            rows = connection.execute(BACKENDS, [self.role], prepare=True).fetchall()
            pool, agents = ({task: count for task, *counts in rows if (count := counts[one])} for one in (0, 1))
            at = time.monotonic()
            transfers: Sequence[int] = ()
            if number % LOOKS_PER_TRANSFERS == 0:
                row = connection.execute(TRANSFERS, [self.role], prepare=True).fetchone()
                transfers = (row and row[0]) or ()
            sample = Sample(at, late, pool, agents, slots, server, transfers)
            self.out.write(json.dumps(vars(sample)) + "\n")
            self.is_sampling.set()
            number += 1
            due = max(due + 1 / SAMPLES_PER_SECOND, time.monotonic())


def _serve(role: str, budget_name: str, path: str) -> None:
    with Path(path).open("w", buffering=1) as out:
        program = _Program(role, slot_class(budget_name), out)
        threads: list[threading.Thread] = []
        while line := sys.stdin.readline():
            threads.append(threading.Thread(target=program.watch, args=json.loads(line)))
            threads[-1].start()
            if len(threads) == 1:
                # Nothing is to be done to the fleet before.
                sys.stdout.write("sampling\n" if program.is_sampling.wait(FIRST_SAMPLE_SECONDS) else "\n")
                sys.stdout.flush()
        program.is_over.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve(*sys.argv[1:])
