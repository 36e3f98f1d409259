"""Real processes: one `python -m awslambdaric` for an environment, as AWS starts it.

Owns starting and signalling. An environment dies with us: the kernel kills it when the thread that started it
ends, whatever ended us.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from emberpool_local.errors import SystemPackagesMissing
from emberpool_local.lambda_runtime.variables import Function, function_variables

# A script of its own: in the process that forks environments, and in one that forks workers that shall die with it.
TEMPLATE = Path(__file__).with_name("fork_template.py")


@dataclass(frozen=True)
class RunningProcess:
    """A process that leads a session of its own; `exited` gets its exit code, negative for a signal."""

    pid: int
    exited: asyncio.Future[int]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children; nothing happens when it has ended."""
        if self.exited.done():
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            # Just forked: it does not lead its group yet, so it has no children either.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM to the process alone, as Lambda does; nothing happens when it has ended.

        To its main thread: just thawed, any other might take the signal, and Python would not wake the main one.
        """
        if not self.exited.done():
            _terminate(self.pid)

    def terminate_workers(self) -> None:
        """Send SIGTERM to the processes that it forked; it ends when all of them have.

        AWS's runtime emulator sends it to the whole group. The process that waits for them would end by it at once,
        and with it the environment here.
        """
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # before the opening, or before the reading
            for worker in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                _terminate(int(worker))

    def end_children(self) -> None:
        """Kill what the process started and left in its group. Only once it has ended, and at once then."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def _terminate(pid: int) -> None:
    ctypes.CDLL(None).tgkill(pid, pid, signal.SIGTERM)


# Starts a process with the given additional variables and the given file descriptor as its output.
Start = Callable[[Mapping[str, str], int], Awaitable[RunningProcess]]


def dying_with_us(arguments: list[str], death_signal: str = "KILL") -> list[str]:
    """Return a command line that gets `death_signal` when the thread that starts it ends.

    Raises SystemPackagesMissing when the machine has no `setpriv`.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise SystemPackagesMissing(
            "the program setpriv is missing: without it processes would outlive the local stack",
            "install the package util-linux, for example: apt-get install util-linux",
        )
    return [setpriv, "--pdeathsig", death_signal, "--", *arguments]


def process_starter(function: Function) -> Start:
    """Return what starts a real process for an environment of the function."""
    client = (
        ["-P", str(TEMPLATE), function.handler] if function.takes_several else ["-m", "awslambdaric", function.handler]
    )
    arguments = dying_with_us([sys.executable, *client])

    async def start(variables: Mapping[str, str], output: int) -> RunningProcess:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            cwd=function.code_folder,
            env={**function_variables(function), **variables},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        return RunningProcess(process.pid, asyncio.ensure_future(process.wait()))

    return start
