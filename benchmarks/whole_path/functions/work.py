"""What every function of the benchmark does with its connection: read a row by its key, and write one."""

from __future__ import annotations

from typing import Any

from psycopg import Connection

SCHEMA = """
create table pages (id integer primary key, title text not null);
insert into pages select number, 'page ' || number from generate_series(1, 1000) as number;
create table visits (page integer not null, at timestamptz not null);
"""


def visit(connection: Connection[Any], page: int) -> str:
    """Note a visit and return the page's title: two statements of the transaction that the caller begins and ends."""
    row = connection.execute("select title from pages where id = %s", (page,)).fetchone()
    connection.execute("insert into visits (page, at) values (%s, now())", (page,))
    if row is None:
        raise LookupError(f"there is no page {page}")
    return str(row[0])
