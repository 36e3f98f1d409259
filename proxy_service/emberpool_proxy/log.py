"""JSON log lines on standard error, PgBouncer's own lines in the same form, and never a flood of them."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from emberpool_proxy.pgbouncer.log_lines import Event, LogLine, Side, event_of, parse

logger = logging.getLogger("emberpool_proxy")

LEVELS = {
    "DEBUG": logging.DEBUG,
    "NOISE": logging.DEBUG,
    "LOG": logging.INFO,
    "STATS": logging.INFO,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.ERROR,
}
CLOSING = "closing because: "
# Server connections have a lifetime, and the budget opens and closes them all day: nothing to read.
ROUTINE = (
    *(
        CLOSING + reason
        for reason in ("server lifetime over", "server idle timeout", "pause mode", "too many servers in the pool")
    ),
    "RELOAD command issued",
)
LINES_PER_SECOND = 10  # of one kind: enough to see who it is, few enough to pay for
MOST_KINDS = 100  # a second; kinds beyond that count as one, as a client may choose its own words
# Kinds differ by their words only: addresses, numbers and what is quoted may be another each time.
VARIABLE_PART = re.compile(r"""["'(=\d].*""", re.DOTALL)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, source (`agent` or `pgbouncer`), message and extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record as one line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "source": getattr(record, "source", "agent"),
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str) -> None:
    """Send the proxy's log to standard error as JSON lines, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level)


@dataclass
class _Kind:
    """What came of one kind of line within the current second."""

    level: int
    example: str
    seen: int = 0


class PgbouncerLog:
    """Logs the lines of one PgBouncer, at most LINES_PER_SECOND of a kind, and tells how many were left out.

    `index` is the process's, logged when there are several.
    """

    def __init__(self, index: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._index = index
        self._clock = clock
        self._window_ends = 0.0
        self._kinds: dict[tuple[int, str, str], _Kind] = {}

    def relay(self, text: str) -> Event | None:
        """Log one line of PgBouncer's and return what it means; the event is returned for a line left out, too."""
        line = parse(text)
        event = event_of(line)
        level = _level(line, event)
        if logger.isEnabledFor(level) and self._is_within_limit(level, line):
            logger.log(level, "%s", line.message, extra=self._extra(_fields(line)))
        return event

    def flush(self) -> None:
        """Tell what was left out of a second that has passed; called by each line, and by who wants it on time."""
        now = self._clock()
        if now < self._window_ends:
            return
        for (_, side, _), kind in self._kinds.items():
            if (left_out := kind.seen - LINES_PER_SECOND) > 0:
                fields: dict[str, object] = {"lines_left_out": left_out, **({"side": side} if side else {})}
                logger.log(kind.level, "lines like this were left out: %s", kind.example, extra=self._extra(fields))
        self._kinds.clear()
        self._window_ends = now + 1.0

    def _is_within_limit(self, level: int, line: LogLine) -> bool:
        self.flush()
        words = VARIABLE_PART.sub("…", line.message)
        key = (level, str(line.side), words)
        if key not in self._kinds and len(self._kinds) >= MOST_KINDS:
            key, words = (level, "", "…"), "of many kinds"
        kind = self._kinds.setdefault(key, _Kind(level, words))
        kind.seen += 1
        return kind.seen <= LINES_PER_SECOND

    def _extra(self, fields: dict[str, object]) -> dict[str, object]:
        if self._index is not None:
            fields = {"process": self._index, **fields}
        return {"source": "pgbouncer", "fields": fields}


def _level(line: LogLine, event: Event | None) -> int:
    level = LEVELS.get(line.level, logging.INFO)
    if line.side is Side.CLIENT:
        # What a client did wrong is no error of ours. Why one was closed, it was told in a line of its own.
        return logging.DEBUG if line.message.startswith(CLOSING) else min(level, logging.WARNING)
    if line.message.startswith(ROUTINE):
        return logging.DEBUG
    return max(level, logging.WARNING) if event else level


def _fields(line: LogLine) -> dict[str, object]:
    if line.side is Side.NONE:
        return {}
    fields = {"side": str(line.side), "database": line.database, "user": line.user, "address": line.address}
    return {name: value for name, value in fields.items() if value}
