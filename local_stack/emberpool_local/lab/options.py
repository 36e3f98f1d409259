"""What a run of the lab is asked for, and the command line that asks for the same again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ENVIRONMENTS, TASKS, SECONDS = 40, 3, 60.0
FEWEST_TASKS, MOST_TASKS = 2, 4  # below the rig's most_tasks: one more comes before another goes
MOST_ENVIRONMENTS = 200


@dataclass(frozen=True)
class LabOptions:
    """What is run. `faults` are done alone and in this order; without any, faults of chance for `seconds`."""

    seed: int
    seconds: float = SECONDS
    faults: tuple[str, ...] = ()
    environments: int = ENVIRONMENTS
    tasks: int = TASKS
    network: Literal["namespaces", "loopback"] | None = None  # None: namespaces where they can be had
    is_each: bool = False  # `faults` are all that there are

    @property
    def command(self) -> str:
        """The command line that does the same again."""
        words = ["emberpool chaos", f"--seed {self.seed}"]
        if self.is_each:
            words.append("--each")
        else:
            words += [f"--fault {name}" for name in self.faults] or [f"--seconds {self.seconds:g}"]
        given = (("--environments", self.environments, ENVIRONMENTS), ("--tasks", self.tasks, TASKS))
        words += [f"{name} {value}" for name, value, default in given if value != default]
        words += [f"--network {self.network}"] if self.network else []
        return " ".join(words)
