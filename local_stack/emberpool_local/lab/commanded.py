"""A child process of the lab's own that is told what to do: JSON lines in, one JSON line back for each.

It ends with its input, so whatever ends the lab ends it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

STOP_SECONDS = 10.0


class CommandedProcess:
    """`python -m MODULE ARGUMENTS`: with CommandedProcess("...") as process; the constructor starts nothing.

    `launcher` is a node's. tell() raises RuntimeError when the process has ended.
    """

    def __init__(self, module: str, arguments: Sequence[str] = (), launcher: Sequence[str] = ()) -> None:
        self._name = module.rpartition(".")[2]
        self._command = [*launcher, sys.executable, "-m", module, *arguments]
        self._process: subprocess.Popen[str] | None = None
        # One answer belongs to one question: threads of the lab must not read each other's.
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._running.pid

    def open(self) -> None:
        """Start it."""
        # Ctrl-C goes to the whole group of the terminal: this one ends when the lab has put everything in order.
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def tell(self, *command: object) -> Any:
        """Tell it a command; return its answer."""
        with self._lock:
            streams = self._running
            if streams.stdin is None or streams.stdout is None:
                raise RuntimeError(f"the {self._name} has no pipes")
            try:
                streams.stdin.write(json.dumps(command) + "\n")
                streams.stdin.flush()
                answer = streams.stdout.readline()
            except BrokenPipeError:
                answer = ""
            if not answer:
                raise RuntimeError(f"the {self._name} has ended while the lab was told {command!r}")
            kind, value = json.loads(answer)
            if kind == "failed":
                raise OSError(*value)
            return value

    def close(self) -> None:
        """End its input and wait for its end."""
        process, self._process = self._process, None
        if process is None:
            return
        for stream in filter(None, (process.stdin, process.stdout)):
            stream.close()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise RuntimeError(f"the {self._name} is not open")
        return self._process


def answer(value: object) -> None:
    """Answer the command that was read last: the other end of tell()."""
    _say("done", value)


def refuse(error: OSError) -> None:
    """Raise `error` where the command was told."""
    _say("failed", [error.errno, error.strerror or str(error)])


def _say(kind: str, value: object) -> None:
    sys.stdout.write(json.dumps([kind, value]) + "\n")
    sys.stdout.flush()
