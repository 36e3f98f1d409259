"""What the endpoint holds after each part of many requests; each is an invocation of its own, whose answer is kept."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.command import Progress
from benchmarks.data import load
from benchmarks.data.servers import NUMBERED, Rig
from benchmarks.data.statements import ONE_ROW
from benchmarks.proxy.pair import resident_mib

from emberpool_proxy.data_endpoint.once import MOST_ANSWERS

CONNECTIONS = 32
PARTS = 10
FILLED = MOST_ANSWERS * 5 // 4  # requests after which the endpoint remembers as many answers as it may


@dataclass(frozen=True)
class Memory:
    """Resident MiB before the first request and after each part of them."""

    before_mib: float
    requests: list[int]
    mib: list[float]


def measure(rig: Rig, requests: int, progress: Progress) -> Memory:
    """Send so many requests to the endpoint as deployed, and look at its memory ten times."""
    pid = rig.servers[NUMBERED].pid
    before, counts, mib = resident_mib([pid]), [], []
    for part in range(1, PARTS + 1):
        progress(f"memory {part} of {PARTS}: {requests // PARTS} requests")
        # Signed anew for each part: a signature is good for five minutes.
        load.run(rig.plan(NUMBERED, ONE_ROW, CONNECTIONS, 0, requests=requests // PARTS))
        counts.append(part * (requests // PARTS))
        mib.append(resident_mib([pid]))
    return Memory(before, counts, mib)
