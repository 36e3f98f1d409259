"""The execution environments behind one pool: each thinks, asks for a transaction, and thinks again. Counts only."""

from __future__ import annotations

from random import Random

from emberpool_local.simulation.clock import Clock
from emberpool_local.simulation.pgbouncer_model import Pool
from emberpool_local.simulation.timing import Span, draw

REFUSED_RETRY_SECONDS = 0.2  # a client whose proxy does not run connects again


class Clients:
    """So many environments as `target` says; they come within a moment, and leave after their transaction."""

    def __init__(self, clock: Clock, random: Random, pool: Pool, think: Span) -> None:
        self._clock = clock
        self._random = random
        self._pool = pool
        self._think = think
        self._crowd = 0  # all that were there before a crash come anew
        self.target = 0
        self.present = 0
        pool.on_served = self._served

    def become(self, target: int, within_seconds: float = 0.1) -> None:
        """Let environments come or go until there are `target`."""
        self.target = target
        for _ in range(target - self.present):
            self.present += 1
            self._clock.after(self._random.random() * within_seconds, self._ask, self._crowd)

    def connect_again(self, within_seconds: float) -> None:
        """All of them lost their connection, and come back."""
        self._crowd += 1
        self.present = 0
        self.become(self.target, within_seconds)

    def _ask(self, crowd: int) -> None:
        if crowd != self._crowd:
            return
        if self.present > self.target:
            self.present -= 1
        elif self._pool.is_running:
            self._pool.query()
        else:
            self._clock.after(REFUSED_RETRY_SECONDS, self._ask, crowd)

    def _served(self) -> None:
        self._clock.after(draw(self._random, self._think), self._ask, self._crowd)
