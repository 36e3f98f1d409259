"""Child processes end with us, whatever ends us, and step down from root."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from emberpool_local.host.children import run_child, start_child
from emberpool_local.host.server_user import server_user
from emberpool_local.host.waiting import wait_until

from ..processes import is_running

SLEEPER = ["sleep", "600"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has root to drop")
# Starts a child as the server user (when root), prints its pid, and waits to be killed.
PARENT = """
import sys, time
from pathlib import Path
from emberpool_local.host.children import start_child
from emberpool_local.host.server_user import server_user
child = start_child(["sleep", "600"], log_path=Path(sys.argv[1]), as_user=server_user())
print(child.pid, flush=True)
time.sleep(600)
"""


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the parent ends its child, even one that dropped root on its way."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child_pid = int(parent.stdout.readline())
    try:
        assert is_running(child_pid)
        parent.kill()
        parent.wait()
        wait_until("the child outlived its parent", lambda: not is_running(child_pid))
    finally:
        parent.stdout.close()
        parent.kill()
        with suppress(ProcessLookupError):
            os.kill(child_pid, signal.SIGKILL)


def test_children_outlive_the_thread_that_asked_for_them(tmp_path: Path) -> None:
    """A child started from a thread keeps running when that thread ends."""
    children = []

    def start() -> None:
        child = start_child(SLEEPER, log_path=tmp_path / "log")
        children.append(child)
        # Until it has become `sleep`, setpriv may not have set the death signal that this test is about.
        wait_until("the child did not become `sleep`", lambda: command_of(child.pid) == "sleep")

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    (child,) = children
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            child.process.wait(0.2)
    finally:
        child.kill()


def test_child_that_ignores_the_signal_is_killed_with_its_session(tmp_path: Path) -> None:
    """stop() ends a child that ignores SIGTERM, and what it has started."""
    log = tmp_path / "log"
    script = "trap '' TERM; sleep 600 & echo $!; wait; wait"
    child = start_child(["sh", "-c", script], log_path=log)
    wait_until("the child did not start its own", lambda: log.exists() and log.read_text().endswith("\n"))
    grandchild = int(log.read_text())
    assert child.stop(signal.SIGTERM, wait_seconds=0.2) == -signal.SIGKILL
    wait_until("the grandchild outlived its session", lambda: not is_running(grandchild))


def test_stop_returns_the_exit_code_of_a_child_that_ends_by_itself(tmp_path: Path) -> None:
    """A child that handles its signal is not killed."""
    log = tmp_path / "log"
    child = start_child(["sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"], log_path=log)
    wait_until("the child did not start", lambda: log.exists() and "ready" in log.read_text())
    assert child.stop() == 7
    assert child.stop() == 7, "stopping twice changes nothing"


@needs_root
def test_child_of_root_has_no_privilege_left(tmp_path: Path) -> None:
    """as_user leaves neither root's user and groups nor any capability."""
    log = tmp_path / "log"
    user = server_user()
    assert user is not None
    assert run_child(["cat", "/proc/self/status"], log_path=log, as_user=user) == 0
    status = dict(line.split(":", 1) for line in log.read_text().splitlines() if ":" in line)
    entry = pwd.getpwnam(user)
    assert set(status["Uid"].split()) == {str(entry.pw_uid)}
    assert set(status["Gid"].split()) == {str(entry.pw_gid)}
    assert status["Groups"].split() == []
    assert int(status["CapEff"], 16) == 0
    assert int(status["CapPrm"], 16) == 0


def test_command_that_does_not_end_is_killed(tmp_path: Path) -> None:
    """run_child() raises at its deadline and leaves nothing running."""
    with pytest.raises(TimeoutError, match=r"sleep did not end within 0\.2 s"):
        run_child(SLEEPER, log_path=tmp_path / "log", timeout_seconds=0.2)
