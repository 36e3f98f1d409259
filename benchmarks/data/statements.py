"""The two statements, their table, and the request that carries one: as an SDK sends it, signed by botocore."""

from __future__ import annotations

import json
from dataclasses import dataclass

import psycopg
from benchmarks.data.load import NUMBER
from benchmarks.proxy.pair import Database
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from psycopg.conninfo import make_conninfo

PATH = "/Execute"
ARN = "arn:aws:rds:eu-west-1:123456789012:cluster:bench"
SECRET = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:bench"
INVOCATION = "amz-sdk-invocation-id"
ROWS = 100
TABLE = f"""
CREATE TABLE bench_items (id int PRIMARY KEY, name text NOT NULL, price float8 NOT NULL);
INSERT INTO bench_items SELECT n, 'item number ' || n, n / 4.0 FROM generate_series(1, {ROWS}) AS n;
GRANT SELECT ON bench_items TO PUBLIC
"""


@dataclass(frozen=True)
class Statement:
    """What is run, and how many rows it has."""

    name: str
    sql: str
    rows: int

    @property
    def body(self) -> str:
        """The request's body; the yardsticks read only the SQL."""
        return json.dumps({"resourceArn": ARN, "secretArn": SECRET, "sql": self.sql})


ONE_ROW = Statement("1 row", "SELECT id, name, price FROM bench_items WHERE id = 42", 1)
MANY_ROWS = Statement(f"{ROWS} rows of 3 columns", "SELECT id, name, price FROM bench_items", ROWS)
STATEMENTS = (ONE_ROW, MANY_ROWS)


def create_table(database: Database) -> None:
    """Make the table that the statements read."""
    access = database.access
    conninfo = make_conninfo(
        host=access.host, port=access.port, dbname=access.name, user=access.user, password=access.password
    )
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(TABLE.encode())


def plain_headers(port: int) -> dict[str, str]:
    return {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json"}


def signed_headers(port: int, statement: Statement, user: str, password: str, is_numbered: bool) -> dict[str, str]:
    """Return the headers with a signature of now; with `is_numbered` each request is an invocation of its own."""
    request = AWSRequest("POST", f"http://127.0.0.1:{port}{PATH}", data=statement.body, headers=plain_headers(port))
    SigV4Auth(Credentials(user, password), "rds-data", "eu-west-1").add_auth(request)
    return dict(request.headers.items()) | ({INVOCATION: NUMBER} if is_numbered else {})
