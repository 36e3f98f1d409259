"""The file of key pairs: read as it is, followed when it changes, and kept to when it is broken."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from emberpool_proxy.data_endpoint.calls import Caller
from emberpool_proxy.data_endpoint.keys import LOOK_AGAIN_SECONDS, Keys, KeysUnusable

PASSWORD = "password-of-the-app"


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def row(**changed: Any) -> dict[str, Any]:
    return {"name": "app", "entry": "main", "passwords": [PASSWORD], "read_only": False, **changed}


def write(file: Path, rows: Any) -> None:
    """Write as the agent does: another file, renamed into its place."""
    new = file.with_suffix(".new")
    new.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    new.replace(file)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "keys.json", [row()])
    return tmp_path / "keys.json"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(file: Path, clock: Clock) -> Keys:
    keys = Keys(file, clock)
    keys.load()
    return keys


def test_each_password_is_a_caller(file: Path) -> None:
    """In a rotation a name has two; a name that is not in the file has none."""
    write(file, [row(passwords=["new", "old", "new"]), row(name="reader", read_only=True, entry="reports")])
    keys = Keys(file)
    keys.load()
    assert keys.callers("app") == (Caller("app", "main", "new"), Caller("app", "main", "old"))
    assert keys.callers("reader") == (Caller("reader", "reports", PASSWORD, is_read_only=True),)
    assert keys.callers("nobody") == ()


def test_nothing_is_opened_before_load(tmp_path: Path) -> None:
    """A constructor opens nothing; a file that is not there is told when it is needed."""
    keys = Keys(tmp_path / "keys.json")
    with pytest.raises(KeysUnusable, match=r"keys\.json cannot be read: No such file or directory"):
        keys.load()


def test_change_is_followed_within_a_second(keys: Keys, file: Path, clock: Clock) -> None:
    """A new user is known, and one who was taken out is refused, a second later at the latest."""
    write(file, [row(name="other")])
    assert keys.callers("app")
    clock.now += LOOK_AGAIN_SECONDS
    assert keys.callers("app") == ()
    assert keys.callers("other")


def test_look_finds_a_change_at_once(keys: Keys, file: Path) -> None:
    """For a signature that does not match yet; without a change nothing is read again."""
    assert keys.look() is False
    write(file, [row(passwords=["new"])])
    assert keys.look() is True
    assert [caller.password for caller in keys.callers("app")] == ["new"]
    assert keys.look() is False


@pytest.mark.parametrize("broken", ["", "{", "[{}]"])
def test_broken_file_changes_nothing_and_is_told_once(
    keys: Keys, file: Path, clock: Clock, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    """Those of before are used until a right file is there."""
    write(file, broken)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.now += LOOK_AGAIN_SECONDS
            assert keys.callers("app")
    assert len(caplog.records) == 1
    assert "those of before are used" in caplog.text
    write(file, [row(name="other")])
    clock.now += LOOK_AGAIN_SECONDS
    assert keys.callers("other")


def test_missing_file_changes_nothing_and_is_told_once(
    keys: Keys, file: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """As a broken one."""
    file.unlink()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.now += LOOK_AGAIN_SECONDS
            assert keys.callers("app")
    assert len(caplog.records) == 1
    write(file, [row(name="other")])
    clock.now += LOOK_AGAIN_SECONDS
    assert keys.callers("other")


@pytest.mark.parametrize(
    "rows",
    [
        {},
        "not JSON",
        [1],
        [row(), row()],
        [row(name="")],
        [row(name=7)],
        [row(entry="")],
        [row(passwords=[])],
        [row(passwords=PASSWORD)],
        [row(passwords=[""])],
        [row(passwords=[PASSWORD, None])],
        [row(read_only="no")],
        [row(more=1)],
        [{name: value for name, value in row().items() if name != "read_only"}],
    ],
)
def test_other_form_is_refused_without_showing_anything(file: Path, rows: Any) -> None:
    """The message says what the file must have, and nothing of what it has."""
    write(file, rows)
    with pytest.raises(KeysUnusable, match=r"keys\.json must be") as caught:
        Keys(file).load()
    assert PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_repr_shows_no_password(keys: Keys) -> None:
    """Whoever logs them logs no secret."""
    assert PASSWORD not in f"{keys!r} {keys.callers('app')!r}"
