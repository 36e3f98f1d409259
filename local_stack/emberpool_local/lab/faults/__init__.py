"""Everything that can go wrong in the lab: `FAULTS`, by name, in the order in which they are run one by one."""

from __future__ import annotations

from collections.abc import Mapping

from emberpool_local.lab.faults.budget import FAULTS_OF_THE_BUDGET
from emberpool_local.lab.faults.credentials import FAULTS_OF_CREDENTIALS
from emberpool_local.lab.faults.database import FAULTS_OF_THE_DATABASE
from emberpool_local.lab.faults.environments import FAULTS_OF_ENVIRONMENTS
from emberpool_local.lab.faults.fault import Fault
from emberpool_local.lab.faults.machine import FAULTS_OF_THE_MACHINE
from emberpool_local.lab.faults.network import FAULTS_OF_THE_NETWORK
from emberpool_local.lab.faults.tasks import FAULTS_OF_TASKS

__all__ = ["FAULTS", "Fault"]

_ALL = (
    *FAULTS_OF_TASKS,
    *FAULTS_OF_ENVIRONMENTS,
    *FAULTS_OF_THE_NETWORK,
    *FAULTS_OF_THE_BUDGET,
    *FAULTS_OF_THE_DATABASE,
    *FAULTS_OF_CREDENTIALS,
    *FAULTS_OF_THE_MACHINE,
)
FAULTS: Mapping[str, Fault] = {fault.name: fault for fault in _ALL}
