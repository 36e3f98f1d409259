"""The balancer's process: `python -m emberpool_local.lab.balancer_process OPTIONS` reads commands of balancer."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import socket
import sys
from collections import Counter
from time import monotonic
from typing import Any

from emberpool_local.lab.balancer import BalancerOptions, Target
from emberpool_local.lab.commanded import answer
from emberpool_local.lab.forwarding import Connection, End
from emberpool_local.lab.socket_filter import lose_packets, may_lose_packets

CHECK_SECONDS = 0.1
CHECK_TIMEOUT_SECONDS = 1.0
# Of a target that has taken no connection for so long the connections are reset, as an NLB does by default once a
# target is unhealthy. (On AWS that takes two checks, 20 s: long enough for an agent to start again, which must not end
# the connections through its PgBouncer. Here a target is silent only if not even its kernel answers.) One that
# answers 503, as it drains, keeps its connections.
SILENT_SECONDS = 3.0
# An NLB passes packets on: what the target does not acknowledge ends its clients' connections after their own limit,
# the layer's. Ours acknowledges for it.
USER_TIMEOUT_MS = 5000
BACKLOG = 4096  # a storm's connections wait here until this one thread has taken them

MAY_LOSE = may_lose_packets()  # otherwise TCP goes on to acknowledge what nobody reads

Way = tuple[str, int, str, int]  # where this process reaches a target's port, and its health port


class _Balanced(Connection):
    """A client's connection to a target."""

    def __init__(self, program: _Program) -> None:
        super().__init__()
        self._program = program
        self.target: Target | None = None
        self.last_passed = monotonic()
        self.is_forgotten = False
        self.is_silent = False
        self.dialling: asyncio.Task[None] | None = None

    def end_made(self, end: End) -> None:
        if end.socket:
            end.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        if end is self.near:
            self.dialling = asyncio.ensure_future(self._program.dial(self))

    def received(self, end: End, data: bytes) -> None:
        if self.is_forgotten:
            if not self.is_silent:
                end.reset()  # only who sends learns it
            return
        self.last_passed = monotonic()
        super().received(end, data)

    def lost(self, end: End, *, is_reset: bool) -> None:
        if self.dialling:
            self.dialling.cancel()  # the client did not wait for a target that does not answer
        if not self.is_forgotten:
            super().lost(end, is_reset=is_reset)
        if not any(side and side.is_open for side in (self.near, self.far)):
            self._program.connections.discard(self)

    def forget(self, silently: bool) -> None:
        self.is_forgotten = True
        self.is_silent = silently
        if silently and MAY_LOSE:
            for own in filter(None, (end.socket for end in (self.near, self.far) if end)):
                lose_packets(own)


class _Program:
    def __init__(self, options: BalancerOptions) -> None:
        self.options = options
        self.ways: dict[Target, Way] = {}
        self.healthy_until: dict[Target, float] = {}
        self.turn = itertools.count()
        self.connections: set[_Balanced] = set()
        self.checking: dict[Target, asyncio.Task[None]] = {}

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self.accept, self.options.address, 0, backlog=BACKLOG)
        port: int = server.sockets[0].getsockname()[1]
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        forgetting = asyncio.create_task(self.forget_by_itself())
        while line := await reader.readline():
            answer(port if json.loads(line) == ["port"] else self.carry_out(*json.loads(line)))
        for task in (forgetting, *self.checking.values()):
            task.cancel()

    def carry_out(self, command: str, *arguments: Any) -> object:
        match command:
            case "targets":
                self.take_targets({tuple(target): tuple(way) for target, way in arguments[0]})
            case "healthy":
                return self.healthy()
            case "connections":
                return Counter(each.target[0] for each in self.connections if each.target and not each.is_forgotten)
            case "forget":
                return self.forget(*arguments)
        return None

    def take_targets(self, ways: dict[Target, Way]) -> None:
        removed = self.checking.keys() - ways.keys()
        self.ways = {**self.ways, **ways}  # one that was removed gets new connections until it is noticed
        for target in removed:
            self.checking.pop(target).cancel()
            if self.options.deregistration_seconds is not None:
                asyncio.get_running_loop().call_later(self.options.deregistration_seconds, self.end_connections, target)
        for target in ways.keys() - self.checking.keys():
            self.checking[target] = asyncio.create_task(self.check(target, ways[target]))

    def end_connections(self, target: Target) -> None:
        if target not in self.checking:  # it was not added again
            self.reset_connections(target)

    def reset_connections(self, target: Target) -> None:
        for connection in [each for each in self.connections if each.target == target]:
            connection.reset()

    def healthy(self) -> list[Target]:
        return [target for target, until in self.healthy_until.items() if until > monotonic()]

    async def check(self, target: Target, way: Way) -> None:
        answered_at = monotonic()
        while True:
            is_good = await is_healthy(self.options, way)
            if is_good:
                self.healthy_until[target] = monotonic() + self.options.notice_seconds + CHECK_SECONDS
            if is_good is not None:
                answered_at = monotonic()
            elif monotonic() - answered_at > SILENT_SECONDS:
                self.reset_connections(target)
            await asyncio.sleep(CHECK_SECONDS)

    def forget(self, idle_seconds: float, silently: bool) -> list[tuple[str, int] | None]:
        latest = monotonic() - idle_seconds
        idle = [each for each in self.connections if each.last_passed <= latest and not each.is_forgotten]
        for connection in idle:
            connection.forget(silently)
        return [connection.near.peer for connection in idle]

    async def forget_by_itself(self) -> None:
        while self.options.idle_seconds is not None:
            self.forget(self.options.idle_seconds, silently=False)
            await asyncio.sleep(CHECK_SECONDS)

    def accept(self) -> asyncio.Protocol:
        connection = _Balanced(self)
        self.connections.add(connection)
        return connection.near

    async def dial(self, connection: _Balanced) -> None:
        healthy = self.healthy()
        if not healthy:
            connection.near.reset()
            return
        connection.target = healthy[next(self.turn) % len(healthy)]
        host, port, _, _ = self.ways[connection.target]
        await connection.dial(host, port, self.options.source)


async def is_healthy(options: BalancerOptions, way: Way) -> bool | None:
    """Whether the target answers as its health check wants it; None when it takes no connection."""
    _, port, host, health_port = way
    source = (options.source, 0) if options.source else None
    if options.health == "tcp":
        host, health_port = way[0], port
    is_connected = False
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(host, health_port, local_addr=source)
            is_connected = True
            try:
                if options.health == "tcp":
                    return True
                writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False if is_connected else None


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_Program(BalancerOptions(**json.loads(sys.argv[1]))).run())
