"""`emberpool chaos`: what is asked, what is shown, and the exit code."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emberpool_local.errors import FaultUnknown, PromiseBroken
from emberpool_local.lab.faults import FAULTS
from emberpool_local.lab.options import ENVIRONMENTS, SECONDS, TASKS, LabOptions
from emberpool_local.lab.oracles import has_failed
from emberpool_local.lab.page import allowed_text, headline, write_lab_page
from emberpool_local.lab.results import LabResult
from emberpool_local.lab.runner import Finished, run
from emberpool_local.lab.throughput import DEFINITION
from emberpool_local.lab.time_line import around_violation

LARGEST_SEED = 1_000_000


def options_of(
    *,
    seconds: float = SECONDS,
    seed: int | None = None,
    faults: Sequence[str] = (),
    each: bool = False,
    environments: int = ENVIRONMENTS,
    tasks: int = TASKS,
    network: Literal["namespaces", "loopback"] | None = None,
) -> LabOptions:
    """Return what was asked for, with a seed. Raises FaultUnknown."""
    unknown = [name for name in faults if name not in FAULTS]
    if unknown:
        raise FaultUnknown(f"there is no fault {', '.join(unknown)}", f"choose among {', '.join(FAULTS)}")
    chosen = secrets.randbelow(LARGEST_SEED) if seed is None else seed
    return LabOptions(chosen, seconds, tuple(FAULTS if each else faults), environments, tasks, network, each)


def run_command(
    options: LabOptions, *, json_file: Path | None, page: Path | None, console: Console, tell: Callable[[str], None]
) -> None:
    """Run the lab and show what came out. Raises PromiseBroken when an oracle was violated, and what the rig does."""
    tell(f"Seed {options.seed}; the same again: {options.command}")
    conclude(run(options, tell), json_file=json_file, page=page, console=console)


def conclude(finished: Finished, *, json_file: Path | None, page: Path | None, console: Console) -> None:
    """Write and show what came out. Raises PromiseBroken when an oracle was violated."""
    result = finished.result
    if json_file:
        json_file.write_text(to_json(finished))
    if page:
        write_lab_page(result, page)
    show(finished, console)
    for path in filter(None, (json_file, page)):
        console.print(f"Written: {escape(path.resolve().as_uri())}", soft_wrap=True)
    if not result.holds:
        broken = [verdict.oracle for verdict in result.verdicts if not verdict.holds]
        raise PromiseBroken(
            f"seed {result.seed}: {'; '.join(broken)}",
            f"run it again with `{result.command}`; the time line above says what happened",
        )


def list_faults(console: Console) -> None:
    """Show all faults and what is promised of each."""
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("fault", no_wrap=True)
    table.add_column("what happens")
    table.add_column("what must hold")
    for fault in FAULTS.values():
        needs = " (needs root)" if fault.needs_namespaces else ""
        table.add_row(fault.name, fault.title + needs, fault.promise)
    console.print(table)


def to_json(finished: Finished) -> str:
    """Write the result as JSON, with each invocation that failed."""
    result = finished.result
    failures = [asdict(one) for one in finished.evidence.invocations if has_failed(one)]
    return json.dumps(
        {**asdict(result), "holds": result.holds, "recovered_after": DEFINITION, "failed_invocations": failures}
    )


def show(finished: Finished, console: Console) -> None:
    """Show the faults, the verdicts, and the time line around each violation."""
    result = finished.result
    console.print(_faults_table(result))
    console.print(f"[dim]recovered: {escape(DEFINITION)}[/]", soft_wrap=True)
    console.print()
    for verdict in result.verdicts:
        mark = "[green]holds[/]   " if verdict.holds else "[bold red]violated[/]"
        console.print(f"{mark} [bold]{escape(verdict.oracle)}[/]: {escape(verdict.sentence)}", soft_wrap=True)
        for detail in verdict.details:
            console.print(f"           {escape(detail)}", soft_wrap=True, style="red")
        if not verdict.holds:
            around = around_violation(finished.evidence, result.notes, verdict)
            console.print(escape(around), soft_wrap=True, style="dim")
    for name, reason in finished.left_out:
        console.print(f"[yellow]left out[/] {name}: {escape(reason)}", soft_wrap=True)
    console.print(f"\n[bold]{escape(headline(result))}[/]  seed {result.seed}", soft_wrap=True)


def _faults_table(result: LabResult) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("at", "fault", "subject", "failed", "unknown", "allowed", "recovered"):
        is_number = column in ("at", "failed", "unknown", "recovered")
        table.add_column(column, justify="right" if is_number else "left", no_wrap=column == "fault")
    for fault in result.faults:
        back = fault.recovered_after_seconds
        table.add_row(
            f"{fault.begun:.1f} s",
            fault.name,
            escape(fault.subject),
            str(fault.failed),
            str(fault.unknown),
            allowed_text(fault),
            "-" if back is None else f"{back:.1f} s",
        )
    return table
