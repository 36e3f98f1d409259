"""The run as one HTML page that needs nothing but itself.

Owns the page's words and its parts; the time line comes from `figure`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from emberpool_local.lab import curves
from emberpool_local.lab.figure import task_colours, timeline_figure
from emberpool_local.lab.results import FaultRecord, LabResult
from emberpool_local.lab.throughput import DEFINITION
from emberpool_local.report.document import document, shown_moment, write_document

TEMPLATES = Path(__file__).with_name("templates")
NETWORKS = {
    "namespaces": "each task in a network namespace of its own; packets are delayed, lost and dropped between them",
    "loopback": "one loopback interface; relays hold bytes back where a network would lose them",
}


def write_lab_page(result: LabResult, path: Path) -> None:
    """Write the page. Raises PageNotWritable."""
    write_document(lab_page(result), path)


def lab_page(result: LabResult) -> str:
    """Return the page as HTML: styles, plotly.js, the time line and words in one text."""
    return document(
        "lab.html.j2",
        folder=TEMPLATES,
        page_title="emberpool: the failure lab",
        headline=headline(result),
        subline=_subline(result),
        # The figure is our own HTML and JavaScript; inside it plotly's JSON escapes every text.
        timeline=Markup(timeline_figure(result)),  # noqa: S704
        tasks=task_colours(curves.connection_layers(result, 1_000_000).values),
        verdicts=sorted(result.verdicts, key=lambda verdict: verdict.holds),  # what is violated comes first
        faults=[_shown(number, fault) for number, fault in enumerate(result.faults, 1)],
        notes=[(f"{at:.2f} s", text) for at, text in result.notes],
        recovered=DEFINITION,
        facts=_facts(result),
        holds=result.holds,
        command=result.command,
        measured_at=shown_moment(result.measured_at),
    )


def headline(result: LabResult) -> str:
    """Say the outcome in one sentence."""
    faults = f"{len(result.faults)} {'fault' if len(result.faults) == 1 else 'faults'}"
    broken = sum(not verdict.holds for verdict in result.verdicts)
    outcome = "every oracle holds" if not broken else f"{broken} of {len(result.verdicts)} oracles found a violation"
    return f"{faults} under load, {result.invocations:,} invocations: {outcome}."


def allowed_text(fault: FaultRecord) -> str:
    """Say how many invocations the promise lets the fault fail."""
    if fault.may_fail_until is None or fault.most_failures == 0:
        return "none"
    return "those under way" if fault.most_failures is None else f"{fault.most_failures:,}"


def sentence(text: str) -> str:
    """Begin a text with a capital letter."""
    return text[:1].upper() + text[1:]


def is_broken(fault: FaultRecord) -> bool:
    """Whether more failed than the promise allows, as far as it is a number."""
    most = 0 if fault.may_fail_until is None else fault.most_failures
    return most is not None and fault.failed + fault.unknown > most


def _subline(result: LabResult) -> str:
    return (
        f"{result.environments} execution environments move money between accounts through {result.tasks} proxy tasks "
        f"and a balancer, while the faults below happen to the real parts. {result.succeeded:,} invocations succeeded, "
        f"{result.failed:,} failed and {result.unknown:,} were reported as a commit whose outcome is not known."
    )


def _shown(number: int, fault: FaultRecord) -> dict[str, Any]:
    recovered = fault.recovered_after_seconds
    return {
        "number": number,
        "title": sentence(fault.title),
        "subject": fault.subject,
        "when": f"{fault.begun:.1f} to {fault.ended:.1f} s",
        "promise": fault.promise,
        "failed": f"{fault.failed:,}",
        "unknown": f"{fault.unknown:,}",
        "allowed": allowed_text(fault),
        "recovered": "-" if recovered is None else f"{recovered:.1f} s",
        "is_broken": is_broken(fault),
    }


def _facts(result: LabResult) -> list[tuple[str, str]]:
    machine = result.machine
    return [
        ("Seed", str(result.seed)),
        ("Length", f"{result.seconds:.0f} s"),
        ("Budget", f"{result.budget} server connections: a floor of {result.floor} each, {result.slots} shared slots"),
        ("Network", NETWORKS.get(result.network, result.network)),
        ("Machine", f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:.0f} GiB of memory"),
        ("System", machine.system),
        ("Versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())),
    ]
