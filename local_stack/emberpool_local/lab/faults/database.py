"""What happens to the database: it restarts, crashes, fails over, and its old writer comes back as a reader."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from emberpool_local.lab.faults.fault import Fault
from emberpool_local.lab.rig import Rig

SUBJECT = "the database"
# All shorter than query_wait_seconds, which is how long new work waits.
OUTAGE_SECONDS = (0.5, 3.0)
DETECTION_SECONDS = (0.2, 2.0)  # until somebody notices that the primary is gone, and begins the failover
LATE_NAME_SECONDS = (0.1, 3.0)  # for which the name still leads to the old writer
BACK_SECONDS = 1.0  # after the database, in which the pool is to be back


@asynccontextmanager
async def restarted_fast(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Stop the primary as for a reboot: it tells its clients; start it again at the end."""
    del chance
    rig.note("the database is stopped (fast)")
    await asyncio.to_thread(rig.database.stop, "fast")
    try:
        yield SUBJECT
    finally:
        await _started_again(rig)


@asynccontextmanager
async def restarted_immediate(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Let the primary crash; start it again at the end, when it recovers from its log."""
    del chance
    rig.note("the database crashes")
    await asyncio.to_thread(rig.database.stop, "immediate")
    try:
        yield SUBJECT
    finally:
        await _started_again(rig)


@asynccontextmanager
async def failover(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Let the primary crash and its standby take its place and its name, which moves before or after that.

    A new standby is made at the end.
    """
    database = rig.database
    is_name_first = chance.random() < 0.5  # noqa: PLR2004 (both orders happen)
    detected_after = chance.uniform(*DETECTION_SECONDS)
    rig.note("the primary crashes")
    await asyncio.to_thread(database.stop, "immediate")
    await asyncio.sleep(detected_after)
    successor = database.standby_node
    if is_name_first:
        database.lead_name(successor)
        rig.note(f"the database's name leads to {successor.address}")
    await asyncio.to_thread(database.promote_standby)
    rig.note(f"{successor.address} is the primary")
    if not is_name_first:
        database.lead_name(successor)
        rig.note(f"the database's name leads to {successor.address}")
    try:
        yield SUBJECT
    finally:
        await asyncio.to_thread(database.rebuild_standby)
        rig.note("there is a standby again")


@asynccontextmanager
async def old_primary_read_only(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Let primary and standby change places, and the name lead to the old writer, a reader now, for a while yet."""
    database = rig.database
    stale_for = chance.uniform(*LATE_NAME_SECONDS)
    rig.note("primary and standby change places")
    await asyncio.to_thread(database.stop, "fast")
    await asyncio.to_thread(database.promote_standby)
    await asyncio.to_thread(database.rejoin_as_standby)
    rig.note(f"{database.primary_node.address} is the primary; the name leads to a server that takes no writes")
    try:
        await asyncio.sleep(stale_for)
        yield SUBJECT
    finally:
        database.lead_name(database.primary_node)
        rig.note(f"the database's name leads to {database.primary_node.address}")


async def _started_again(rig: Rig) -> None:
    await asyncio.to_thread(rig.database.start)
    rig.note("the database is back")


WAITS = "what is in flight fails, the rest waits and goes on within a second of the database; no commit is lost"

FAULTS_OF_THE_DATABASE = (
    Fault(
        name="database-restart-fast",
        title="the database restarts",
        promise=WAITS,
        happen=restarted_fast,
        may_fail_seconds=BACK_SECONDS,
        lasts_seconds=OUTAGE_SECONDS,
    ),
    Fault(
        name="database-restart-immediate",
        title="the database crashes and recovers",
        promise=WAITS,
        happen=restarted_immediate,
        may_fail_seconds=BACK_SECONDS,
        lasts_seconds=OUTAGE_SECONDS,
    ),
    Fault(
        name="failover",
        title="the database fails over to its standby",
        promise=WAITS,
        happen=failover,
        may_fail_seconds=BACK_SECONDS,
        lasts_seconds=(1.0, 2.0),
    ),
    Fault(
        name="old-primary-read-only",
        title="the old writer is a reader now, and the name still leads to it",
        promise="what is in flight fails, the rest waits for a server that takes writes; no commit is lost",
        happen=old_primary_read_only,
        may_fail_seconds=BACK_SECONDS,
        lasts_seconds=(0.0, 1.0),
    ),
)
