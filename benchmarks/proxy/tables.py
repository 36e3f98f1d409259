"""The goals beside what was measured of one task in this run."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.lines import Line
from benchmarks.proxy import throughput
from benchmarks.proxy.storms import Repetition
from benchmarks.proxy.throughput import Block, Throughput
from benchmarks.series import ratios

GOAL_THROUGHPUT_RATIO = 0.97
GOAL_LOGIN_RATIO = 0.95
GOAL_MEMORY_RATIO = 1.02  # "as PgBouncer's", and what two storms differ by
GOAL_TASK_MIB = 450.0
GOAL_AGENT_CPU_PERCENT = 2.0
GOAL_AGENT_MIB = 80.0
GOAL_START_SECONDS = 1.5


def throughput_lines(found: Throughput) -> list[Line]:
    """Return the ratios of transactions a second, workload by workload."""
    lines = []
    for workload, pools in found.by_workload.items():
        ours, bare = pools[throughput.OURS], pools[throughput.BARE]
        what = f"transactions/s against bare PgBouncer: {workload}"
        lines.append(Line(what, "ratio", ratios(_rates(ours), _rates(bare)), 3, at_least=GOAL_THROUGHPUT_RATIO))
    for workload, pools in found.by_workload.items():
        ours, bare = pools[throughput.OURS], pools[throughput.BARE]
        what = f"CPU of a transaction, agent included, against bare: {workload}"
        lines.append(Line(what, "ratio", ratios(_cpu(ours), _cpu(bare)), 3))
    for workload, pools in found.by_workload.items():
        what = f"transactions/s of reset_policy always against tracked: {workload}"
        slowed = ratios(_rates(pools[throughput.RESET]), _rates(pools[throughput.OURS]))
        lines.append(Line(what, "ratio", slowed, 2))
    return lines


def _rates(blocks: Sequence[Block]) -> list[float]:
    return [block.transactions_per_second for block in blocks]


def _cpu(blocks: Sequence[Block]) -> list[float]:
    return [block.cpu_us_per_transaction for block in blocks]


def storm_lines(found: Sequence[Repetition], clients: int) -> list[Line]:
    """Return what starts, logins and held clients cost."""
    ours, bare = [one.ours for one in found], [one.bare for one in found]
    rates = ratios([one.logins_per_second for one in ours], [one.logins_per_second for one in bare])
    memory = ratios([one.kib_per_client for one in ours], [one.kib_per_client for one in bare])
    login_cpu = ratios([one.login_cpu_us for one in ours], [one.login_cpu_us for one in bare])
    failed = [float(sum(one.failures.values())) for one in ours]
    held = f"{clients} TLS clients held"
    return [
        Line("start to the first row", "s", [one.start_seconds for one in found], 2, at_most=GOAL_START_SECONDS),
        Line("start to the first row: CPU of all processes", "s", [one.start_cpu_seconds for one in found], 2),
        Line(f"{clients} TLS and SCRAM logins at once: failed", "", failed, 0, at_most=0),
        Line("logins/s against bare PgBouncer, P-256", "ratio", rates, 3, at_least=GOAL_LOGIN_RATIO),
        Line("logins/s", "1/s", [one.logins_per_second for one in ours], 0),
        Line("PgBouncer's CPU of a login against bare", "ratio", login_cpu, 3),
        Line("memory of an idle TLS client against bare", "ratio", memory, 3, at_most=GOAL_MEMORY_RATIO),
        Line("memory of an idle TLS client", "KiB", [one.kib_per_client for one in ours], 1),
        Line(f"{held}: the whole task", "MiB", [one.task_mib for one in ours], 0, at_most=GOAL_TASK_MIB),
        Line(
            f"{held}: the agent's CPU",
            "% of a core",
            [one.agent.cpu_percent for one in found],
            2,
            at_most=GOAL_AGENT_CPU_PERCENT,
        ),
        Line(f"{held}: the agent", "MiB", [one.agent.resident_mib for one in found], 0, at_most=GOAL_AGENT_MIB),
        Line(f"{held}: the supervisor's CPU", "% of a core", [one.agent.supervisor_cpu_percent for one in found], 2),
    ]
