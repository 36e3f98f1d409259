"""How long things take in a simulated fleet. All in seconds; a pair is the bounds of a uniform distribution."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

Span = tuple[float, float]


def draw(random: Random, span: Span) -> float:
    """Return a time within the span."""
    return span[0] + (span[1] - span[0]) * random.random()


@dataclass(frozen=True)
class Timing:
    """The times of one world. The defaults are a task and its database in one region, measured or documented."""

    network: Span = (0.0003, 0.003)  # one way between an agent and the database
    console: Span = (0.0005, 0.01)  # an answer of PgBouncer's console
    reload: Span = (0.002, 0.03)  # until a RELOAD is in force
    control_login: Span = (0.01, 0.05)
    server_login: Span = (0.008, 0.03)
    backend_end: Span = (0.0005, 0.004)  # PgBouncer has closed it; the database still counts it
    idle_close: Span = (0.05, 0.33)  # a short server_lifetime is seen by PgBouncer's janitor
    lost_notice: Span = (0.0, 0.2)  # the control connection's end, until the agent has lowered its limits
    pgbouncer_restart: Span = (0.05, 0.5)
    agent_restart: Span = (0.5, 2.0)
    step_delay: Span = (0.0, 0.002)  # the agent's own work; a slow agent's is `slow_step`
    slow_step: Span = (0.0, 1.0)
    probe_every: Span = (3.0, 15.0)  # logins of the agent's own, one at a time
    probe: Span = (0.01, 0.03)
    server_idle: float = 2.0  # server_idle_timeout
    login_retry: float = 0.5  # server_login_retry
    connect_timeout: float = 3.0
    orphan_check: float = 0.05  # client_connection_check_interval: a busy backend of a dead PgBouncer ends within it
    question_deadline: float = 12.0  # the client's side of the control connection
    vanished_pool: float = 11.0  # the database's keepalives on the pools' connections
    vanished_session: float = 30.0  # and on control connections
