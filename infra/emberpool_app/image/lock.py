"""The lock file that the image's Python packages come from: which lines hold for the image, and their hashes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from packaging.requirements import Requirement

from emberpool_app.image.contents import normalized

# The image's: CPython on Linux. Other lines of the lock are for machines that it is not.
ENVIRONMENT = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "sys_platform": "linux",
}
HASH = "--hash=sha256:"


class LockUnreadable(RuntimeError):  # noqa: N818 (named by what is wrong, as all errors of emberpool)
    """A line of the lock file is not `name==version` with hashes: run `make lock`."""


@dataclass(frozen=True, slots=True)
class LockedPackage:
    """One distribution of the lock. `sha256` are the hashes of all its files: one of them was installed."""

    name: str
    version: str
    sha256: tuple[str, ...]


def locked_packages(lock: str) -> list[LockedPackage]:
    """Return the packages of a lock file that hold for the image. Raises LockUnreadable."""
    found = []
    for line in _logical_lines(lock):
        words, *hashes = (part.strip() for part in line.split(HASH))
        requirement = Requirement(words)
        pins = [pin for pin in requirement.specifier if pin.operator == "=="]
        if len(pins) != 1 or not hashes:
            raise LockUnreadable(f"the lock has the line {words!r} without a pin or without hashes; run `make lock`")
        if requirement.marker is None or requirement.marker.evaluate(dict(ENVIRONMENT)):
            found.append(LockedPackage(normalized(requirement.name), pins[0].version, tuple(hashes)))
    return found


def _logical_lines(lock: str) -> Iterator[str]:
    for line in lock.replace("\\\n", " ").splitlines():
        words = line.partition("#")[0].strip()
        if words and not words.startswith("-"):
            yield words
