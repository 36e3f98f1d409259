"""`python -m benchmarks.layer.relay --to PORT`: a TCP relay that delays each direction and counts the turns.

A process of its own, so that it takes no time of what is measured; threads and not asyncio, whose timers have steps
of a millisecond. It prints its port, answers the line "turns" with how often a client began to send after
the server had (each is a round trip) since the last time it was asked, and ends when its standard input is closed.
"""

from __future__ import annotations

import argparse
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"
CHUNK_BYTES = 65_536


@dataclass(frozen=True)
class Relay:
    """A running relay."""

    port: int
    process: subprocess.Popen[str]

    def turns(self) -> int:
        """Return how many round trips were made since the last time."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("turns\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@contextmanager
def running_relay(to_port: int, one_way_ms: float = 0.0) -> Iterator[Relay]:
    """Run a relay to a port of the loopback interface; `one_way_ms` is the delay in each direction."""
    command = [sys.executable, "-m", "benchmarks.layer.relay", "--to", str(to_port), "--one-way-ms", str(one_way_ms)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Relay(int(process.stdout.readline()), process)
        # Leaving the block closes its standard input, which ends it.


def round_trip_ms(one_way_ms: float, tries: int = 30) -> list[float]:
    """Return how long round trips through a relay with this delay take, measured against an echo."""
    with socket.create_server((LOOPBACK, 0)) as echo:
        threading.Thread(target=_echo_once, args=(echo,), daemon=True).start()
        with (
            running_relay(echo.getsockname()[1], one_way_ms) as relay,
            socket.create_connection((LOOPBACK, relay.port)) as client,
        ):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            taken = []
            for _ in range(tries + 1):
                began = time.perf_counter()
                client.sendall(b"x")
                client.recv(1)
                taken.append((time.perf_counter() - began) * 1000)
    return taken[1:]  # the first has the handshake's round trip in it


def _echo_once(server: socket.socket) -> None:
    accepted, _ = server.accept()
    with accepted:
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := accepted.recv(CHUNK_BYTES):
            accepted.sendall(data)


class _Turns:
    """Counts over all connections."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def add(self) -> None:
        with self._lock:
            self._count += 1

    def take(self) -> int:
        with self._lock:
            count, self._count = self._count, 0
            return count


class _Pair:
    """One connection: two directions of two threads each, one that reads and one that writes when it is time."""

    def __init__(self, client: socket.socket, to_port: int, one_way_seconds: float, turns: _Turns) -> None:
        self._client = client
        self._server = socket.create_connection((LOOPBACK, to_port))
        self._one_way_seconds = one_way_seconds
        self._turns = turns
        self._client_spoke_last = False
        for end in (self._client, self._server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        # The kernel answers the client's SYN at once: the handshake's round trip is added to the first message.
        handshake_seconds = 2 * self._one_way_seconds
        self._direction(self._client, self._server, handshake_seconds, True)
        self._direction(self._server, self._client, 0.0, False)

    def _direction(self, source: socket.socket, sink: socket.socket, first_extra: float, is_client: bool) -> None:
        chunks: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(source, chunks, first_extra, is_client), daemon=True).start()
        threading.Thread(target=_write, args=(sink, chunks), daemon=True).start()

    def _read(
        self,
        source: socket.socket,
        chunks: queue.SimpleQueue[tuple[float, bytes]],
        extra_seconds: float,
        is_client: bool,
    ) -> None:
        data = b"?"
        while data:
            try:
                data = source.recv(CHUNK_BYTES)
            except OSError:
                data = b""
            if data and is_client and not self._client_spoke_last:
                self._turns.add()
            self._client_spoke_last = is_client
            chunks.put((time.monotonic() + self._one_way_seconds + extra_seconds, data))
            extra_seconds = 0.0


def _write(sink: socket.socket, chunks: queue.SimpleQueue[tuple[float, bytes]]) -> None:
    while True:
        due, data = chunks.get()
        wait_seconds = due - time.monotonic()
        if wait_seconds > 0:
            time.sleep(wait_seconds)
        try:
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            sink.sendall(data)
        except OSError:
            return


def _serve(server: socket.socket, to_port: int, one_way_seconds: float, turns: _Turns) -> None:
    while True:
        client, _ = server.accept()
        try:
            _Pair(client, to_port, one_way_seconds, turns).start()
        except OSError:
            client.close()


def main() -> None:
    """Relay until standard input is closed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=int, required=True, metavar="PORT")
    parser.add_argument("--one-way-ms", type=float, default=0.0)
    options = parser.parse_args()
    turns = _Turns()
    server = socket.create_server((LOOPBACK, 0), backlog=64)
    arguments = (server, options.to, options.one_way_ms / 1000, turns)
    threading.Thread(target=_serve, args=arguments, daemon=True).start()
    print(server.getsockname()[1], flush=True)
    for _ in sys.stdin:
        print(turns.take(), flush=True)


if __name__ == "__main__":
    main()
