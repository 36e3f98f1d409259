"""A closed loop of HTTP clients in a process of its own: each connection sends its next request with the answer.

`python -m benchmarks.data.load`, with the plan as JSON on standard input, prints what it measured as JSON. The request
is made once: it costs the same whoever answers, so making a signature is not part of what is measured here.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from dataclasses import asdict, dataclass, field
from functools import partial

from benchmarks.data.window import Load, Window, run_measured

NUMBER = "0" * 32  # in a header's value: each request has another one in its place
BLOCK = secrets.token_hex(8).encode()  # no other block has the same


@dataclass(frozen=True)
class Plan:
    """What to send, on how many connections, for how long: `seconds` after `lead_in_seconds`, or so many `requests`.

    The CPU time of `processes` (ids by name) is taken over the same seconds.
    """

    port: int
    path: str
    headers: dict[str, str]
    body: str
    connections: int
    seconds: float
    lead_in_seconds: float = 0.3
    requests: int = 0
    processes: dict[str, int] = field(default_factory=dict)


class Client(asyncio.Protocol):
    """One connection: sends, waits for the whole answer, notes the time, sends again."""

    def __init__(self, request: bytes, window: Window, ended: asyncio.Future[None]) -> None:
        self._before, self._number, self._after = request.partition(NUMBER.encode())
        self._window = window
        self._ended = ended
        self._received = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or len(body) < _length(head):
            return
        goes_on = self._window.answered(self._sent_at)
        if not head.startswith(b"HTTP/1.1 200"):
            self._window.failures.append(body[:200].decode(errors="replace"))
            goes_on = False
        self._received = b""
        if goes_on:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if error or self._received or self._window.is_open:
            self._window.failures.append(f"the connection was lost: {error}")
        if not self._ended.done():
            self._ended.set_result(None)

    def _send(self) -> None:
        self._sent_at, request = self._window.sent(), self._before
        if self._number:
            request += b"%s%016d" % (BLOCK, self._window.requests_sent) + self._after
        self._transport.write(request)


def run(plan: Plan) -> Load:
    """Run the load in a process of its own. Raises RuntimeError when anything failed."""
    return run_measured("benchmarks.data.load", asdict(plan), timeout_seconds=plan.seconds + plan.requests / 100)


async def _measure(plan: Plan) -> Load:
    loop = asyncio.get_running_loop()
    body = plan.body.encode()
    headers = {"Content-Length": str(len(body)), **plan.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"POST {plan.path} HTTP/1.1\r\n{lines}\r\n".encode() + body
    window = Window(plan.processes, plan.requests)
    ends = [loop.create_future() for _ in range(plan.connections)]
    for ended in ends:
        await loop.create_connection(partial(Client, request, window, ended), "127.0.0.1", plan.port)
    window.open(plan.lead_in_seconds, plan.seconds)
    await asyncio.gather(*ends)
    return window.load()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    raise ValueError("an answer without its length")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(asyncio.run(_measure(Plan(**json.load(sys.stdin)))))))
