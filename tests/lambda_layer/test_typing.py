"""What mypy --strict makes of users' code: the decorator keeps their types and refuses what would fail at run time."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from mypy import api

HEAD = """\
from collections.abc import Iterator
from typing import Any
import psycopg
from psycopg import IsolationLevel
from psycopg.rows import TupleRow
import emberpool
import emberpool.sqlalchemy
from emberpool import current_connection, warm_connection

class Event: ...
class Context: ...
class Answer: ...

"""
PLAIN = "def (user.Event, user.Context) -> user.Answer"
ACCEPTED = {
    "bare": ("@warm_connection", "event: Event, context: Context, connection: psycopg.Connection", PLAIN),
    "called": ("@warm_connection()", "event: Event, context: Context, connection: psycopg.Connection", PLAIN),
    "any rows": ("@warm_connection", "event: Event, context: Context, connection: psycopg.Connection[Any]", PLAIN),
    "any rows, called": (
        "@warm_connection()",
        "event: Event, context: Context, connection: psycopg.Connection[Any]",
        PLAIN,
    ),
    "tuple rows": (
        "@warm_connection",
        "event: Event, context: Context, connection: psycopg.Connection[TupleRow]",
        PLAIN,
    ),
    "without the connection": ("@warm_connection", "event: Event, context: Context", PLAIN),
    "without the connection, called": ("@warm_connection()", "event: Event, context: Context", PLAIN),
    "every option": (
        (
            "@warm_connection(transaction=True, read_only=True, isolation_level=None, idempotent=True,"
            " resolve_commit=True, deadline_margin_ms=50, database='replica', prewarm=False)"
        ),
        "event: Event, context: Context, connection: psycopg.Connection[Any]",
        PLAIN,
    ),
    "an option without the connection": (
        "@warm_connection(transaction=False)",
        "event: Event, context: Context",
        PLAIN,
    ),
    "extra parameters": (
        "@warm_connection",
        "event: Event, context: Context, connection: psycopg.Connection[Any], tenant: str, *, dry: bool = False",
        "def (user.Event, user.Context, tenant: str, *, dry: bool =) -> user.Answer",
    ),
    "any of it": (
        "@warm_connection",
        "event: dict[str, Any], context: Any, connection: Any",
        "def (dict[str, Any], Any) -> user.Answer",
    ),
}
REFUSED = {
    "one parameter": "@warm_connection\ndef handler(event: Event) -> None: ...",
    "another third parameter": "@warm_connection\ndef handler(event: Event, context: Context, n: int) -> None: ...",
    "an async connection": (
        "@warm_connection\n"
        "def handler(event: Event, context: Context, connection: psycopg.AsyncConnection[Any]) -> None: ..."
    ),
    "rows that are not tuples": (
        "@warm_connection\n"
        "def handler(event: Event, context: Context, connection: psycopg.Connection[dict[str, Any]]) -> None: ..."
    ),
    "a misspelt option": "warm_connection(transactions=False)",
    "an option of another type": "warm_connection(read_only='yes')",
    "an isolation level as text": "warm_connection(isolation_level='serializable')",
    "something that is no function": "warm_connection(5)",
    "a wrong call": "@warm_connection\ndef handler(event: Event, context: Context) -> None: ...\nhandler(1, Context())",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For mypy's cache: the first check of a worker reads psycopg and SQLAlchemy, the others take it from there."""
    return tmp_path_factory.mktemp("typing")


def checked(folder: Path, code: str) -> tuple[list[str], dict[int, str]]:
    """Return the errors, and the revealed types by the line of `code`."""
    user = folder / "user.py"
    user.write_text(HEAD + code)
    # Nothing of ours but the installed package: a user's machine has no configuration from this repository.
    said, trouble, _ = api.run(["--strict", "--config-file=", f"--cache-dir={folder / 'cache'}", str(user)])
    assert not trouble, trouble
    revealed = re.findall(r'user\.py:(\d+): note: Revealed type is "(.*)"', said)
    errors = [line for line in said.splitlines() if ": error: " in line]
    return errors, {int(line) - HEAD.count("\n"): kind for line, kind in revealed}


def test_the_check_uses_the_installed_package_and_no_configuration(folder: Path) -> None:
    """An error in the user's code is found, so the other tests of this module can fail."""
    errors, _ = checked(folder, "reveal_type(1 + '')")
    assert len(errors) == 1
    assert "MYPYPATH" not in os.environ


def test_decorated_handlers_keep_their_types(folder: Path) -> None:
    """Each accepted form is what the user wrote less the connection: its parameters, names and result."""
    code = "".join(
        f"{decorator}\ndef handler{number}({parameters}) -> Answer: return Answer()\nreveal_type(handler{number})\n"
        for number, (decorator, parameters, _) in enumerate(ACCEPTED.values())
    )
    errors, revealed = checked(folder, code)
    assert errors == []
    assert dict(zip(ACCEPTED, revealed.values(), strict=True)) == {
        name: kind for name, (_, _, kind) in ACCEPTED.items()
    }


def test_generator_handlers_and_connections_infer(folder: Path) -> None:
    """A generator stays one; every way to a connection is typed with tuple rows; engine() is an Engine."""
    errors, revealed = checked(
        folder,
        """
@warm_connection
def handler(event: Event, context: Context, connection: psycopg.Connection) -> Iterator[str]:
    reveal_type(connection.execute("select 1").fetchone())
    yield ""
reveal_type(handler)
reveal_type(current_connection())
with emberpool.connect("replica") as connection:
    reveal_type(connection)
reveal_type(emberpool.sqlalchemy.engine(echo=True))
""",
    )
    assert errors == []
    assert [kind.replace("typing.", "").replace("collections.abc.", "") for kind in revealed.values()] == [
        "tuple[Any, ...] | None",
        "def (user.Event, user.Context) -> Iterator[str]",
        "psycopg.connection.Connection[tuple[Any, ...]]",
        "psycopg.connection.Connection[tuple[Any, ...]]",
        "sqlalchemy.engine.base.Engine",
    ]


@pytest.mark.parametrize("what", REFUSED)
def test_mistakes_are_found_before_they_run(folder: Path, what: str) -> None:
    """mypy refuses what would fail, or do something else, at run time."""
    errors, _ = checked(folder, REFUSED[what])
    assert len(errors) == 1, errors
    assert re.search(r"\[(arg-type|call-overload|call-arg)\]", errors[0])
