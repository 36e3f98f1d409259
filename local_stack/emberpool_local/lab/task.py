"""One task of the lab: the real proxy at a node of its own, and what can be seen of it and done to its processes."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from emberpool_local.host.waiting import wait_until
from emberpool_local.lab.clock import ShiftedClock
from emberpool_local.lab.network import Node
from emberpool_local.proxy import LocalProxy

ANSWER_SECONDS = 5.0
END_SECONDS = 30.0
# The tasks are on this machine: an HTTP proxy that the environment names must not be asked.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class LabTask:
    """A task of the pool; `proxy` is open from Rig.add() on."""

    def __init__(self, node: Node, proxy: LocalProxy, run_folder: Path, clock: ShiftedClock | None = None) -> None:
        self.node = node
        self.proxy = proxy
        self.run_folder = run_folder  # a tmpfs of its own in namespaces
        self.clock = clock
        self.crashes: list[float] = []  # that were made of its processes, on the clock of time.monotonic()

    def __repr__(self) -> str:
        """Show the address that everybody knows it by."""
        return f"LabTask({self.host})"

    @property
    def host(self) -> str:
        """The task's address, by which the database and the other tasks know it."""
        return self.node.address

    @property
    def target(self) -> tuple[str, int, int]:
        """How the balancer knows the task: its address, client port and health port."""
        return self.host, self.proxy.port, self.proxy.health_port

    # --- its processes

    @property
    def supervisor_pid(self) -> int:
        """The process id of the task's first process."""
        return self.proxy.child.pid

    @property
    def is_running(self) -> bool:
        """Whether its first process has not ended."""
        return self.proxy.child.is_running

    def agent_pid(self) -> int:
        """Return the agent's process id, 0 while there is none."""
        return next((pid for pid in self.children() if b"\0agent\0" in command_line(pid)), 0)

    def pgbouncer_pids(self) -> tuple[int, ...]:
        """Return the process ids of its PgBouncers."""
        return tuple(pid for pid in self.children() if b"pgbouncer" in command_line(pid).split(b"\0")[0])

    def answered_pids(self) -> set[int]:
        """Return the process ids of every PgBouncer of it that ever answered the agent."""
        return {line["pid"] for line in self.log_lines() if line.get("message") == "pgbouncer answers"}

    def children(self) -> tuple[int, ...]:
        """Return the process ids of the supervisor's children that run; none once it has ended."""
        pid = self.supervisor_pid
        try:
            found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            return ()
        return tuple(pid for pid in map(int, found) if is_process(pid))

    def kill(self) -> None:
        """SIGKILL all of its processes at once, as the end of a machine does; return when they have ended."""
        children = self.children()
        for pid in (self.supervisor_pid, *children):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.proxy.child.kill()
        for pid in children:
            wait_until(f"process {pid} of {self.host} did not end", lambda pid=pid: not is_process(pid), END_SECONDS)  # type: ignore[misc]

    def crash(self, *pids: int) -> None:
        """SIGKILL some of its processes, and remember that: a supervisor bears only so many crashes in a minute."""
        self.crashes.append(time.monotonic())
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def terminate(self) -> None:
        """Send the stop signal, as ECS does."""
        self.proxy.child.process.send_signal(signal.SIGTERM)

    # --- what it says

    def is_ready(self) -> bool:
        """Whether `/readyz` answers 200."""
        return self._get("/readyz") is not None

    def document(self, path: str = "/status") -> dict[str, Any]:
        """Return what the health port answers at `path`; empty when it does not answer."""
        body = self._get(path)
        found: dict[str, Any] = json.loads(body) if body else {}
        return found

    def metric(self, name: str) -> float | None:
        """Return a metric of /metrics by the beginning of its line, None when there is none."""
        for line in (self._get("/metrics") or b"").decode().splitlines():
            if line.startswith(name):
                return float(line.rsplit(" ", 1)[1])
        return None

    def _get(self, path: str) -> bytes | None:
        try:
            with _DIRECT.open(self.proxy.status_url + path, timeout=ANSWER_SECONDS) as answer:
                body: bytes = answer.read()
                return body
        except (urllib.error.URLError, OSError):
            return None

    # --- its files

    def log_lines(self) -> list[dict[str, Any]]:
        """Return what it has logged, one document a line."""
        text = self.proxy.log_path.read_text(errors="replace") if self.proxy.log_path.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


def command_line(pid: int) -> bytes:
    """Return a process's command line, its words ended by NUL; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def is_process(pid: int) -> bool:
    """Whether there is such a process that has not ended; one that nobody has collected yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
