"""A plan: everything that a world depends on. The same plan runs the same way; a seed makes a plan."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from emberpool_local.simulation.faults import SILENT, Fault, Kind
from emberpool_local.simulation.timing import Timing

FAULTS_SECONDS = 20.0  # then nothing new happens, all tasks are hungry for a while, and then none is
STEADY_SECONDS = 12.0
SILENCE_SECONDS = 34.0  # until the database's keepalives, and the tasks' own deadlines, have found everything out


@dataclass(frozen=True)
class Plan:
    """One world. `environments` are those of each task in the steady part."""

    seed: int
    tasks: int = 2
    most_tasks: int = 4
    floor: int = 2
    slots: int = 12
    processes: int = 1
    entries: int = 1
    environments: int = 30
    transaction: tuple[float, float] = (0.02, 0.3)
    think: tuple[float, float] = (0.0, 0.3)  # of an environment, between two transactions
    longest_transaction: float = 2.0
    long_share: float = 0.01
    spare_connections: int = 20
    shows_addresses: bool = True  # the database tells the tasks' connections apart, as on Fargate
    timing: Timing = field(default_factory=Timing)
    faults: tuple[Fault, ...] = ()
    faults_seconds: float = FAULTS_SECONDS

    @property
    def budget(self) -> int:
        """Connections that the fleet may have."""
        return self.most_tasks * (self.floor + 2) + self.slots

    @property
    def _silence(self) -> float:
        ends = [fault.at + fault.seconds for fault in self.faults if fault.kind in SILENT]
        return max(0.0, max(ends) + SILENCE_SECONDS - self.faults_seconds) if ends else 0.0

    @property
    def steady_from(self) -> float:
        """When the last trace of the faults is to be gone."""
        return self.faults_seconds + self._silence

    @property
    def quiet_from(self) -> float:
        """When the last client leaves."""
        return self.steady_from + STEADY_SECONDS + self.longest_transaction

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.tasks} of at most {self.most_tasks} tasks x ({self.processes} PgBouncers x "
            f"{self.entries} entries), floor {self.floor}, {self.slots} slots, budget {self.budget}, "
            f"{self.environments} environments a task, transactions {self.transaction} s, "
            f"{self.long_share:.0%} up to {self.longest_transaction:.1f} s"
        )


ONE_BY_ONE = (
    Kind.KILL_PGBOUNCER,
    Kind.KILL_AGENT,
    Kind.KILL_TASK,
    Kind.VANISH,
    Kind.CUT_CONTROL,
    Kind.PARTITION,
    Kind.SLOW_AGENT,
    Kind.RESTART_DATABASE,
    Kind.LOWER_MAX_CONNECTIONS,
    Kind.OTHER_CLIENTS,
)
DOUBLES = (Kind.KILL_PGBOUNCER, Kind.KILL_AGENT, Kind.CUT_CONTROL)  # soon after another fault of the same task
DOUBLE_FAULT_SHARE = 0.3


def plan_of(seed: int) -> Plan:
    """Return the plan that the seed makes: a shape, a changing demand, and some faults or a deployment."""
    random = Random(seed)  # noqa: S311 (a reproducible world)
    processes, entries = random.choice(((1, 1), (1, 1), (1, 2), (2, 1)))
    pools = processes * entries
    tasks = random.randint(2, 4)
    happens = random.choice((_single_faults, _single_faults, _deployment, _autoscaling))
    plan = Plan(
        seed=seed,
        tasks=tasks,
        most_tasks=tasks + {_single_faults: 0, _deployment: 2, _autoscaling: 4}[happens],
        floor=2 * pools - 1 + random.randint(0, 2),
        slots=random.choice((1, 3, 8, 16, 24)),
        processes=processes,
        entries=entries,
        environments=random.choice((8, 20, 40)),
        longest_transaction=random.choice((0.5, 2.0, 6.0)),
        long_share=random.choice((0.0, 0.02, 0.3)),
        timing=Timing(control_login=random.choice(((0.01, 0.05), (0.2, 1.0)))),
    )
    faults = sorted((*_demand(random, plan), *happens(random, plan)), key=lambda fault: fault.at)
    return replace(plan, faults=tuple(faults))


def _moment(random: Random, from_second: float = 1.0, to_second: float = FAULTS_SECONDS) -> float:
    return round(random.uniform(from_second, to_second), 2)


def _demand(random: Random, plan: Plan) -> list[Fault]:
    first = [
        Fault(0.0, Kind.DEMAND, task, amount=random.choice((0, 2, plan.environments, plan.environments)))
        for task in range(plan.tasks)
    ]
    later = [
        Fault(
            _moment(random),
            Kind.DEMAND,
            random.randrange(6),
            amount=random.choice((0, 1, 5, plan.environments, 2 * plan.environments)),
        )
        for _ in range(random.randint(0, 8))
    ]
    return first + later


def _single_faults(random: Random, plan: Plan) -> list[Fault]:
    faults = []
    for _ in range(random.choice((0, 1, 1, 2, 2, 3, 4))):
        kind, at = random.choice(ONE_BY_ONE), _moment(random)
        seconds, amount = 0.0, 0
        if kind is Kind.PARTITION:
            seconds = random.choice((1.0, 5.0, 13.0, 20.0, 32.0))
        elif kind in {Kind.SLOW_AGENT, Kind.LOWER_MAX_CONNECTIONS, Kind.OTHER_CLIENTS}:
            seconds, amount = _moment(random, 1, 10), random.randint(1, plan.slots + 8)
        elif kind is Kind.RESTART_DATABASE:
            seconds = random.choice((0.0, 0.3, 2.0, 6.0))
        elif kind is Kind.KILL_PGBOUNCER:
            amount = random.randrange(plan.processes)
        task = random.randrange(6)
        faults.append(Fault(at, kind, task, seconds, amount))
        if random.random() < DOUBLE_FAULT_SHARE:
            faults.append(Fault(at + _moment(random, 0, 0.5), random.choice(DOUBLES), task))
        if kind in {Kind.KILL_TASK, Kind.VANISH}:  # ECS starts another, not before the old one's connections are gone
            later = _moment(random, 1, 3) if kind is Kind.KILL_TASK else _moment(random, 12, 30)
            faults.append(Fault(at + later, Kind.START_TASK))
    return faults


def _deployment(random: Random, plan: Plan) -> list[Fault]:
    """Two new tasks, then two old ones drain; the new ones may promise fewer slots."""
    at, fewer = _moment(random, 2, 8), random.choice((0, 0, plan.slots // 2))
    start = [Fault(at + index * 0.3, Kind.START_TASK, amount=fewer) for index in range(2)]
    stop = [Fault(at + _moment(random, 3, 8), Kind.STOP_TASK) for _ in range(2)]
    return start + stop


def _autoscaling(random: Random, plan: Plan) -> list[Fault]:
    more = plan.most_tasks - plan.tasks
    start = [Fault(_moment(random, 2, 8), Kind.START_TASK) for _ in range(more)]
    stop = [Fault(_moment(random, 10, 18), Kind.STOP_TASK, random.randrange(6)) for _ in range(more)]
    return start + stop
