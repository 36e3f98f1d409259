"""Names failures by their cause, so that a thousand error messages become three lines.

Owns the one text that stands for an error in a table. What differs from one failure to the next and says nothing
about the cause (host, port, process, time) is left out.
"""

from __future__ import annotations

import re

LONGEST_CAUSE = 100
# PostgreSQL and PgBouncer put the cause behind a severity, wherever libpq's own words around it end.
SERVER_MESSAGE = re.compile(r"\b(FATAL|ERROR|PANIC):\s+([^\n]+)")
LIBPQ_PREFIX = re.compile(r'^(connection failed: )?(connection to server (at|on) "[^"]*"(, port \d+)? failed: )+')
NUMBERS = re.compile(r"\b0x[0-9a-f]+\b|\d{2,}", re.IGNORECASE)


def failure_cause(status: str, error_type: str | None, error_message: str | None) -> str:
    """Return the text under which a failed invocation is counted.

    The server's own message comes first ("FATAL: sorry, too many clients already"), else the exception's type and
    the first line of what it said, else what happened to the invocation ("timed out", "crashed").
    """
    message = (error_message or "").strip()
    server_message = SERVER_MESSAGE.search(message)
    if server_message:
        return _shortened(f"{server_message[1]}: {server_message[2].strip()}")
    if status in {"timed_out", "crashed"}:
        return f"invocation {status.replace('_', ' ')}"
    first_line = LIBPQ_PREFIX.sub("", message.partition("\n")[0]).strip()
    words = NUMBERS.sub("N", first_line)
    return _shortened(": ".join(part for part in (error_type, words) if part) or "unknown error")


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_CAUSE else text[: LONGEST_CAUSE - 1] + "…"
