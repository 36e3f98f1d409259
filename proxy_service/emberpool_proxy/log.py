"""JSON log lines on standard error, PgBouncer's own lines in the same form."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime

logger = logging.getLogger("emberpool_proxy")

# `2026-01-31 12:00:00.123 UTC [42] LOG C-0x55…: db/user@10.0.0.1:5 login attempt: …`
PGBOUNCER_LINE = re.compile(r"^\S+ \S+ \S+ \[\d+\] (?P<level>[A-Z]+) (?P<message>.*)$")
LEVELS = {
    "DEBUG": logging.DEBUG,
    "NOISE": logging.DEBUG,
    "LOG": logging.INFO,
    "STATS": logging.INFO,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.ERROR,
}


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


def relay_pgbouncer_line(line: str) -> None:
    """Log one line of PgBouncer's standard error in our own form."""
    match = PGBOUNCER_LINE.match(line)
    level = LEVELS.get(match["level"], logging.INFO) if match else logging.INFO
    message = match["message"] if match else line
    logger.log(level, "%s", message, extra={"source": "pgbouncer"})
