"""Reads a run again from the JSON that `emberpool chaos --json FILE` wrote, to draw it anew."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from emberpool_local.burst.results import Machine
from emberpool_local.errors import LocalStackError
from emberpool_local.lab.results import Bucket, Connections, FaultRecord, LabResult, Verdict


class RecordInvalid(LocalStackError):  # noqa: N818 (named by what to do, as all errors of emberpool)
    """The file holds no run of the failure lab."""


def read_result(path: Path) -> LabResult:
    """Return the run. Raises RecordInvalid."""
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordInvalid(f"{path} cannot be read: {error.strerror}", "name a file of emberpool chaos") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RecordInvalid(
            f"{path} holds no run of the failure lab: {error}", "name a file that `emberpool chaos --json FILE` wrote"
        ) from error


def from_json(text: str) -> LabResult:
    """Return the run. Raises ValueError, KeyError or TypeError when `text` is something else."""
    document: dict[str, Any] = json.loads(text)
    known = {field.name: document[field.name] for field in fields(LabResult)}
    return LabResult(
        **known
        | {
            "machine": Machine(**known["machine"]),
            "faults": [FaultRecord(**fault) for fault in known["faults"]],
            "buckets": [Bucket(**bucket) for bucket in known["buckets"]],
            "connections": [Connections(**look) for look in known["connections"]],
            "notes": [(at, note) for at, note in known["notes"]],
            "verdicts": [Verdict(**verdict) for verdict in known["verdicts"]],
        }
    )
