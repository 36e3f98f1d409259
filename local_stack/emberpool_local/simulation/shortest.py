"""Shortens a plan that breaks a promise: faults are dropped one by one while it still breaks the same one."""

from __future__ import annotations

from dataclasses import replace

from emberpool_local.simulation.agent_model import Step
from emberpool_local.simulation.world import Outcome, run
from emberpool_proxy.agent import decide


def shortest(outcome: Outcome, step: Step = decide.step) -> Outcome:
    """Return an outcome with as few faults as breaks the promise that `outcome` broke."""
    promise = outcome.promise
    index = len(outcome.plan.faults) - 1
    while index >= 0:
        faults = outcome.plan.faults
        shorter = run(replace(outcome.plan, faults=faults[:index] + faults[index + 1 :]), step)
        if shorter.promise == promise:
            outcome = shorter
        index = min(index, len(outcome.plan.faults)) - 1
    return outcome
