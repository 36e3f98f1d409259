"""One way of the relays: its listener on 127.0.0.1, its connections, and what silence, delay and loss make of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from time import monotonic

from emberpool_local.host.ports import LOOPBACK
from emberpool_local.lab.delay_queue import DelayQueue
from emberpool_local.lab.forwarding import Connection, End
from emberpool_local.lab.packet_rules import DROP, Flight, Rule, decide, number_of
from emberpool_local.lab.socket_filter import Socket, lose_packets, may_lose_packets

BACKLOG = 4096  # a storm's connections wait here until this one thread has taken them
CONTROL_CONNECTION = b"emberpool-agent"  # in the startup message, as application_name
MAY_LOSE = may_lose_packets()
RETRANSMISSION_SECONDS = 0.2  # TCP's shortest
NO_PACKET = memoryview(b"")
STRAIGHT = 0  # decide()'s answer when no rule holds


class Relayed(Connection):
    """One connection of a way."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way
        self.is_control = False
        self.is_forgotten = False
        self.dialling: asyncio.Task[None] | None = None
        self._held: set[End] = set()
        self._last_due: dict[End, float] = {}
        self._delayed: Counter[End] = Counter()  # what has come from an end and is not passed on yet

    @property
    def is_silent(self) -> bool:
        """Whether nothing comes from it or to it."""
        return self.is_forgotten or self.way.is_silent

    def end_made(self, end: End) -> None:
        """See Connection."""
        self.apply_loss(end)
        if end is self.near:
            self.dialling = asyncio.ensure_future(self.way.dial(self))

    def received(self, end: End, data: bytes) -> None:
        """See Connection."""
        self.is_control |= CONTROL_CONNECTION in data
        self._later(end, lambda: Connection.received(self, end, data))

    def lost(self, end: End, *, is_reset: bool) -> None:
        """See Connection."""
        if self.dialling:
            self.dialling.cancel()  # the client did not wait for a target that does not answer
        if self.is_silent:
            return  # the other side does not hear of it
        self._later(end, lambda: Connection.lost(self, end, is_reset=is_reset))
        if not any(side and side.is_open for side in (self.near, self.far)):
            self.way.connections.discard(self)

    def forget(self) -> None:
        """Lose everything that comes to it from now on."""
        self.is_forgotten = True
        self.apply()

    def apply(self) -> None:
        """Take note of what holds for the way; an end that has lost its other end in silence learns it now."""
        for end in filter(None, (self.near, self.far)):
            self.apply_loss(end)
            other = self.other(end)
            if not self.is_silent and end.is_open and other and other.was_open and not other.is_open:
                end.reset()

    def apply_loss(self, end: End) -> None:
        """Lose as much of what comes to an end as holds for the way, or hold all of it."""
        if MAY_LOSE and (own := end.socket):
            lose_packets(own, 1.0 if self.is_silent else self.way.loss)
        elif self.is_silent:
            self._held.add(end)
            self.hold(end)
        elif end in self._held:
            self._held.remove(end)
            self.let_go(end)

    def _later(self, end: End, action: Callable[[], None]) -> None:
        """Act when what has come from `end` has gone its way, and never before what came earlier."""
        flight = self.way.forward if end is self.near else self.way.backward
        now = monotonic()
        moment: float | None = 0.0
        if isinstance(flight, Flight):
            moment = flight.due(NO_PACKET, now)
        if moment is None:
            moment = now + RETRANSMISSION_SECONDS
        moment = self._last_due[end] = max(moment, self._last_due.get(end, 0.0))
        if moment <= now and not self._delayed[end]:
            action()
            return

        def act() -> None:
            self._delayed[end] -= 1
            action()

        self._delayed[end] += 1
        self.way.delayed.add(moment, act)


class Way:
    """From one address to a port of another one; `loss` is what its sockets lose of what comes to them."""

    def __init__(self, source: str, target: str, port: int, delayed: DelayQueue[Callable[[], None]]) -> None:
        self.source, self.target, self.port = source, target, port
        self.delayed = delayed
        self.connections: set[Relayed] = set()
        self.loss = 0.0
        self.is_silent = False
        self.speaks = asyncio.Event()
        self.forward: int | Flight = STRAIGHT
        self.backward: int | Flight = STRAIGHT
        self.listener: Socket | None = None

    async def listen(self, rules: list[Rule]) -> int:
        """Take connections; return the port."""
        server = await asyncio.get_running_loop().create_server(self.accept, LOOPBACK, 0, backlog=BACKLOG)
        self.listener = server.sockets[0]
        self.apply(rules)
        port: int = server.sockets[0].getsockname()[1]
        return port

    def accept(self) -> asyncio.Protocol:
        """Return what serves one more connection."""
        connection = Relayed(self)
        self.connections.add(connection)
        return connection.near

    async def dial(self, connection: Relayed) -> None:
        """Lead a connection on to the target, once the way is not silent."""
        await self.speaks.wait()
        # The round trip of the client's SYN, which the kernel has answered already.
        flights = (each for each in (self.forward, self.backward) if isinstance(each, Flight))
        await asyncio.sleep(sum(flight.delay_seconds for flight in flights))
        await connection.dial(self.target, self.port, self.source)

    def apply(self, rules: list[Rule]) -> None:
        """Take note of the rules that hold from now on."""
        source, target = number_of(self.source), number_of(self.target)
        self.forward = decide(STRAIGHT, source, target, rules)
        self.backward = decide(STRAIGHT, target, source, rules)
        self.is_silent = self.forward == DROP
        if self.is_silent:
            self.speaks.clear()
        else:
            self.speaks.set()
        if MAY_LOSE:
            self.take_losses()
        for connection in list(self.connections):
            connection.apply()

    def take_losses(self) -> None:
        """Let the sockets lose packets, each direction's come to one of the two, and not the flights a second time."""
        self.loss = 1.0 if self.is_silent else 0.0
        if isinstance(self.forward, Flight):
            self.loss = self.forward.loss
        for flight in (self.forward, self.backward):
            if isinstance(flight, Flight):
                flight.loss = 0.0
        if self.listener:
            lose_packets(self.listener, self.loss)

    def reset_at_target(self, *, is_control: bool) -> None:
        """Do what keepalives of the target do."""
        for connection in list(self.connections):
            if connection.far and connection.is_control == is_control:
                connection.far.reset()
