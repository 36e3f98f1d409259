"""What the layer reports: log lines at once, metrics of an invocation at its end in one line.

A warm invocation to which nothing happened is only counted. Reporting never makes an invocation fail: by then its
transaction may be committed.

The reasons and texts are fixed phrases of ours, never an error's text or a statement: they go to the log as they are.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable

from emberpool import emf
from emberpool.metrics import (
    COLD_INVOCATIONS,
    CONNECTION_OPEN_TIME,
    CONNECTIONS_REPLACED,
    DEADLINE_CANCELS,
    POOL_WAIT_TIME,
    RETRIES,
    WARM_INVOCATIONS,
    Metric,
)

# BEGIN takes a round trip, at most a few ms within a region. Above this the pool kept it waiting.
REPORTED_WAIT_MS = 50.0
# Counts of warm invocations wait for another line, but not longer: a line an environment every five minutes costs
# next to nothing, and CloudWatch still shows them the same quarter of an hour.
LONGEST_COUNTING_SECONDS = 300.0


class Recorder:
    """Collects what happens to the connections of this process. Its methods may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock  # the wall clock: the others stand still while the environment is frozen
        self._warned: set[str] = set()
        self.start_anew()

    def start_anew(self) -> None:
        """Forget everything but the warnings. A forked child does: its parent reports what the parent collected."""
        # A thread that opens a connection during init records while the first invocation ends. Reentrant: the
        # handler of SIGTERM flushes, and it may interrupt one of these methods in the same thread. A new one, as
        # the fork may have happened while another thread held it.
        self._lock = threading.RLock()
        self._clear()

    def _clear(self) -> None:
        self._counts: dict[Metric, int] = {}
        self._times: dict[Metric, list[float]] = {}
        self._reasons: dict[str, list[str]] = {}
        self._warm = 0
        self._due_at = self._clock() + LONGEST_COUNTING_SECONDS

    def opened(self, duration_ms: float, is_cold: bool) -> None:
        """Record that a connection was opened within `duration_ms`."""
        with self._lock:
            _keep(self._times.setdefault(CONNECTION_OPEN_TIME, []), duration_ms)
        _log(logging.DEBUG, "connection_opened", "connection opened", duration_ms=round(duration_ms, 1), cold=is_cold)

    def replaced(self, reason: str) -> None:
        """Record that a connection was given up, for example because it was "closed by server"."""
        self._count(CONNECTIONS_REPLACED, "replaced_reasons", reason)
        _log(logging.INFO, "connection_replaced", f"connection replaced: {reason}", reason=reason)

    def retried(self, reason: str) -> None:
        """Record that a step of the layer or an idempotent handler is repeated."""
        self._count(RETRIES, "retried_reasons", reason)
        _log(logging.INFO, "retried", f"repeated: {reason}", reason=reason)

    def deadline_cancelled(self) -> None:
        """Record that a statement was cancelled because the invocation was about to end."""
        self._count(DEADLINE_CANCELS)
        # At once: Lambda may end the environment before the invocation reaches its end.
        _log(logging.WARNING, "deadline_cancelled", "statement cancelled: the invocation is about to end")

    def given_up(self) -> None:
        """Record that not even a cancel request was answered before the invocation's end."""
        _log(
            logging.WARNING,
            "database_silent",
            "the database answers neither the statement nor its cancel request: connection closed, as the invocation "
            "is about to end",
        )

    def warned(self, kind: str, text: str) -> None:
        """Log a warning, once per environment for each kind."""
        with self._lock:
            if kind in self._warned:
                return
            self._warned.add(kind)
        _log(logging.WARNING, kind, text)

    def invocation_ended(self, is_cold: bool, context: object, wait_ms: float) -> None:
        """Report what happened since the last report, if anything did or the counts have waited for long.

        wait_ms: how long the start of its transaction took.
        """
        if is_cold:
            self._count(COLD_INVOCATIONS)
        else:
            self._warm += 1
        if self._counts or self._times or wait_ms >= REPORTED_WAIT_MS or self._clock() >= self._due_at:
            self._report(context, wait_ms)

    def flush(self) -> None:
        """Report what is left, before the environment ends."""
        if self._counts or self._times or self._warm:
            self._report(None)

    def _count(self, metric: Metric, reasons: str | None = None, reason: str = "") -> None:
        with self._lock:
            self._counts[metric] = self._counts.get(metric, 0) + 1
            if reasons and reason not in self._reasons.setdefault(reasons, []):
                self._reasons[reasons].append(reason)

    def _report(self, context: object, wait_ms: float | None = None) -> None:
        with self._lock:
            values: dict[Metric, list[float]] = {metric: [count] for metric, count in self._counts.items()}
            if self._warm:
                values[WARM_INVOCATIONS] = [self._warm]
            times = self._times if wait_ms is None else {**self._times, POOL_WAIT_TIME: [wait_ms]}
            values |= {metric: [round(time_ms, 3) for time_ms in times_ms] for metric, times_ms in times.items()}
            properties = {name: ", ".join(reasons) for name, reasons in self._reasons.items()}
            self._clear()
        if request_id := getattr(context, "aws_request_id", None):
            properties["function_request_id"] = request_id
        with contextlib.suppress(Exception):  # a closed stdout, say; see the module's docstring
            emf.write(values, properties, getattr(context, "function_name", None))


def _keep(times_ms: list[float], duration_ms: float) -> None:
    # A script may use a connection for days without an invocation that ends.
    if len(times_ms) == emf.LARGEST_ARRAY:
        times_ms.remove(min(times_ms))
    times_ms.append(duration_ms)


def _log(level: int, event: str, text: str, **details: object) -> None:
    with contextlib.suppress(Exception):  # a user's filter or handler; see the module's docstring
        service = _powertools_service()
        logger = logging.getLogger(f"{service}.emberpool" if service else "emberpool")
        if not logger.isEnabledFor(level):
            return
        if service or os.environ.get("AWS_LAMBDA_LOG_FORMAT") == "JSON":
            logger.log(level, text, extra={"emberpool": event, **details})
        else:
            logger.log(level, json.dumps({"message": text, "emberpool": event, **details}))


def _powertools_service() -> str | None:
    """Return the name of the Powertools Logger that the function has set up, which is its service.

    A logger below it is what Powertools calls a child: it has the parent's formatter, keys and correlation id.
    """
    services = [
        name
        for name, logger in logging.root.manager.loggerDict.copy().items()
        if getattr(logger, "init", None) is True  # Powertools' mark (LOGGER_ATTRIBUTE_PRECONFIGURED)
    ]
    preferred = os.environ.get("POWERTOOLS_SERVICE_NAME")
    return preferred if preferred in services else next(iter(services), None)


# One recorder per process. Bound here, so that a call from the warm path costs one frame.
_recorder = Recorder()
os.register_at_fork(after_in_child=_recorder.start_anew)
opened = _recorder.opened
replaced = _recorder.replaced
retried = _recorder.retried
deadline_cancelled = _recorder.deadline_cancelled
given_up = _recorder.given_up
warned = _recorder.warned
invocation_ended = _recorder.invocation_ended
flush = _recorder.flush
