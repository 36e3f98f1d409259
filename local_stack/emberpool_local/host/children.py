"""Child processes that never outlive us: started through `setpriv --pdeathsig`, stopped with a bounded wait.

The kernel sends the death signal when the *thread* that started the child ends, so every child is started by one
thread (one in each network namespace that we enter) that lives as long as this process. It also forgets the death
signal when credentials change; setpriv sets it after it has dropped root, so it holds for servers that run as another
user too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from emberpool_local.errors import SystemPackagesMissing
from emberpool_local.host.server_user import step_down

# We may have died between the fork and setpriv's call; then nobody would send the signal. "$0" is our pid.
STILL_OUR_CHILD = '[ "$PPID" = "$0" ] && exec "$@"'
LAST_LOG_LINES = 15
NETWORK_NAMESPACE = Path("/proc/thread-self/ns/net")

_Start = Callable[[], "subprocess.Popen[bytes]"]
_Requests = SimpleQueue[tuple[_Start, "Future[subprocess.Popen[bytes]]"]]


@dataclass(frozen=True)
class Child:
    """A running child process and the file that it writes its output to."""

    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def pid(self) -> int:
        """The process id of the program itself (setpriv has become it)."""
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended yet."""
        return self.process.poll() is None

    def stop(self, stop_signal: signal.Signals = signal.SIGTERM, wait_seconds: float = 10.0) -> int:
        """Send `stop_signal`, after `wait_seconds` SIGKILL to all of its session; return the exit code."""
        self.process.send_signal(stop_signal)
        try:
            return self.process.wait(wait_seconds)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL the process and what it started in its session; return the exit code."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()

    def last_log_lines(self, count: int = LAST_LOG_LINES) -> str:
        """Return the last lines of the child's output, for an error message."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-count:])


def start_child(
    command: Sequence[str | Path],
    *,
    log_path: Path,
    environment: Mapping[str, str] | None = None,
    working_folder: Path = Path("/"),
    as_user: str | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
) -> Child:
    """Start `command` in a session of its own, its output appended to `log_path`.

    `death_signal` reaches it when this process ends, whatever ended it. `as_user` drops root for that user.
    Safe to call from any thread. Raises SystemPackagesMissing without setpriv.
    """
    full_command = _bound_to_us(command, as_user, death_signal)

    def start() -> subprocess.Popen[bytes]:
        with log_path.open("ab") as log:
            return subprocess.Popen(
                full_command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=working_folder,
                start_new_session=True,
            )

    return Child(_SPAWNER.run(start), log_path)


def run_child(
    command: Sequence[str | Path],
    *,
    log_path: Path,
    environment: Mapping[str, str] | None = None,
    working_folder: Path = Path("/"),
    as_user: str | None = None,
    timeout_seconds: float = 60.0,
) -> int:
    """Run `command` to its end as start_child() does and return its exit code.

    It is killed, and TimeoutError raised, after `timeout_seconds`.
    """
    child = start_child(
        command, log_path=log_path, environment=environment, working_folder=working_folder, as_user=as_user
    )
    try:
        return child.process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{command[0]} did not end within {timeout_seconds:g} s") from None
    finally:
        if child.is_running:
            child.kill()


def _bound_to_us(command: Sequence[str | Path], as_user: str | None, death_signal: signal.Signals) -> list[str]:
    setpriv = shutil.which("setpriv", path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin")
    if setpriv is None:
        raise SystemPackagesMissing(
            "The program setpriv is missing: emberpool starts its servers with it, so that none is left behind",
            "Install util-linux, for example: sudo apt-get install -y util-linux",
        )
    drop_root = [] if as_user is None else step_down(as_user)
    still_ours = ["/bin/sh", "-c", STILL_OUR_CHILD, str(os.getpid())]
    return [
        setpriv,
        *drop_root,
        f"--pdeathsig={death_signal.name.removeprefix('SIG')}",
        "--",
        *still_ours,
        *map(str, command),
    ]


class _Spawner:
    """The one thread that starts children. It is a daemon and never returns, so it ends with the process only."""

    def __init__(self) -> None:
        # Two threads that start their first child at once must not start two spawner threads.
        self._lock = threading.Lock()
        self._requests: dict[tuple[int, int], _Requests] = {}

    def run(self, start: _Start) -> subprocess.Popen[bytes]:
        # A forked copy of this process has no threads but its own, and a child is born into the network namespace of
        # the thread that starts it.
        here = os.getpid(), NETWORK_NAMESPACE.stat().st_ino
        with self._lock:
            if here not in self._requests:
                self._requests[here] = SimpleQueue()
                threading.Thread(target=self._serve, args=(self._requests[here],), daemon=True).start()
            requests = self._requests[here]
        started: Future[subprocess.Popen[bytes]] = Future()
        requests.put((start, started))
        return started.result()

    @staticmethod
    def _serve(requests: _Requests) -> None:
        while True:
            start, started = requests.get()
            try:
                started.set_result(start())
            except BaseException as error:  # noqa: BLE001 (it is raised again in the thread that asked)
                started.set_exception(error)


_SPAWNER = _Spawner()
