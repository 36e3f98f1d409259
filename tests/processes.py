"""What the kernel tells of a process that may end at any moment: also between the opening of a file and its reading."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

GONE = (FileNotFoundError, ProcessLookupError)


def is_running(pid: int | str) -> bool:
    """Whether the process exists; one that has ended and that its parent has not fetched yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except GONE:
        return False


def children_of(pid: int) -> set[int]:
    """Return the processes that any thread of it has started and that are its own."""
    found: set[int] = set()
    for threads in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(*GONE):
            found |= {int(child) for child in threads.read_text().split()}
    return found


def command_line(pid: int) -> list[str]:
    """Return its arguments; none when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except GONE:
        return []
