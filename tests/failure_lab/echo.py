"""Both sides of TCP for the network's tests: a server of the lab's own process, and a client at a node."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from emberpool_local.host.waiting import wait_until
from emberpool_local.lab.network import Node

# Reads lines of JSON, answers each with one: the result, or the name of the error and the time that it took.
CLIENT = """
import json, os, socket, sys, time
connection = None
for line in sys.stdin:
    command, *arguments = json.loads(line)
    begun = time.monotonic()
    try:
        if command == "connect":
            host, port, seconds = arguments
            connection = socket.socket()
            connection.settimeout(seconds)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.connect((host, port))
            result = "connected"
        elif command == "limit":
            seconds, user_timeout_ms = arguments
            connection.settimeout(seconds)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)
            result = "limited"
        elif command == "echo":
            data = os.urandom(arguments[0])
            connection.sendall(data)
            received = b""
            while len(received) < len(data) and (more := connection.recv(65536)):
                received += more
            result = len(received) if received == data else "other bytes"
        elif command == "receive":
            result = connection.recv(10).decode()
        elif command == "retransmissions":
            result = int.from_bytes(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[100:104], "little")
    except OSError as error:
        result = type(error).__name__
    print(json.dumps([result, time.monotonic() - begun]), flush=True)
"""


class Client:
    """A process at a node, with one connection; what it answers is a result or the name of an error."""

    def __init__(self, node: Node) -> None:
        self.process = subprocess.Popen(
            node.command([sys.executable, "-c", CLIENT]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.seconds = 0.0  # that the last command took

    def tell(self, *command: object) -> object:
        """Have it do something, which it does now."""
        self.begin(*command)
        return self.result()

    def begin(self, *command: object) -> None:
        """Have it do something."""
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def result(self) -> object:
        """Return what became of it."""
        result, self.seconds = json.loads(self.process.stdout.readline())
        return result

    def connect(self, way: tuple[str, int], seconds: float = 10.0) -> object:
        """Connect; `seconds` is also the longest wait for an answer later."""
        return self.tell("connect", *way, seconds)

    def limit(self, seconds: float, user_timeout_ms: int) -> None:
        """Wait no longer than that for what this connection sends and receives from now on."""
        assert self.tell("limit", seconds, user_timeout_ms) == "limited"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()


class EchoServer:
    """Sends back what it gets; `clients` are the addresses that it has seen, `ends` how their connections ended."""

    END_SECONDS = 20.0

    def __init__(self, address: str) -> None:
        self.listener = socket.create_server((address, 0), backlog=64)
        self.port: int = self.listener.getsockname()[1]
        self.clients: list[str] = []
        self.ends: list[tuple[str, str]] = []
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End it, and with it its connections."""
        for each in (self.listener, *self.connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, (host, _) = self.listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.clients.append(host)
                self.connections.append(connection)
                threading.Thread(target=self._serve, args=(connection, host), daemon=True).start()

    def wait_for_end(self, host: str, end: str) -> None:
        """Return when a connection from this address has ended so: "closed" or the name of an error."""
        wait_until(f"no connection of {host} was {end}", lambda: (host, end) in self.ends, self.END_SECONDS)

    def _serve(self, connection: socket.socket, host: str) -> None:
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
            self.ends.append((host, "closed"))
        except OSError as error:
            self.ends.append((host, type(error).__name__))
        connection.close()


@contextlib.contextmanager
def echo_server(address: str) -> Iterator[EchoServer]:
    """Run a server at one address of the lab."""
    server = EchoServer(address)
    try:
        yield server
    finally:
        server.close()
