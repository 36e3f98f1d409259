"""What happens between the parts: ways fall silent, get slow, lose packets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from emberpool_local.lab.faults.fault import Fault
from emberpool_local.lab.faults.tasks import AFTERMATH_SECONDS, has_one_to_spare
from emberpool_local.lab.network import Node
from emberpool_local.lab.rig import Rig

DELAY_SECONDS = (0.001, 0.015)  # one way: between two zones to between two regions that are neighbours
LOSS = (0.005, 0.03)  # of the packets; a link is taken for broken long before that


@asynccontextmanager
async def database_partition(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Let nothing through between one task and the database."""
    task = chance.choice(rig.tasks)
    rig.note(f"{task.host} is cut off from the database")
    with rig.network.silence(task.node, rig.database.primary_node):
        yield f"task {task.host} and the database"
    rig.note(f"{task.host} reaches the database again")


@asynccontextmanager
async def functions_partition(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Let nothing through between the functions, that is the balancer, and one task."""
    task = chance.choice(rig.tasks)
    rig.note(f"{task.host} is cut off from the functions")
    with rig.network.silence(task.node, rig.network.node("balancer")):
        yield f"task {task.host} and the functions"
    rig.note(f"{task.host} is reached by the functions again")
    await asyncio.to_thread(rig.wait_until_balanced)


@asynccontextmanager
async def network_delay(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Make every packet of one side late, to the functions or to the database."""
    delay = chance.uniform(*DELAY_SECONDS)
    words, pairs = _one_side(rig, chance)
    rig.note(f"{2000 * delay:.0f} ms of round trip on {words}")
    with ExitStack() as impaired:
        for a, b in pairs:
            impaired.enter_context(rig.network.impair(a, b, delay_seconds=delay, jitter_seconds=delay / 2))
        yield f"{words}, {2000 * delay:.0f} ms of round trip"
    rig.note(f"no delay on {words} any more")


@asynccontextmanager
async def packet_loss(rig: Rig, chance: random.Random) -> AsyncIterator[str]:
    """Lose some of the packets of one side."""
    loss = chance.uniform(*LOSS)
    words, pairs = _one_side(rig, chance)
    rig.note(f"{100 * loss:.1f}% of the packets on {words} are lost")
    with ExitStack() as impaired:
        for a, b in pairs:
            impaired.enter_context(rig.network.impair(a, b, loss=loss))
        yield f"{words}, {100 * loss:.1f}% of the packets"
    rig.note(f"no packets are lost on {words} any more")


def _one_side(rig: Rig, chance: random.Random) -> tuple[str, list[tuple[Node, Node]]]:
    words, other = chance.choice(
        [
            ("the ways to the functions", rig.network.node("balancer")),
            ("the ways to the database", rig.database.primary_node),
        ]
    )
    return words, [(task.node, other) for task in rig.tasks]


FAULTS_OF_THE_NETWORK = (
    Fault(
        name="database-partition",
        title="A task is cut off from the database",
        promise="its clients wait, up to query_wait: nothing fails, the fleet stays within the budget",
        happen=database_partition,
        # TCP sends again after up to twice as long, which has to be below the lab's query_wait.
        lasts_seconds=(1.0, 4.0),
        is_possible=has_one_to_spare,
    ),
    Fault(
        name="functions-partition",
        title="The functions are cut off from a task",
        promise="what is in flight there fails; its environments go to another task",
        happen=functions_partition,
        may_fail_seconds=AFTERMATH_SECONDS,
        lasts_seconds=(1.0, 5.0),
        is_possible=has_one_to_spare,
    ),
    Fault(
        name="network-delay",
        title="The network is slow",
        promise="everything takes longer, nothing fails",
        happen=network_delay,
        lasts_seconds=(2.0, 6.0),
    ),
    Fault(
        name="packet-loss",
        title="The network loses packets",
        promise="some of it takes longer, nothing fails",
        happen=packet_loss,
        lasts_seconds=(2.0, 6.0),
        needs_namespaces=True,  # a relay has no packets
    ),
)
