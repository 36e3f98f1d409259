"""What a pool in the way costs once it is at work: bare PgBouncer and emberpool's task in turns of a quarter second.

Each has its own pgbench with all its clients logged in, and all but one of them are stopped (SIGSTOP) at any moment. So
the moods of a shared machine, which in a block of seconds are greater than what is looked for, meet both alike, and
neither logins nor the opening of connections count.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from benchmarks.command import Progress
from benchmarks.proxy.contenders import BARE, OURS, POOL_SIZE, Contender, running_bare_pgbouncer, running_emberpool
from benchmarks.proxy.overhead import MOST_BARE_CLIENTS, SCALE, SPARE_CONNECTIONS
from benchmarks.proxy.overhead_figures import clients_text
from benchmarks.proxy.pgbench import FAILURE, LOGIN_SECONDS, REPORT, REPORT_SECONDS, pgbench_path, started
from benchmarks.proxy.secured_database import running_secured_database

from emberpool_local.pgbouncer.program import PgbouncerProgram

TURN_SECONDS = 0.25
IN_FLIGHT_SECONDS = 0.02  # what was under way when the clients were stopped is answered, and its CPU counts
LONGEST_SECONDS = 3 * 3600  # pgbench's own end, which is never reached
# A statement each, and the least of them: no row is locked by a client that is stopped.
WORKLOAD = ("--builtin=select-only", "--protocol=simple")


@dataclass(frozen=True)
class Steady:
    """One way in one repetition: transactions a second of its own turns, and the CPU of one in the proxy, in us."""

    transactions_per_second: float
    proxy_cpu_us: float


Found = dict[int, dict[str, list[Steady]]]  # by the number of clients and the way, repetition by repetition


@dataclass
class _Load:
    """A pgbench that can be stopped and go on, and what it has reported."""

    process: subprocess.Popen[str]
    transactions: float = 0.0
    failure: str = ""
    _news: threading.Event = field(init=False, default_factory=threading.Event)
    _reader: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for_report(self, seconds: float) -> None:
        """Wait for the next report of transactions. Raises RuntimeError when a client fails or none comes."""
        if not self._news.wait(seconds):
            raise RuntimeError(f"pgbench reported nothing for {seconds:g} s")
        if self.failure:
            raise RuntimeError(self.failure)

    def go_on(self) -> None:
        """Let the clients go on: the next report is one of now."""
        self._news.clear()
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop all clients where they are, and wait for it: the next one's turn begins then."""
        self.process.send_signal(signal.SIGSTOP)
        with suppress(ChildProcessError):  # it has ended: wait_for_report says why
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def end(self) -> None:
        """End the process, wherever it is."""
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def _read(self) -> None:
        reported_at = 0.0
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if FAILURE.search(line):
                self.failure = self.failure or f"pgbench: {line.strip()}"
            elif report := REPORT.search(line):
                at, rate = float(report[1]), float(report[2])
                self.transactions += rate * (at - reported_at)
                reported_at = at
            if self.failure or self.transactions:
                self._news.set()
        self.failure = self.failure or "pgbench ended"
        self._news.set()


def measure(
    program: PgbouncerProgram, client_counts: Sequence[int], repetitions: int, seconds: int, progress: Progress
) -> Found:
    """Measure each number of clients, each way for so many seconds. Raises RuntimeError when a client fails."""
    found: Found = {clients: {OURS: [], BARE: []} for clients in client_counts}
    with running_secured_database(2 * POOL_SIZE + SPARE_CONNECTIONS) as database:
        pgbench = pgbench_path(database.postgres.program)
        database.fill(SCALE)
        with (
            running_bare_pgbouncer(database, program, {"max_client_conn": str(MOST_BARE_CLIENTS)}) as bare,
            running_emberpool(database, program) as ours,
        ):
            for repetition in range(1, repetitions + 1):
                for clients in client_counts:
                    progress(f"steady {repetition} of {repetitions}: {clients_text(clients)} on each of two")
                    for name, steady in in_turns(pgbench, (bare.contender(), ours), clients, seconds).items():
                        found[clients][name].append(steady)
    return found


def in_turns(pgbench: str, ways: Sequence[Contender], clients: int, seconds: float) -> dict[str, Steady]:
    """Return what each way did in so many seconds of its own. Raises RuntimeError when a client fails."""
    cpu = dict.fromkeys((way.name for way in ways), 0.0)
    at_work = dict(cpu)
    with ExitStack() as stack:
        loads = {way.name: stack.enter_context(_logged_in(pgbench, way, clients)) for way in ways}
        before = {name: load.transactions for name, load in loads.items()}
        for _ in range(round(seconds / TURN_SECONDS)):
            for way in random.sample(ways, len(ways)):
                with _turn(loads[way.name], way, at_work, cpu):
                    time.sleep(TURN_SECONDS)
        time.sleep(REPORT_SECONDS)  # stopped: a report is due as soon as it goes on
        for way in ways:
            with _turn(loads[way.name], way, at_work, cpu):
                loads[way.name].wait_for_report(LOGIN_SECONDS)
        counts = {name: load.transactions - before[name] for name, load in loads.items()}
    return {name: Steady(counts[name] / at_work[name], cpu[name] / counts[name] * 1e6) for name in counts}


@contextmanager
def _logged_in(pgbench: str, way: Contender, clients: int) -> Iterator[_Load]:
    """Run a pgbench that is stopped after its first report of transactions."""
    with started(pgbench, way.environment(), clients, LONGEST_SECONDS, WORKLOAD) as process:
        load = _Load(process)
        try:
            load.wait_for_report(LOGIN_SECONDS)
            load.stop()
            yield load
        finally:
            load.end()


@contextmanager
def _turn(load: _Load, way: Contender, at_work: dict[str, float], cpu: dict[str, float]) -> Iterator[None]:
    used, began = way.cpu_seconds(), time.monotonic()
    load.go_on()
    yield
    load.stop()
    at_work[way.name] += time.monotonic() - began
    time.sleep(IN_FLIGHT_SECONDS)
    cpu[way.name] += way.cpu_seconds() - used
