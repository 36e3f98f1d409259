"""The key pairs that callers sign with: a file that the agent writes and renames into its place, looked at for changes.

JSON, a list of {"name", "entry", "passwords", "read_only"}: a client user of the pool is a key pair's access key id,
each of its passwords a secret access key. In a rotation there are two. Nothing of the file is ever shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from emberpool_proxy.data_endpoint.calls import Caller
from emberpool_proxy.errors import ProxyError
from emberpool_proxy.log import logger

LOOK_AGAIN_SECONDS = 1.0  # until a user who was taken out of the file is refused
_MEMBERS = {"name", "entry", "passwords", "read_only"}

_Stamp = tuple[int, int, int]
_Callers = Mapping[str, tuple[Caller, ...]]


class KeysUnusable(ProxyError):  # noqa: N818 (named by what to do)
    """The file of key pairs cannot be read or has another form: mend what the message names."""


class Keys:
    """Who may call, by name. Opens nothing until `load()`."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._callers: _Callers = {}
        self._stamp: _Stamp | None = None
        self._look_at = 0.0

    def load(self) -> None:
        """Read the file. Raises KeysUnusable."""
        self._look_at = self._clock() + LOOK_AGAIN_SECONDS
        try:
            self._stamp = self._stamp_now()
            content = self._file.read_bytes()
        except OSError as error:
            raise KeysUnusable(f"the keys in {self._file} cannot be read: {error.strerror}") from None
        self._callers = _read(content, self._file)

    def callers(self, name: str) -> tuple[Caller, ...]:
        """Return one caller for each password that is valid for the name now; none for a name that is unknown."""
        if self._clock() >= self._look_at:
            self.look()
        return self._callers.get(name, ())

    def look(self) -> bool:
        """Read the file again if it has changed, and say whether it has; what cannot be read changes nothing."""
        self._look_at = self._clock() + LOOK_AGAIN_SECONDS
        try:
            if self._stamp_now() == self._stamp:
                return False
        except OSError as error:
            if self._stamp is not None:
                self._stamp = None  # said once; the next file that is there is read
                logger.warning(
                    "the keys in %s are not there, so those of before are used: %s", self._file, error.strerror
                )
            return False
        try:
            self.load()
        except KeysUnusable as error:
            logger.warning("%s; those of before are used", error)
            return False
        return True

    def _stamp_now(self) -> _Stamp:
        found = self._file.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size


def _read(content: bytes, file: Path) -> _Callers:
    try:
        rows = orjson.loads(content)
    except orjson.JSONDecodeError:
        rows = None
    if not isinstance(rows, list):
        raise KeysUnusable(f"the keys in {file} must be a JSON list")
    found: dict[str, tuple[Caller, ...]] = {}
    for index, row in enumerate(rows):
        callers = _callers_in(row)
        if callers is None or callers[0].name in found:
            raise KeysUnusable(
                f"the key at position {index} in {file} must be an object with name, entry, passwords (a list) and "
                "read_only, and a name of its own"
            )
        found[callers[0].name] = callers
    return found


def _callers_in(row: Any) -> tuple[Caller, ...] | None:
    """Return one caller for each password; None for a row of another form."""
    if not isinstance(row, dict) or row.keys() != _MEMBERS:
        return None
    name, entry, passwords, is_read_only = row["name"], row["entry"], row["passwords"], row["read_only"]
    if not (_is_text(name) and _is_text(entry) and isinstance(is_read_only, bool)):
        return None
    if not isinstance(passwords, list) or not passwords or not all(map(_is_text, passwords)):
        return None
    return tuple(Caller(name, entry, password, is_read_only) for password in dict.fromkeys(passwords))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
