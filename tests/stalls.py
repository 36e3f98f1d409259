"""Runs the tests on a machine that stalls: all of their processes are stopped for a second, again and again.

Which tests fail then have a time limit on what has to come, or the product has. `make stalls`.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

MARK = "EMBERPOOL_STALLS"


def main() -> int:
    """Run pytest with the arguments that are not ours; return its exit code."""
    parser = argparse.ArgumentParser(prog="make stalls", description=__doc__, allow_abbrev=False)
    parser.add_argument("--stall-seed", type=int, default=secrets.randbelow(10_000), help="default: a new one")
    parser.add_argument("--stall-seconds", type=float, nargs=2, default=(0.5, 1.2), metavar=("LEAST", "MOST"))
    parser.add_argument("--stall-pauses", type=float, nargs=2, default=(1.5, 3.5), metavar=("LEAST", "MOST"))
    options, pytest_arguments = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is stopped goes on before we end
    chance = random.Random(options.stall_seed)
    run = secrets.token_hex(8)
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", *pytest_arguments]
    tests = subprocess.Popen(command, env={**os.environ, MARK: run})
    stalls, seconds = 0, 0.0
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                code = tests.wait(chance.uniform(*options.stall_pauses))
                break
            seconds += stall(tests.pid, run, chance.uniform(*options.stall_seconds))
            stalls += 1
    except KeyboardInterrupt:
        code = tests.wait()  # pytest was interrupted as well
    finally:
        tests.terminate()
    print(f"stalled {stalls} times, {seconds:.0f} s in all; --stall-seed {options.stall_seed}")
    return code


def stall(pid: int, run: str, seconds: float) -> float:
    """Stop what belongs to the tests for so many seconds, and return them; what a test itself has stopped stays so."""
    stopped: list[psutil.Process] = []
    try:
        for process in processes_of(pid, run):
            with suppress(psutil.Error):
                if process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                    process.suspend()
                    stopped.append(process)
        time.sleep(seconds)
    finally:
        for process in reversed(stopped):
            with suppress(psutil.Error):
                process.resume()
    return seconds


def processes_of(pid: int, run: str) -> list[psutil.Process]:
    """Return the processes below `pid`, and those that have its mark but another parent by now."""
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(pid).children(recursive=True)
        return below + [
            process for process in psutil.process_iter() if process not in below and is_marked(process, run)
        ]
    return []


def is_marked(process: psutil.Process, run: str) -> bool:
    """Whether the process inherited the mark of this run."""
    with suppress(psutil.Error):
        return process.environ().get(MARK) == run and process.ppid() != os.getpid()
    return False


if __name__ == "__main__":
    sys.exit(main())
