"""Calls the data endpoint as an application does: boto3's client of the RDS Data API, over verified TLS."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from emberpool_local.host.ports import LOOPBACK
from emberpool_local.host.waiting import wait_until

ACCESS_DENIED = "AccessDeniedException"
REGION = "us-east-1"  # any will do: the signature names it, the endpoint is in none
# boto3 wants them, the endpoint has one database and knows its callers by their signatures.
ARNS = {
    "resourceArn": f"arn:aws:rds:{REGION}:123456789012:cluster:smoke-test",
    "secretArn": f"arn:aws:secretsmanager:{REGION}:123456789012:secret:smoke-test",
}
ONE_ATTEMPT = Config(
    retries={"total_max_attempts": 1},
    connect_timeout=10,
    read_timeout=30,
    proxies={},  # the container is on this machine: an HTTP proxy that the environment names must not be asked
)


class DataEndpoint:
    """The data endpoint on a port of this machine, called with a client user's name and password.

    `authority` has its certificate's authority. Every method raises what `failed` makes of a sentence when the endpoint
    does not do what it must.
    """

    def __init__(
        self, port: int, authority: Path, user: str, password: str, failed: Callable[[str], Exception]
    ) -> None:
        self._port = port
        self._authority = authority
        self._user = user
        self._password = password
        self._failed = failed

    def check_calls(self) -> None:
        """Have a statement run with a parameter, its values answered by type, and a wrong signature refused."""
        self._wait_until_listening()
        number = {"name": "number", "value": {"longValue": 41}}
        records = self._execute("SELECT :number::int + 1, 'text'", parameters=[number])["records"]
        if records != [[{"longValue": 42}, {"stringValue": "text"}]]:
            raise self._failed(f"the data endpoint answered a call with {records}")
        with self._failures():
            try:
                self._client("not-the-password").execute_statement(sql="SELECT 1", **ARNS)
            except ClientError as error:
                if error.response["Error"]["Code"] == ACCESS_DENIED:
                    return
                raise
        raise self._failed("the data endpoint took a call that was signed with a wrong password")

    def begin(self, sql: str) -> str:
        """Run `sql` in a new transaction; return the transaction's id."""
        with self._failures():
            transaction: str = self._own_client().begin_transaction(**ARNS)["transactionId"]
        self._execute(sql, transactionId=transaction)
        return transaction

    def commit(self, transaction: str) -> None:
        """Commit a transaction."""
        with self._failures():
            self._own_client().commit_transaction(transactionId=transaction, **ARNS)

    def _execute(self, sql: str, **members: Any) -> dict[str, Any]:
        with self._failures():
            answer: dict[str, Any] = self._own_client().execute_statement(sql=sql, **ARNS, **members)
        return answer

    def _own_client(self) -> Any:
        return self._client(self._password)

    def _client(self, password: str) -> Any:
        # A new one each time, as each Lambda function has: each call has a TLS handshake of its own.
        return boto3.Session(self._user, password, region_name=REGION).client(
            "rds-data",
            endpoint_url=f"https://{LOOPBACK}:{self._port}",
            verify=str(self._authority),
            config=ONE_ATTEMPT,
        )

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise self._failed(f"the data endpoint does not answer: {error}") from error

    def _wait_until_listening(self) -> None:
        # /readyz is of PgBouncer alone: the endpoint may start a moment later.
        try:
            wait_until("the data endpoint does not listen", self._listens)
        except TimeoutError as error:
            raise self._failed(str(error)) from error

    def _listens(self) -> bool:
        with socket.socket() as connection:
            return connection.connect_ex((LOOPBACK, self._port)) == 0
