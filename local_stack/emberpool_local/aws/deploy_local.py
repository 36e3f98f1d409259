"""`emberpool deploy-local`: the real `cdk bootstrap`, `deploy`, `diff` and `destroy`, with moto in AWS's place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from emberpool_local.aws.cdk_command import CdkCommand, check_programs
from emberpool_local.aws.deployed import Row, created, left_over
from emberpool_local.aws.moto_process import Gap, MotoServer, running_moto
from emberpool_local.errors import DeployUnavailable
from emberpool_local.host.temp_folder import TempFolder

NOT_SIMULATED = "running tasks, IAM decisions, the circuit breaker, rollback"
MIN_TASKS, MAX_TASKS = 2, 4  # the app's defaults


def run(
    keep: bool = False,
    *,
    checkout: Path | None = None,
    context: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Deploy the app of `checkout` (default: the clone that we are part of) to a stand-in for AWS, and show it.

    Then deploys it once more with a change, and destroys everything; with `keep` it waits for Ctrl-C first, so that you
    can look around. `context` has the app's values as NAME=VALUE. Raises DeployUnavailable when a program is missing, a
    command fails, the deployed stacks differ from the templates, or something is left after the destruction.
    """
    console = console or Console()
    with deployed(checkout, context=context, console=console) as deployment:
        show(deployment, console)
        change = a_change(context)
        if change:
            deployment.update([*context, change], console)
        else:
            console.print("No second deployment: with so few tasks there is no smaller number to change to")
        if keep:
            _wait_for_interrupt(console, deployment.server)
    console.print("Nothing is left of it. For real: sign in to AWS, then npx cdk bootstrap && npx cdk deploy --all")


@dataclass(frozen=True)
class Deployment:
    """Stacks that stand, and the command and the server to look at them with."""

    command: CdkCommand
    server: MotoServer

    def update(self, context: Sequence[str], console: Console | None = None) -> None:
        """Deploy once more, with another context, and compare. Raises DeployUnavailable as `run` does."""
        console = console or Console(quiet=True)
        shown = " ".join(context)
        _step(console, f"cdk synth with {shown}", lambda: self.command.synthesize(context))
        _step(console, "cdk deploy, over what stands", self.command.deploy)
        _step(console, "cdk diff: nothing differs", self.command.diff)


@contextmanager
def deployed(
    checkout: Path | None = None, *, context: Sequence[str] = (), console: Console | None = None
) -> Iterator[Deployment]:
    """Bootstrap, deploy and compare; at the end destroy all, and prove that nothing is left.

    After an error in the `with` the server just ends. Raises DeployUnavailable as `run` does.
    """
    checkout = checkout or Path(__file__).parents[3]
    console = console or Console(quiet=True)
    check_programs(checkout)
    with TempFolder("aws") as folder, running_moto(folder) as server:
        command = CdkCommand(checkout, server, folder)
        _step(console, "cdk synth", lambda: command.synthesize(context))
        _step(console, "cdk bootstrap", command.bootstrap)
        _step(console, "cdk deploy", command.deploy)
        _step(console, "cdk diff: nothing differs", command.diff)
        yield Deployment(command, server)
        _step(console, "cdk destroy", command.destroy)
        _check_nothing_left(server)


def a_change(context: Sequence[str]) -> str:
    """Return a context value that fits whenever `context` does: one task less at the most; "" if there are too few."""
    given = dict(each.partition("=")[::2] for each in context)
    least, most = int(given.get("minTasks", MIN_TASKS)), int(given.get("maxTasks", MAX_TASKS))
    return f"maxTasks={most - 1}" if most > least else ""


def show(deployment: Deployment, console: Console) -> None:
    """Print what was created, and what the simulation left out."""
    console.print(_created_table(created(deployment.command, deployment.server)))
    console.print(_gaps_table(deployment.server.gaps()))


def _step(console: Console, name: str, work: Callable[[], object]) -> None:
    started = time.monotonic()
    with console.status(name):
        work()
    console.print(f"[green]done[/green] {name} [dim]{time.monotonic() - started:.1f} s[/dim]", highlight=False)


def _created_table(rows: Sequence[Row]) -> Table:
    table = Table("what", "name", "facts", title="Created", title_justify="left", header_style="bold")
    before = ""
    for row in rows:
        # Text: a name from a template must not be read as markup.
        table.add_row(
            row.kind if row.kind != before else "", Text(row.name, overflow="fold"), Text(row.facts, overflow="fold")
        )
        before = row.kind
    return table


def _gaps_table(gaps: Sequence[Gap]) -> Table:
    table = Table("gap", "type", "detail", header_style="bold", title_justify="left")
    table.title = "What the simulation left out"
    table.caption = f"Not simulated at all: {NOT_SIMULATED}."
    for gap in sorted(gaps, key=lambda each: (each.kind, each.type, each.detail)):
        table.add_row(gap.kind, Text(gap.type), Text(gap.detail, overflow="fold"))
    return table


def _wait_for_interrupt(console: Console, server: MotoServer) -> None:
    console.print(f"AWS_ENDPOINT_URL={server.url} AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing")
    console.print("Ctrl-C destroys the stacks and ends.")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print()


def _check_nothing_left(server: MotoServer) -> None:
    left = left_over(server)
    if left:
        shown = "\n".join(f"  {row.kind} {row.name}" for row in left)
        raise DeployUnavailable(
            f"cdk destroy left {len(left)} resources behind:\n{shown}",
            "Give them a removal policy, or teach the simulation to delete them (emberpool_local.aws.cloudformation)",
        )
