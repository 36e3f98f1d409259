"""One client each of psycopg, asyncpg and node-postgres, all of which prepare statements by the protocol.

A statement has one parameter, written {}; rows come back as lists.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import asyncpg
import psycopg

from ..conftest import CLIENT_PASSWORD, CLIENT_USER, DATABASE, Proxy

NODE_CLIENT = Path(__file__).with_name("node_postgres.js")
Rows = list[list[Any]]


class StatementFailed(Exception):  # noqa: N818 (named by what happened)
    """What the driver said."""


class Session(Protocol):
    def rows(self, statement: str, value: int) -> Rows: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Base:
    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Psycopg(_Base):
    def __init__(self, proxy: Proxy) -> None:
        self._connection = psycopg.connect(proxy.conninfo(), autocommit=True, prepare_threshold=0)

    def rows(self, statement: str, value: int) -> Rows:
        try:
            return [list(row) for row in self._connection.execute(statement.format("%s").encode(), (value,))]
        except psycopg.Error as error:
            raise StatementFailed(f"{error.sqlstate}: {error}") from error

    def close(self) -> None:
        self._connection.close()


class Asyncpg(_Base):
    def __init__(self, proxy: Proxy) -> None:
        self._runner = asyncio.Runner()
        context = ssl.create_default_context(cafile=f"{proxy.setting('run_folder')}/ca.crt")
        self._connection = self._runner.run(
            asyncpg.connect(
                host="127.0.0.1",
                port=int(proxy.setting("client_port")),
                user=CLIENT_USER,
                password=CLIENT_PASSWORD,
                database=DATABASE,
                ssl=context,
            )
        )

    def rows(self, statement: str, value: int) -> Rows:
        try:
            return [list(row) for row in self._runner.run(self._fetch(statement.format("$1"), value))]
        except (asyncpg.PostgresError, asyncpg.InternalClientError) as error:
            raise StatementFailed(f"{getattr(error, 'sqlstate', '')}: {error}") from error

    async def _fetch(self, statement: str, value: int) -> list[Any]:
        return await self._connection.fetch(statement, value)

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()


class NodePostgres(_Base):
    def __init__(self, proxy: Proxy) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "PGHOST": "127.0.0.1",
            "PGPORT": proxy.setting("client_port"),
            "PGUSER": CLIENT_USER,
            "PGPASSWORD": CLIENT_PASSWORD,
            "PGDATABASE": DATABASE,
            "PGSSLROOTCERT": f"{proxy.setting('run_folder')}/ca.crt",
        }
        self._process = subprocess.Popen(
            ["node", NODE_CLIENT], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def rows(self, statement: str, value: int) -> Rows:
        self._process.stdin.write(json.dumps({"text": statement.format("$1"), "value": value}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise StatementFailed(answer["error"])
        return answer["rows"]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


DRIVERS: dict[str, Callable[[Proxy], Session]] = {
    "psycopg": Psycopg,
    "asyncpg": Asyncpg,
    "node-postgres": NodePostgres,
}
