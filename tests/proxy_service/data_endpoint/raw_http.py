"""Requests to a data endpoint byte by byte, as no HTTP library would send them, and what comes back."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from ...processes import children_of, command_line
from ..conftest import CLIENT_PASSWORD, CLIENT_USER, Proxy, wait_until
from .served import ARNS

ANSWER_SECONDS = 20.0
EXECUTE = "/Execute"
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """One answer; `error` is the service's name of it."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The service's name of the error, empty when it is none or the server's own."""
        return self.headers.get("x-amzn-errortype", "")

    @property
    def message(self) -> str:
        """What it says."""
        return str(json.loads(self.body)["message"])

    @property
    def rows(self) -> list[list[Any]]:
        """The values of the records."""
        return [[next(iter(field.values())) for field in record] for record in json.loads(self.body)["records"]]


@dataclass(frozen=True)
class RawEndpoint:
    """A data endpoint without TLS."""

    proxy: Proxy

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.proxy.setting("data_port"))

    @property
    def pid(self) -> int:
        """Its process."""
        for pid in children_of(self.proxy.process.pid):
            if "data-endpoint" in command_line(pid):
                return pid
        return 0

    def request(
        self,
        body: bytes,
        path: str = EXECUTE,
        method: str = "POST",
        version: str = "1.1",
        signed: Headers = (),
        more: Headers = (),
        has_length: bool = True,
    ) -> bytes:
        """Return a request that is signed, with the headers `signed`; the headers `more` are not."""
        host = f"127.0.0.1:{self.port}"
        request = AWSRequest(method, f"http://{host}{path}", headers=dict(signed), data=body)
        SigV4Auth(Credentials(CLIENT_USER, CLIENT_PASSWORD), "rds-data", "eu-west-1").add_auth(request)
        length = [("Content-Length", str(len(body)))] if has_length else []
        headers = [("Host", host), *request.headers.items(), *more, *length]
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        return f"{method} {path} HTTP/{version}\r\n{lines}\r\n".encode("latin-1") + body

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        """A connection to it."""
        with socket.create_connection(("127.0.0.1", self.port), ANSWER_SECONDS) as connection:
            yield connection

    def answers(self, sent: bytes, is_all: bool = False) -> list[Answer]:
        """Return all answers to what is sent on one connection; `is_all` says that nothing more will come."""
        with self.connection() as connection, connection.makefile("rb") as incoming:
            with suppress(OSError):  # it may be closed before all was sent
                connection.sendall(sent)
                if is_all:
                    connection.shutdown(socket.SHUT_WR)
            return list(read_answers(incoming))

    def rows(self, sql: str) -> list[list[Any]]:
        """Return the rows of a statement, run on a connection of its own."""
        with self.connection() as connection, connection.makefile("rb") as incoming:
            connection.sendall(self.request(statement(sql)))
            return next(read_answers(incoming)).rows

    def open_files(self) -> int:
        """How many file descriptors its process has."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208 (names, not paths)

    def memory_bytes(self) -> int:
        """How much memory its process has."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def most_address_space_bytes(self) -> int:
        """How much its process has ever asked the kernel for."""
        (line,) = (line for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if "VmPeak" in line)
        return int(line.split()[1]) * 1024

    def failures(self) -> list[str]:
        """What it has logged that is wrong with itself."""
        wrong = (line for line in self.proxy.log_lines() if line["level"] == "ERROR")
        return [f"{line['message']}\n{line.get('exception', '')}" for line in wrong]

    def assert_serves_as_before(self, files: int) -> None:
        """It answers, has logged no failure of its own, and has no more than so many file descriptors."""
        assert self.rows("select 7") == [[7]]
        assert not self.failures(), "\n".join(self.failures())
        wait_until("file descriptors were left open", lambda: self.open_files() <= files)


def statement(sql: str, **members: Any) -> bytes:
    """Return the body of an ExecuteStatement."""
    return json.dumps({**ARNS, "sql": sql, **members}).encode()


def read_answers(incoming: IO[bytes]) -> Iterator[Answer]:
    """Yield the answers until the connection is closed."""
    with suppress(ConnectionError):  # closed with what was sent unread
        while line := incoming.readline():
            headers = {}
            while (header := incoming.readline().decode().strip()) != "":
                name, _, value = header.partition(": ")
                headers[name.lower()] = value
            status = int(line.split()[1])
            if status != 100:
                yield Answer(status, headers, incoming.read(int(headers.get("content-length", 0))))
