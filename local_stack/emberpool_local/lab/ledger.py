"""The ledger: accounts, the transfers between them, and what both say when the run is over.

Owns the tables and their reading. Neither has a key: a transfer that was applied twice is to be seen, not refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

ACCOUNTS = 20_000  # many: a transfer whose function has vanished holds its two accounts for a while
FIRST_BALANCE = 1_000
LARGEST_AMOUNT = 100

TABLES = """
    create table accounts (number integer not null, balance bigint not null);
    create index on accounts (number);
    create table transfers (
        number bigint not null, source integer not null, target integer not null, amount integer not null
    );
"""


@dataclass(frozen=True)
class Transfer:
    """One transfer as the client asks for it; `number` is the client's, and no other transfer has it."""

    number: int
    source: int
    target: int
    amount: int


@dataclass(frozen=True)
class Ledger:
    """All rows of both tables."""

    transfers: Sequence[Transfer]
    balances: Sequence[int]  # by the accounts' numbers


def lay_out(conninfo: str, owner: str) -> None:
    """Make the tables and the accounts for the role of the pool; `conninfo` is a superuser's, in the database."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(TABLES)
        connection.execute(
            "insert into accounts select number, %s from generate_series(0, %s) as number",
            [FIRST_BALANCE, ACCOUNTS - 1],
        )
        for table in ("accounts", "transfers"):
            connection.execute(
                sql.SQL("alter table {} owner to {}").format(sql.Identifier(table), sql.Identifier(owner))
            )
        connection.execute("analyze")


def read_ledger(conninfo: str) -> Ledger:
    """Read both tables in one snapshot."""
    with psycopg.connect(conninfo) as connection:
        connection.execute("set transaction isolation level repeatable read, read only")
        transfers = connection.execute("select number, source, target, amount from transfers").fetchall()
        balances = connection.execute("select balance from accounts order by number").fetchall()
    return Ledger([Transfer(*row) for row in transfers], [balance for (balance,) in balances])
