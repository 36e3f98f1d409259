"""`python -m benchmarks.proxy.clients`: thousands of TLS clients in one process, lighter than a driver's.

Each line of standard input is a command in JSON, each answer a line: {"connect": COUNT, …} logs in COUNT clients at
once over TLS and SCRAM and holds them; with "asks" they are done after a first row. {"close": true} drops them. It ends
when its standard input is closed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import resource
import secrets
import select
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

SSL_REQUEST = struct.pack("!II", 8, 80877103)
PROTOCOL_3 = 196608
FIRST_QUERY = b"Q" + struct.pack("!I", 4 + len(b"select 1\0")) + b"select 1\0"
SASL, SASL_CONTINUE, SASL_FINAL = 10, 11, 12
LONGEST_WAIT_SECONDS = 120.0
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: thousands of ports in TIME_WAIT would run out

# A client is a generator that yields what it waits for; the loop below wakes it up.
Steps = Generator[int, None, None]


@dataclass(frozen=True)
class Target:
    """Where the clients log in, and as whom."""

    host: str
    port: int
    user: str
    database: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Storm:
    """What became of clients that logged in at once: how long until the last was in, and the errors by text.

    `moments` are the seconds after which each hundredth of those that got in was in (and had its row, if it asked).
    """

    clients: int
    seconds: float
    failures: dict[str, int]
    moments: list[float] = field(default_factory=list)

    @property
    def logins_per_second(self) -> float:
        return self.clients / self.seconds


@dataclass(frozen=True)
class ClientProcess:
    """A running process of clients."""

    process: subprocess.Popen[str]

    def connect(self, target: Target, count: int, asks: bool = False) -> Storm:
        """Log in `count` more clients at once and hold them; each that `asks` is done when it has a first row."""
        return Storm(**self._ask({"connect": count, "asks": asks, "target": vars(target)}))

    def close(self) -> None:
        """Drop all clients."""
        self._ask({"close": True})

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@contextmanager
def running_clients() -> Iterator[ClientProcess]:
    """Run a process of clients."""
    command = [sys.executable, "-m", "benchmarks.proxy.clients"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield ClientProcess(process)
        # Leaving the block closes its standard input, which ends it.


def allow_descriptors(count: int) -> int:
    """Raise this process's limit of open files towards `count`; return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        soft = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


class LoginFailed(Exception):  # noqa: N818 (named by what happened)
    """What the server said instead of letting the client in."""


class _Client:
    """One client: its sockets, what it has read and not used yet."""

    def __init__(self, target: Target, tls: ssl.SSLContext) -> None:
        self._target = target
        self._tls = tls
        self._buffer = b""
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def steps(self, asks: bool) -> Steps:
        """Log in, and get a first row if it asks. Raises LoginFailed or OSError."""
        yield from self._log_in()
        if asks:
            yield from self._ask()

    def _ask(self) -> Steps:
        self.socket.send(FIRST_QUERY)
        has_row = False
        while True:
            kind, body = yield from self._message()
            if kind == b"E":
                raise LoginFailed(_text(body))
            has_row = has_row or kind == b"D"
            if kind == b"Z":
                if not has_row:
                    raise LoginFailed("no row")
                return

    def _log_in(self) -> Steps:
        self.socket.connect_ex((self._target.host, self._target.port))
        yield select.EPOLLOUT
        if error := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, "connect")
        self.socket.send(SSL_REQUEST)
        yield select.EPOLLIN
        if self.socket.recv(1) != b"S":
            raise LoginFailed("no TLS")
        encrypted = self._tls.wrap_socket(self.socket, do_handshake_on_connect=False)
        self.socket = encrypted
        while True:
            try:
                encrypted.do_handshake()
                break
            except ssl.SSLWantReadError:
                yield select.EPOLLIN
        yield from self._authenticate()

    def _authenticate(self) -> Steps:
        pairs = ("user", self._target.user, "database", self._target.database)
        body = struct.pack("!I", PROTOCOL_3) + b"".join(word.encode() + b"\0" for word in pairs) + b"\0"
        self.socket.send(struct.pack("!I", len(body) + 4) + body)
        first = f"n=,r={base64.b64encode(secrets.token_bytes(18)).decode()}"
        while True:
            kind, body = yield from self._message()
            if kind == b"E":
                raise LoginFailed(_text(body))
            if kind == b"Z":
                return
            step = struct.unpack("!I", body[:4])[0] if kind == b"R" else None
            if step == SASL:
                initial = f"n,,{first}".encode()
                self._send_proof(b"SCRAM-SHA-256\0" + struct.pack("!I", len(initial)) + initial)
            elif step == SASL_CONTINUE:
                self._send_proof(_proof(self._target.password, first, body[4:].decode()))

    def _send_proof(self, body: bytes) -> None:
        self.socket.send(b"p" + struct.pack("!I", len(body) + 4) + body)

    def _message(self) -> Generator[int, None, tuple[bytes, bytes]]:
        while len(self._buffer) < 5 or len(self._buffer) < 1 + struct.unpack("!I", self._buffer[1:5])[0]:
            try:
                data = self.socket.recv(8192)
            except (ssl.SSLWantReadError, BlockingIOError):
                yield select.EPOLLIN
                continue
            if not data:
                raise LoginFailed("closed")
            self._buffer += data
        length = 1 + struct.unpack("!I", self._buffer[1:5])[0]
        message, self._buffer = self._buffer[:length], self._buffer[length:]
        return message[:1], message[5:]


def _text(body: bytes) -> str:
    """Return the message of an error, without what differs from client to client."""
    fields = [field.decode(errors="replace") for field in body.split(b"\0") if field]
    return next((field[1:] for field in fields if field.startswith("M")), "an error without a message")


def _proof(password: str, first: str, server_first: str) -> bytes:
    given = dict(part.split("=", 1) for part in server_first.split(","))
    client_key, stored_key = _keys(password, given["s"], int(given["i"]))
    final = f"c=biws,r={given['r']}"
    signature = hmac.digest(stored_key, f"{first},{server_first},{final}".encode(), "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    return f"{final},p={base64.b64encode(proof).decode()}".encode()


@cache
def _keys(password: str, salt: str, iterations: int) -> tuple[bytes, bytes]:
    # Once for all clients: the server's work is measured, not theirs.
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return client_key, hashlib.sha256(client_key).digest()


def log_in_at_once(target: Target, count: int, asks: bool) -> tuple[Storm, list[_Client]]:
    """Log in all clients as fast as they are let in; return those who are in beside the outcome."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE  # verifying is the clients' work
    failures: Counter[str] = Counter()
    began = time.monotonic()
    running: dict[int, tuple[_Client, Steps]] = {}
    done: list[_Client] = []
    moments: list[float] = []
    with select.epoll() as poll:
        for _ in range(count):
            client = _Client(target, tls)
            steps = client.steps(asks)
            poll.register(client.socket.fileno(), next(steps))
            running[client.socket.fileno()] = (client, steps)
        while running and time.monotonic() - began < LONGEST_WAIT_SECONDS:
            for descriptor, _ in poll.poll(1.0):
                client, steps = running[descriptor]
                try:
                    poll.modify(descriptor, next(steps))
                except StopIteration:
                    done.append(client)
                    moments.append(time.monotonic() - began)
                except (LoginFailed, OSError) as error:
                    failures[str(error)] += 1
                else:
                    continue
                poll.unregister(descriptor)
                del running[descriptor]
        seconds = time.monotonic() - began
    if running:
        failures[f"not in after {LONGEST_WAIT_SECONDS:g} s"] += len(running)
    hundredths = [moments[(len(moments) - 1) * part // 100] for part in range(101)] if moments else []
    return Storm(count, seconds, dict(failures), hundredths), done


def main() -> None:
    """Serve commands until standard input is closed."""
    held: list[_Client] = []
    for line in sys.stdin:
        command = json.loads(line)
        if "connect" in command:
            allow_descriptors(command["connect"] + len(held) + 100)
            storm, clients = log_in_at_once(Target(**command["target"]), command["connect"], command["asks"])
            held += clients
            answer: dict[str, Any] = vars(storm)
        else:
            for client in held:
                client.socket.close()
            held.clear()
            answer = {}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
