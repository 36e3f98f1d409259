"""What the simulation leaves out, written down as it happens: a property that no call carried, a type that is a no-op.

One JSON object per line, so that the parent process can show it: exit code 0 of cdk alone proves nothing.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

_file: Path | None = None
_seen: set[tuple[str, str, str]] = set()
NO_SUPPORT = "No Moto CloudFormation support for"


def write_to(file: Path) -> None:
    """Append gaps to `file` from now on, those that moto only logs among them."""
    global _file  # noqa: PLW0603 (one server per process)
    _file = file
    file.touch()
    logging.getLogger("moto").addFilter(_from_moto)
    logging.getLogger("moto.cloudformation.parsing").addFilter(_from_moto)


def record(kind: str, resource_type: str, detail: str = "") -> None:
    """Write one gap, once: kind is `dropped` (a property), `skipped` (nothing was made) or `unknown` (the type)."""
    gap = (kind, resource_type, detail)
    if gap in _seen:
        return
    _seen.add(gap)
    if _file is not None:
        with _file.open("a") as lines:
            lines.write(json.dumps({"kind": kind, "type": resource_type, "detail": detail}) + "\n")


def _from_moto(record_: logging.LogRecord) -> bool:
    if str(record_.msg).startswith(NO_SUPPORT):
        record("unknown", record_.getMessage().removeprefix(NO_SUPPORT).strip())
    return True
