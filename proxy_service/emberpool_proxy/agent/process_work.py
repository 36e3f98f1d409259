"""Whether a process works: what tells one that is busy from one that hangs, when neither answers."""

from __future__ import annotations

import os
from pathlib import Path

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used; 0 when it is gone, or hidden from us."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    words = text.rpartition(")")[2].split()  # the name, in parentheses, may hold anything
    user, system = int(words[11]), int(words[12])
    return (user + system) / TICKS_A_SECOND
