"""The library that moves the clock on the wall for some programs, and for nothing else."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from emberpool_local.host.temp_folder import TempFolder
from emberpool_local.lab.clock import ShiftedClock, clock_library
from emberpool_local.pgbouncer.program import PgbouncerProgram

HOUR = 3600
TWO_CLOCKS = """
import time
while True:
    input()
    print(time.time(), time.monotonic())
"""


@pytest.fixture
def clock() -> Iterator[ShiftedClock]:
    """A clock for programs of the test; there is a C compiler where PgBouncer could be built."""
    library = clock_library()
    assert library is not None
    with TempFolder("clock") as folder:
        yield ShiftedClock(library, folder)


def test_only_the_clock_on_the_wall_is_moved(clock: ShiftedClock) -> None:
    """Of a running program time() jumps at once, both ways, and monotonic() goes on; the test's own clock stays."""
    with subprocess.Popen(
        [sys.executable, "-u", "-c", TWO_CLOCKS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=clock.environment(),
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        for seconds in (0, HOUR, -HOUR, 0):
            clock.shift(seconds)
            assert clock.seconds == seconds
            program.stdin.write("\n")
            program.stdin.flush()
            wall, monotonic = map(float, program.stdout.readline().split())
            assert abs(wall - time.time() - seconds) < HOUR / 2
            assert abs(monotonic - time.monotonic()) < HOUR / 2
        program.kill()


def test_pgbouncer_gets_the_clock_without_a_variable(clock: ShiftedClock, pgbouncer_program: PgbouncerProgram) -> None:
    """The program that a task is given is PgBouncer, whatever its environment is, and it has the clock."""
    program = clock.pgbouncer_program(pgbouncer_program)
    asked = subprocess.run([program.path, "--version"], env={}, capture_output=True, text=True, check=True)
    assert ".".join(map(str, pgbouncer_program.version)) in asked.stdout
    assert all(value in program.path.read_text() for value in clock.environment().values())


def test_machine_without_a_compiler_has_no_clock_to_move(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then there is no library, and a line that says why; the lab leaves the fault out."""
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.setattr("emberpool_local.lab.clock.program_cache_folder", lambda: empty)
    monkeypatch.setenv("PATH", str(empty))
    said: list[str] = []
    assert clock_library(said.append) is None
    assert "no C compiler" in said[0]
