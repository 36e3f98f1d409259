"""`emberpool chaos` from end to end: the real command in a process of its own, as a user runs it."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from emberpool_local.errors import PromiseBroken
from emberpool_local.lab.command import conclude
from emberpool_local.lab.faults import FAULTS
from emberpool_local.lab.runner import Finished

from .made_up_run import made_up_run
from .test_oracles import run_that_holds

logger = logging.getLogger(__name__)

SECONDS = float(os.environ.get("EMBERPOOL_CHAOS_SECONDS", "12"))
# The same faults each time, so that a change is judged and not the dice; `make chaos` draws others.
SEED = int(os.environ.get("EMBERPOOL_CHAOS_SEED", "1"))
SMALL = ("--environments", "8", "--tasks", "2")
BOUND_SECONDS = 150
LAST_CHARACTERS = 6000
PASSWORD = re.compile(rb"PASSWORD=([^\0]+)")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "emberpool_local", "chaos", *words]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=folder, capture_output=True, text=True, timeout=BOUND_SECONDS, check=False
    )


def told(done: subprocess.CompletedProcess[str]) -> str:
    return f"{done.stderr[-LAST_CHARACTERS:]}\n{done.stdout[-LAST_CHARACTERS:]}"


@pytest.mark.timeout(SECONDS + 180)
def test_every_promise_holds_under_faults_of_chance(tmp_path: Path) -> None:
    """A short run: faults happen, work is done, no oracle finds anything, a page is written."""
    logger.info("EMBERPOOL_CHAOS_SEED=%d", SEED)
    done = run(tmp_path, "--seed", str(SEED), "--seconds", f"{SECONDS:g}", "--json", "run.json", *SMALL)
    assert done.returncode == 0, told(done)
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["holds"], told(done)
    assert result["seed"] == SEED
    assert result["command"] in done.stderr
    assert result["faults"], told(done)
    assert len(result["verdicts"]) == 9
    assert result["succeeded"] > 100
    assert max(sum(one["pool"].values()) for one in result["connections"]) > 2
    assert sum(bucket["succeeded"] for bucket in result["buckets"]) == pytest.approx(result["succeeded"], abs=20)
    assert "emberpool-chaos.html" in done.stdout
    assert result["command"] in (tmp_path / "emberpool-chaos.html").read_text()


def test_run_without_root_leaves_out_what_needs_packets_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    """On loopback it says what cannot be done and goes on with the rest; after Ctrl-C nothing of it is left."""
    faults = ("packet-loss", "pgbouncer-killed", "network-delay")
    words = [word for name in faults for word in ("--fault", name)]
    with started(tmp_path, "--network", "loopback", *words, *SMALL) as process:
        wait_for_line(process, "packet-loss is left out: it needs network namespaces")
        wait_for_line(process, "pgbouncer-killed  ")
        ends_and_leaves_nothing(process, signal.SIGINT, 130)


def test_nothing_is_left_behind_when_it_is_killed(tmp_path: Path) -> None:
    """After SIGKILL none of its processes runs, and no mount of its is seen."""
    with started(tmp_path, "--fault", "network-delay", *SMALL) as process:
        wait_for_line(process, "the faults begin")
        ends_and_leaves_nothing(process, signal.SIGKILL, -signal.SIGKILL)
    assert "emberpool-lab" not in Path("/proc/mounts").read_text()


def ends_and_leaves_nothing(process: subprocess.Popen[str], ending: signal.Signals, code: int) -> None:
    children = descendants(process.pid)
    assert len(children) > 20
    passwords = {word for pid in children for word in PASSWORD.findall(environment(pid)) if len(word) > 12}
    assert not [pid for pid in children if any(word in command_line(pid) for word in passwords)]
    process.send_signal(ending)
    assert process.wait(60) == code
    wait_until_gone(children)


def test_unknown_fault_is_answered_with_the_list(tmp_path: Path) -> None:
    """One clear message, no stack trace, exit code 1; nothing is started."""
    done = run(tmp_path, "--fault", "earthquake")
    assert done.returncode == 1
    assert "there is no fault earthquake" in done.stderr
    assert all(name in done.stderr.replace("\n", "") for name in FAULTS)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--tasks", "9"), "--tasks"),
        (("--seconds", "nan"), "no time"),
        (("--environments", "0"), "--environments"),
        (("--json", "nowhere/run.json"), "--json"),
        (("--page", "nowhere/page.html"), "--page"),
    ],
)
def test_option_that_makes_no_sense_is_refused_at_once(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    """What is wrong is named before anything is started."""
    done = run(tmp_path, *words)
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_faults_are_listed_with_their_promises(tmp_path: Path) -> None:
    """`--list` has every fault that the lab knows."""
    done = run(tmp_path, "--list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines() if line.split()[:1] and line[0] != " "][1:] == list(
        FAULTS
    )


def test_violation_ends_with_the_seed_the_command_and_the_time_line() -> None:
    """Whoever reads the last lines can run the same again; the exit code is that of an error."""
    made = made_up_run(violated=["failures"])
    shown = StringIO()
    with pytest.raises(PromiseBroken) as raised:
        conclude(Finished(made, run_that_holds(), ()), json_file=None, page=None, console=Console(file=shown))
    assert str(made.seed) in raised.value.problem
    assert made.command in raised.value.next_step
    assert "violated failures" in shown.getvalue()


# --- processes


@contextmanager
def started(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(*words), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def wait_for_line(process: subprocess.Popen[str], part: str) -> None:
    seen = ""
    for line in process.stderr:
        seen += line
        if part in line:
            return
    raise AssertionError(seen)


def descendants(pid: int) -> list[int]:
    """All processes below this one, as of now."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def wait_until_gone(pids: list[int], within_seconds: float = 30.0) -> None:
    end = time.monotonic() + within_seconds
    while left := [pid for pid in pids if command_line(pid)]:
        assert time.monotonic() < end, {pid: command_line(pid) for pid in left}
        time.sleep(0.05)


def command_line(pid: int) -> bytes:
    """Empty for one that has ended."""
    return _read(f"/proc/{pid}/cmdline")


def environment(pid: int) -> bytes:
    return _read(f"/proc/{pid}/environ")


def _read(path: str) -> Any:
    with suppress(OSError):
        return Path(path).read_bytes()
    return b""
