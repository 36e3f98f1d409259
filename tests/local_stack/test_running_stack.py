"""`emberpool invoke` finds a running `emberpool up`, and none that has ended."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from emberpool_local.host.cache import CACHE_DIR
from emberpool_local.running_stack import FILE_NAME, RunningStack, announced, find_running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv(CACHE_DIR, str(tmp_path))
    return tmp_path


def test_announced_stack_is_found_and_gone_afterwards(cache: Path) -> None:
    """The environment arrives whole, in a file that only its user reads, and the file is removed."""
    with announced({"EMBERPOOL_HOST": "127.0.0.1"}) as path:
        assert path.stat().st_mode & 0o777 == 0o600
        assert find_running() == RunningStack(os.getpid(), {"EMBERPOOL_HOST": "127.0.0.1"})
    assert find_running() is None
    assert list(cache.iterdir()) == []


def test_file_of_a_killed_process_is_not_believed(cache: Path) -> None:
    """A file that nobody holds the lock of is stale, even if its pid is alive, and is removed."""
    stale = cache / FILE_NAME
    stale.write_text(json.dumps({"pid": os.getpid(), "environment": {}}))
    assert find_running() is None
    assert not stale.exists()


def test_the_first_of_two_stacks_does_not_remove_the_second_ones_file() -> None:
    """The last stack that was announced is found, also after the first has ended."""
    first = announced({"EMBERPOOL_PORT": "1"})
    first.__enter__()
    with announced({"EMBERPOOL_PORT": "2"}):
        first.__exit__(None, None, None)
        found = find_running()
        assert found is not None
        assert found.environment == {"EMBERPOOL_PORT": "2"}


def test_password_is_not_shown_in_the_repr() -> None:
    """A running stack that ends up in a log or a traceback shows no password."""
    assert "s3cret" not in repr(RunningStack(1, {"EMBERPOOL_PASSWORD": "s3cret"}))
