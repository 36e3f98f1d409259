"""What became of one invocation.

Owns the words of Lambda for how an invocation ends (`Function.ResponseSizeTooLarge`, `Sandbox.Timedout`,
`Runtime.ExitError`) and the JSON that a caller of Lambda would get for each.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

Status = Literal["succeeded", "failed", "timed_out", "crashed"]

# Lambda's own limits for synchronous invocations, in bytes (documented as 6 MB; the error messages show these).
LARGEST_REQUEST_BYTES = 6_291_456
LARGEST_RESPONSE_BYTES = 6_291_556


@dataclass(frozen=True)
class Answer:
    """How the handler's part ended, before anything is measured."""

    status: Status
    payload: bytes
    error_type: str | None = None
    error_message: str | None = None
    stack_trace: tuple[str, ...] = ()
    exit_code: int | None = None


@dataclass(frozen=True)
class Outcome:
    """One invocation as its caller sees it. Durations are in milliseconds.

    `payload` is the handler's JSON, or Lambda's error JSON. `duration_ms` runs from handing over the event until
    the response arrived (or the deadline, or the end of the process). `init_ms` is set for cold invocations only.
    `exit_code` is set for crashed ones and negative for a signal, as in `subprocess`. `log` is what the
    environment printed meanwhile, shortened from the front when it is long.
    """

    status: Status
    payload: bytes
    duration_ms: float
    environment_number: int
    error_type: str | None = None
    error_message: str | None = None
    stack_trace: tuple[str, ...] = ()
    exit_code: int | None = None
    is_cold: bool = False
    init_ms: float | None = None
    log: str = ""


@dataclass(frozen=True)
class ErrorReport:
    """What the runtime client reports when a handler raised or could not be loaded."""

    error_type: str
    error_message: str
    stack_trace: tuple[str, ...]
    body: bytes

    @classmethod
    def from_body(cls, body: bytes, error_type_header: str | None) -> ErrorReport:
        """Read the client's report; a body that is not its JSON is kept as the message."""
        try:
            report = json.loads(body)
        except ValueError:
            report = None
        if not isinstance(report, dict):
            report = {"errorMessage": body.decode(errors="replace")}
        trace = report.get("stackTrace")
        return cls(
            error_type=str(report.get("errorType") or error_type_header or "Unknown"),
            error_message=str(report.get("errorMessage") or ""),
            stack_trace=tuple(str(entry) for entry in trace) if isinstance(trace, list) else (),
            body=body,
        )


def succeeded(payload: bytes) -> Answer:
    """Return the answer of a handler that returned."""
    return Answer("succeeded", payload)


def failed(report: ErrorReport) -> Answer:
    """Return the answer of a handler that raised."""
    return Answer("failed", report.body, report.error_type, report.error_message, report.stack_trace)


def response_too_large(size_bytes: int) -> Answer:
    """Return the answer for a response above Lambda's limit."""
    message = (
        "Response payload size exceeded maximum allowed payload size "
        f"({LARGEST_RESPONSE_BYTES} bytes), got {size_bytes} bytes."
    )
    return _error("failed", "Function.ResponseSizeTooLarge", message)


def timed_out(timeout_seconds: float) -> Answer:
    """Return the answer for an invocation that ran into its deadline."""
    return _error("timed_out", "Sandbox.Timedout", f"Task timed out after {timeout_seconds:.2f} seconds")


def crashed(exit_code: int) -> Answer:
    """Return the answer for an environment whose process ended during the invocation."""
    reason = f"exit status {exit_code}" if exit_code >= 0 else f"signal {-exit_code}"
    return _error("crashed", "Runtime.ExitError", f"Runtime exited with error: {reason}", exit_code)


def _error(status: Status, error_type: str, message: str, exit_code: int | None = None) -> Answer:
    payload = json.dumps({"errorType": error_type, "errorMessage": message}).encode()
    return Answer(status, payload, error_type, message, exit_code=exit_code)
