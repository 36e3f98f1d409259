"""Which folder is the cache, and what is said when it cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emberpool_local.errors import CacheNotWritable
from emberpool_local.host.cache import CACHE_DIR, cache_folder, program_cache_folder
from emberpool_local.host.server_user import can_enter, server_user


def test_the_variable_wins_over_xdg_and_xdg_over_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is the first of the three that is set, and it is made."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(CACHE_DIR, raising=False)
    assert cache_folder() == tmp_path / "home" / ".cache" / "emberpool"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "emberpool"
    monkeypatch.setenv(CACHE_DIR, str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    assert (tmp_path / "own").is_dir()


def test_a_cache_that_cannot_be_written_names_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which folder it was and the next step."""
    monkeypatch.setenv(CACHE_DIR, "/proc/emberpool")  # not even root can write there
    with pytest.raises(CacheNotWritable) as caught:
        cache_folder()
    assert "/proc/emberpool" in caught.value.problem
    assert CACHE_DIR in caught.value.next_step


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs its servers as another user")
def test_programs_of_root_are_kept_where_the_servers_user_gets_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache in a closed home folder is not used for programs."""
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    monkeypatch.setenv(CACHE_DIR, str(closed / "cache"))
    user = server_user()
    assert user is not None
    assert not can_enter(user, cache_folder())
    assert can_enter(user, program_cache_folder())
