"""What RDS makes of `max_connections` when nobody sets it: an estimate from below, by the class of the instance.

RDS computes LEAST({DBInstanceClassMemory/9531392}, 5000), where the memory is what its own processes leave of the
class's. How much that is, is not documented; AWS's table for Aurora Serverless v2 tells it for four sizes (189 for 2
GiB, 823 for 8, 1669 for 16, 3360 for 32), and what is missing there grows as a share of the memory and a constant. The
estimate takes a little more of both, so that it stays below each. Knows nothing of the CDK.
"""

from __future__ import annotations

import re

BYTES_PER_CONNECTION = 9_531_392
MOST_BY_MEMORY = 5000
GIB = 2**30
SHARE_THAT_IS_LEFT = 0.93
TAKEN_BYTES = 220_000_000
GIB_PER_CAPACITY_UNIT = 2
# With less than one capacity unit at least, AWS allows no more, whatever the most is.
SMALL_MINIMUM_UNITS = 0.5
MOST_FROM_A_SMALL_MINIMUM = 2000
# GiB of a `large`; each size of a family has twice that of the one before.
LARGE_GIB = {"t": 8, "m": 8, "r": 16, "x": 32}
SHARES_OF_LARGE = {"micro": 1 / 8, "small": 1 / 4, "medium": 1 / 2, "large": 1, "xlarge": 2}
# Older generations have odd sizes.
INSTANCE_CLASS = re.compile(r"db\.(t[2-9]|m[4-9]|r[5-9]|x[2-9])[a-z-]*\.(?:(\d+)x(?=large))?([a-z]+)")


def by_memory(gib: float) -> int:
    """Return the connections that RDS allows at least with so much memory."""
    left = max(gib * GIB * SHARE_THAT_IS_LEFT - TAKEN_BYTES, 0)
    return min(int(left / BYTES_PER_CONNECTION), MOST_BY_MEMORY)


def by_instance_class(name: str) -> int | None:
    """Return the estimate for a class such as db.t4g.micro; None for one whose memory is not known here."""
    memory = memory_gib(name)
    return None if memory is None else by_memory(memory)


def by_capacity(min_units: float, max_units: float) -> int:
    """Return the estimate for Aurora Serverless v2: by its most capacity units, whatever it has at the moment."""
    most = MOST_FROM_A_SMALL_MINIMUM if min_units <= SMALL_MINIMUM_UNITS else MOST_BY_MEMORY
    return min(by_memory(max_units * GIB_PER_CAPACITY_UNIT), most)


def memory_gib(instance_class: str) -> float | None:
    """Return the memory of a class; None when its name is not of the known families. Some have more than is told."""
    found = INSTANCE_CLASS.fullmatch(instance_class)
    if found is None:
        return None
    family, times, size = found.groups()
    if size not in SHARES_OF_LARGE:
        return None
    # The 2 of 2xlarge was taken off: what is left reads large.
    share = SHARES_OF_LARGE["xlarge"] * int(times) if times else SHARES_OF_LARGE[size]
    return LARGE_GIB[family[0]] * share
