"""The tasks' ways to the database: a TCP relay in a process of its own, so that one task can be cut off.

Each task has a port of its own, and the database sees its connections come from the task's address. A partition is
what the database makes of a silent network: nothing arrives any more, no FIN either, and its keepalives end the pool's
connections first and the control connection later.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"
CONTROL_CONNECTION = b"emberpool-agent"  # in the startup message, as application_name


@dataclass
class DatabaseLinks:
    """The relay as a test sees it; tasks are known by their addresses."""

    database_port: int
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self.database_port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.stdin.close()  # it ends with its input
        self.process.wait(10)
        self.process.stdout.close()

    def open(self, task: str) -> int:
        """Return the port on 127.0.0.1 at which this task reaches the database."""
        return self._tell("open", task)

    def cut(self, task: str) -> None:
        """Reset the task's connections, both sides; new ones get through."""
        self._tell("cut", task)

    def partition(self, task: str, pool_seconds: float, control_seconds: float) -> None:
        """Let nothing through until `heal`; after so many seconds the database's side of the connections is closed."""
        self._tell("partition", task, pool_seconds, control_seconds)

    def heal(self, task: str) -> None:
        """Let everything through again; connections that the database has closed meanwhile are reset."""
        self._tell("heal", task)

    def _tell(self, *command: object) -> Any:
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class _End(asyncio.Protocol):
    """One side of a connection; what it reads goes to `other`."""

    def __init__(self, link: _Link) -> None:
        self.link = link
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self.early = bytearray()  # before the database has answered the connection
        self.is_control = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early += data
        elif self.other.transport:
            self.other.transport.write(data)
        if CONTROL_CONNECTION in data:
            self.is_control = True

    def connection_lost(self, error: Exception | None) -> None:
        self.link.ends.discard(self)
        if self.other and self.other.transport and not self.link.is_down:
            self.other.transport.abort() if error else self.other.transport.close()

    def hold(self) -> None:
        if self.transport and not self.transport.is_closing():
            self.transport.pause_reading()

    def let_go(self) -> None:
        if self.transport and not self.transport.is_closing():
            self.transport.resume_reading()


class _Link:
    """One task's connections."""

    def __init__(self, task: str, database_port: int) -> None:
        self.task = task
        self.database_port = database_port
        self.is_down = False
        self.ends: set[_End] = set()  # those of the task
        self.dialling: set[asyncio.Task[None]] = set()
        self.timers: list[asyncio.TimerHandle] = []

    def accept(self) -> asyncio.Protocol:
        end = _End(self)
        self.ends.add(end)
        dialling = asyncio.ensure_future(self.dial(end))
        self.dialling.add(dialling)
        dialling.add_done_callback(self.dialling.discard)
        return end

    async def dial(self, end: _End) -> None:
        if self.is_down:
            return  # what it sends is never read
        there = _End(self)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: there, HOST, self.database_port, local_addr=(self.task, 0)
            )
        except OSError:
            end.transport.abort()
            return
        end.other, there.other = there, end
        there.transport.write(bytes(end.early))
        if end.transport.is_closing():
            there.transport.abort()
        elif self.is_down:
            end.hold()
            there.hold()

    def cut(self) -> None:
        for end in list(self.ends):
            _abort(end)
            _abort(end.other)

    def partition(self, pool_seconds: float, control_seconds: float) -> None:
        self.is_down = True
        for end in self.ends:
            for side in filter(None, (end, end.other)):
                side.hold()
        loop = asyncio.get_running_loop()
        self.timers = [
            loop.call_later(pool_seconds, self.end_at_the_database, False),
            loop.call_later(control_seconds, self.end_at_the_database, True),
        ]

    def end_at_the_database(self, is_control: bool) -> None:
        for end in self.ends:
            if end.is_control == is_control:
                _abort(end.other)

    def heal(self) -> None:
        self.is_down = False
        for timer in self.timers:
            timer.cancel()
        for end in list(self.ends):
            if end.other is None or end.other.transport.is_closing():
                _abort(end)
            else:
                end.let_go()
                end.other.let_go()


def _abort(end: _End | None) -> None:
    if end and end.transport:
        end.transport.abort()


async def _serve(database_port: int) -> None:
    loop = asyncio.get_running_loop()
    links: dict[str, _Link] = {}
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        answer: object = None
        match json.loads(line):
            case ["open", task]:
                links[task] = _Link(task, database_port)
                server = await loop.create_server(links[task].accept, HOST, 0, backlog=128)
                answer = server.sockets[0].getsockname()[1]
            case ["cut", task]:
                links[task].cut()
            case ["partition", task, pool_seconds, control_seconds]:
                links[task].partition(pool_seconds, control_seconds)
            case ["heal", task]:
                links[task].heal()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_serve(int(sys.argv[1])))
