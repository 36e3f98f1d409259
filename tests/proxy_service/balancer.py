"""A TCP balancer in a process of its own, which behaves as a Network Load Balancer does, only faster.

New connections go to the healthy targets in turn. A target is healthy while its `/readyz` answers 200. One that has
become unhealthy, or was taken out, gets new connections for `notice_seconds` more, as an NLB's nodes hear of a change
late; its connections live on until one side closes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

CHECK_SECONDS = 0.1


@dataclass
class Balancer:
    """The balancer as a test sees it: `targets` are (host, client port, health port)."""

    notice_seconds: float = 0.5
    port: int = 0
    targets: list[tuple[str, int, int]] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self.notice_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.port = int(self.process.stdout.readline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.stdin.close()  # it ends with its input
        self.process.wait(10)
        self.process.stdout.close()

    def add(self, target: tuple[str, int, int]) -> None:
        """Register a target; return once new connections go there."""
        self.targets.append(target)
        self._tell()

    def remove(self, target: tuple[str, int, int]) -> None:
        """Deregister a target: no new connection after `notice_seconds`."""
        self.targets.remove(target)
        self._tell()

    def _tell(self) -> None:
        self.process.stdin.write(json.dumps(self.targets) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer == "healthy\n", answer


class _Pipe(asyncio.Protocol):
    """One direction's reader; what it reads goes to `other`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Pipe | None = None
        self.early = bytearray()  # until the target has answered the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early += data
        elif self.other.transport:
            self.other.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self.other and self.other.transport:
            # A reset stays a reset: what was sent last is lost, as it is through a real balancer.
            self.other.transport.abort() if error else self.other.transport.close()

    def pause_writing(self) -> None:
        if self.other and self.other.transport:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other and self.other.transport:
            self.other.transport.resume_reading()


class _Program:
    def __init__(self, notice_seconds: float) -> None:
        self.notice_seconds = notice_seconds
        self.targets: list[tuple[str, int, int]] = []
        self.healthy_until: dict[tuple[str, int, int], float] = {}
        self.turn = itertools.count()
        self.dialling: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self.accept, "127.0.0.1", 0, backlog=1024)
        say(server.sockets[0].getsockname()[1])
        checking = asyncio.create_task(self.check())
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            self.targets = [(host, port, health) for host, port, health in json.loads(line)]
            while not all(target in self.healthy_until for target in self.targets):  # noqa: ASYNC110 (check's word)
                await asyncio.sleep(0.01)
            say("healthy")
        checking.cancel()

    async def check(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for target in self.targets:
                if await _is_ready(target):
                    self.healthy_until[target] = loop.time() + self.notice_seconds + CHECK_SECONDS
            await asyncio.sleep(CHECK_SECONDS)

    def accept(self) -> asyncio.Protocol:
        client = _Pipe()
        task = asyncio.ensure_future(self.dial(client))
        self.dialling.add(task)
        task.add_done_callback(self.dialling.discard)
        return client

    async def dial(self, client: _Pipe) -> None:
        loop = asyncio.get_running_loop()
        healthy = [target for target, until in self.healthy_until.items() if until > loop.time()]
        server: _Pipe | None = None
        if healthy:
            host, port, _ = healthy[next(self.turn) % len(healthy)]
            with contextlib.suppress(OSError):
                _, server = await loop.create_connection(_Pipe, host, port)
        if server is None or client.transport is None or client.transport.is_closing():
            # A target that refuses: the client's connection is reset.
            for pipe in (client, server):
                if pipe and pipe.transport:
                    pipe.transport.abort()
            return
        client.other, server.other = server, client
        server.transport.write(bytes(client.early))


def say(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def _is_ready(target: tuple[str, int, int]) -> bool:
    host, _, port = target
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_Program(float(sys.argv[1])).run())
