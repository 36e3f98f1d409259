"""The `emberpool` command. Each command is thin: what it does stands in the module of its name."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console
from rich.markup import escape

from emberpool_local.errors import LocalStackError, PromiseBroken

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
PIPE_WIDTH = 160  # characters of a table in a file, where no window is too narrow
WRITTEN_FILE = click.Path(dir_okay=False, path_type=Path)
EVENT_HELP = "file with the event, as JSON; - reads standard input"

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("emberpool"), prog_name="emberpool")
@click.option("--debug", is_flag=True, help="Show the stack trace of an error.")
def cli(debug: bool) -> None:
    """Warm connections and one connection budget between AWS Lambda and PostgreSQL: the parts on this machine."""
    click.get_current_context().obj = debug


@contextmanager
def _clear_errors(debug: bool) -> Iterator[None]:
    """Turn errors that a user can mend into one message and an exit code."""
    try:
        yield
    except LocalStackError as error:
        if debug:
            raise
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"[bold red]error:[/] {escape(error.problem)}\n [bold]next:[/] {escape(error.next_step)}")
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _burst_options(command: Command) -> Command:
    from emberpool_local.burst import demo  # noqa: PLC0415 (only for its defaults, and `--help` stays quick)

    options = (
        click.option("--environments", type=int, default=demo.ENVIRONMENTS, help="Execution environments at once."),
        click.option("--invocations", type=int, default=demo.INVOCATIONS, help="Invocations in all."),
        click.option("--max-connections", type=int, default=demo.MAX_CONNECTIONS, help="PostgreSQL's limit."),
        click.option(
            "--max-server-connections",
            type=int,
            default=demo.MAX_SERVER_CONNECTIONS,
            help="The proxy's part of that limit.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _page_option(default: str) -> Callable[[Command], Command]:
    return click.option(
        "--output",
        type=click.Path(dir_okay=False, path_type=Path),
        default=default,
        help="Where the page with the plots is written.",
    )


def _check_finite(_context: click.Context, _option: click.Parameter, seconds: float | None) -> float | None:
    if seconds is not None and not math.isfinite(seconds):  # FloatRange lets NaN through
        raise click.BadParameter(f"{seconds} is no time")
    return seconds


_watch_option = click.option(
    "--watch",
    "watch_seconds",
    type=click.FloatRange(0.1, 86_400),
    is_flag=False,
    flag_value=1.0,
    callback=_check_finite,
    metavar="[SECONDS]",
    help="Show it until Ctrl-C, anew each SECONDS (1).",
)


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def simulate(arguments: tuple[str, ...]) -> None:
    """Try how tasks share a budget, in virtual time: hundreds of them, or small worlds with faults (--help)."""
    from emberpool_local.simulation.command import main  # noqa: PLC0415

    sys.exit(main(arguments))


@cli.command()
@_burst_options
@_page_option("emberpool-demo.html")
@click.pass_obj
def demo(
    debug: bool,
    environments: int,
    invocations: int,
    max_connections: int,
    max_server_connections: int,
    as_json: bool,
    output: Path,
) -> None:
    """Show the problem and the cure: the same burst three ways, as a table and as a page.

    Exits with 1 when the naive way did not fail or emberpool did.
    """
    from emberpool_local.burst.demo import run_demo  # noqa: PLC0415
    from emberpool_local.burst.promises import promises_broken  # noqa: PLC0415
    from emberpool_local.shown_progress import ShownProgress  # noqa: PLC0415

    with _clear_errors(debug):
        _check_page_can_be_written(output)
        with ShownProgress(Console(stderr=True)) as progress:
            result = run_demo(
                environments=environments,
                invocations=invocations,
                max_connections=max_connections,
                max_server_connections=max_server_connections,
                progress=progress.burst,
                stack_progress=progress.step,
                command=_typed_command(),
            )
        broken = promises_broken(result)
        _show_result(result, output, as_json, broken)
        if broken:
            raise PromiseBroken(
                "this run does not show what the demo promises: " + "; ".join(broken),
                "run it with the defaults; if it still does, please report it with the page",
            )


@cli.command()
@click.argument("handler", metavar="MODULE:HANDLER")
@click.option("--event", "event_file", type=click.File("rb"), help=EVENT_HELP + " (default: {}).")
@click.option("--schema", type=click.Path(path_type=Path), help="SQL file to run before, for tables and data.")
@click.option("--timeout-seconds", type=float, default=30.0, show_default=True, help="The function's timeout.")
@_burst_options
@_page_option("emberpool-burst.html")
@click.pass_obj
def burst(
    debug: bool,
    handler: str,
    event_file: Any,
    schema: Path | None,
    timeout_seconds: float,
    environments: int,
    invocations: int,
    max_connections: int,
    max_server_connections: int,
    as_json: bool,
    output: Path,
) -> None:
    """Fire the demo's burst at a handler of your own, through the proxy."""
    from emberpool_local.burst.own_function import run_own_burst  # noqa: PLC0415
    from emberpool_local.lambda_runtime import parse_handler_reference  # noqa: PLC0415
    from emberpool_local.shown_progress import ShownProgress  # noqa: PLC0415

    with _clear_errors(debug):
        reference = parse_handler_reference(handler)
        _check_page_can_be_written(output)
        with ShownProgress(Console(stderr=True)) as progress:
            result = run_own_burst(
                reference.handler,
                reference.code_folder,
                _event(event_file),
                environments=environments,
                invocations=invocations,
                max_connections=max_connections,
                max_server_connections=max_server_connections,
                schema=schema,
                timeout_seconds=timeout_seconds,
                progress=progress.burst,
                stack_progress=progress.step,
                command=_typed_command(),
            )
        _show_result(result, output, as_json, [])


@cli.command()
@click.option("--max-connections", type=int, default=100, show_default=True, help="PostgreSQL's limit.")
@click.option(
    "--max-server-connections", type=int, default=20, show_default=True, help="The proxy's part of that limit."
)
@click.option("--postgres-port", type=click.IntRange(1, 65535), help="Port for PostgreSQL (default: a free one).")
@click.option("--proxy-port", type=click.IntRange(1, 65535), help="Port for the proxy (default: a free one).")
@click.option(
    "--tasks", type=int, default=1, show_default=True, help="Proxies that share its part: see `emberpool fleet`."
)
@click.pass_obj
def up(
    debug: bool,
    max_connections: int,
    max_server_connections: int,
    postgres_port: int | None,
    proxy_port: int | None,
    tasks: int,
) -> None:
    """Run PostgreSQL and the proxy on this machine until Ctrl-C; nothing is left behind."""
    from emberpool_local.burst.target import check_limits  # noqa: PLC0415
    from emberpool_local.stack import LocalStack, check_tasks  # noqa: PLC0415
    from emberpool_local.up import run_until_stopped  # noqa: PLC0415

    with _clear_errors(debug):
        check_limits(max_connections, max_server_connections)
        check_tasks(tasks, max_server_connections)
        stack = LocalStack(
            max_connections,
            max_server_connections,
            postgres_port,
            proxy_port,
            progress=_tell,
            tasks=tasks,
            has_data_endpoint=True,
        )
        run_until_stopped(stack, lambda description: _show_running(description, tasks), _tell)


@cli.command()
@click.argument("handler", metavar="MODULE:HANDLER")
@click.option("--event", "event_file", type=click.File("rb"), help=EVENT_HELP + " (default: {}).")
@click.option("--timeout-seconds", type=float, default=30.0, show_default=True, help="The function's timeout.")
@click.option("--trace", is_flag=True, help="Show where the handler raised.")
@click.pass_obj
def invoke(debug: bool, handler: str, event_file: Any, timeout_seconds: float, trace: bool) -> None:
    """Run a handler once in a real execution environment, against a running `emberpool up`.

    Its answer goes to standard output, what it printed to standard error.
    """
    from emberpool_local.invoke import check_succeeded, invoke_once, printed  # noqa: PLC0415
    from emberpool_local.lambda_runtime import parse_handler_reference  # noqa: PLC0415

    with _clear_errors(debug):
        outcome = invoke_once(parse_handler_reference(handler), _event(event_file), timeout_seconds)
        if log := printed(outcome, with_trace=trace):
            click.echo(log, err=True)
        check_succeeded(outcome)
        click.echo(outcome.payload.decode())
        click.echo(f"{outcome.duration_ms:.1f} ms (init {outcome.init_ms or 0:.0f} ms)", err=True)


@cli.command()
@click.option("--url", help="Where the proxy answers health checks (default: that of the running `emberpool up`).")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@_watch_option
@click.pass_obj
def status(debug: bool, url: str | None, as_json: bool, watch_seconds: float | None) -> None:
    """Show the pool of a running proxy as a table; with --watch as a live one.

    The proxy is that of the running `emberpool up`, or any that --url names.
    """
    from emberpool_local.status import show_status  # noqa: PLC0415

    with _clear_errors(debug):
        show_status(Console(highlight=False), url, as_json, watch_seconds)


@cli.command()
@click.option("--url", help="Where any of the tasks answers health checks (default: the running `emberpool up`).")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, one document a look.")
@_watch_option
@click.pass_obj
def fleet(debug: bool, url: str | None, as_json: bool, watch_seconds: float | None) -> None:
    """Show all tasks that share a connection budget: slots, server connections, who waits; with --watch live.

    It asks one task, and then all that this one knows.
    """
    from emberpool_local.fleet import show_fleet  # noqa: PLC0415

    with _clear_errors(debug):
        show_fleet(Console(highlight=False), url, as_json, watch_seconds)


def _chaos_options(command: Command) -> Command:
    from emberpool_local.lab import options as lab  # noqa: PLC0415 (only for its defaults, and `--help` stays quick)

    options = (
        click.option(
            "--seconds",
            type=click.FloatRange(1, 86_400),
            default=lab.SECONDS,
            show_default=True,
            callback=_check_finite,
            help="How long faults of chance go on.",
        ),
        click.option("--seed", type=click.IntRange(0), help="What the run is made of (default: one that is printed)."),
        click.option("--fault", "faults", multiple=True, metavar="NAME", help="Only this fault, once; repeatable."),
        click.option("--each", is_flag=True, help="Every fault once, in the order of the list."),
        click.option(
            "--environments",
            type=click.IntRange(1, lab.MOST_ENVIRONMENTS),
            default=lab.ENVIRONMENTS,
            show_default=True,
            help="Execution environments at work.",
        ),
        click.option(
            "--tasks",
            type=click.IntRange(lab.FEWEST_TASKS, lab.MOST_TASKS),
            default=lab.TASKS,
            show_default=True,
            help="Tasks of the proxy.",
        ),
        click.option(
            "--network",
            type=click.Choice(["namespaces", "loopback"]),
            help="How ways are cut: with packets, as root, or with relays (default: packets where they can be had).",
        ),
        click.option("--list", "is_list", is_flag=True, help="List the faults and what must hold in each."),
        click.option("--json", "json_file", type=WRITTEN_FILE, help="Write the result to this file as JSON."),
        click.option(
            "--page",
            type=WRITTEN_FILE,
            default="emberpool-chaos.html",
            show_default=True,
            help="Where the page with the time line is written.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@_chaos_options
@click.pass_obj
def chaos(debug: bool, /, is_list: bool, json_file: Path | None, page: Path, **asked: Any) -> None:
    """Break the real parts one after the other under load, and prove that every promise holds.

    Exits with 1 when one does not; the seed that is printed makes the same run again.
    """
    from emberpool_local.lab.command import list_faults, options_of, run_command  # noqa: PLC0415

    with _clear_errors(debug):
        if is_list:
            list_faults(Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH))
            return
        options = options_of(**asked)
        for file in filter(None, (page, json_file)):
            _check_page_can_be_written(file, "--page" if file is page else "--json")
        console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
        run_command(options, json_file=json_file, page=page, console=console, tell=_tell)


@cli.command("deploy-local")
@click.option("--keep", is_flag=True, help="Wait for Ctrl-C before the stacks are destroyed.")
@click.option("--context", "-c", multiple=True, metavar="NAME=VALUE", help="A context value of the app; repeatable.")
@click.pass_obj
def deploy_local(debug: bool, keep: bool, context: tuple[str, ...]) -> None:
    """Run the real cdk bootstrap, deploy, diff and destroy against a simulated AWS on this machine."""
    from emberpool_local.aws.deploy_local import run  # noqa: PLC0415

    with _clear_errors(debug):
        run(keep, context=context)


def _tell(text: str) -> None:
    click.echo(text, err=True)


def _event(event_file: Any) -> bytes:
    return bytes(event_file.read()) if event_file else b"{}"


def _check_page_can_be_written(path: Path, option: str = "--output") -> None:
    """Raise PageNotWritable now rather than after a minute of work."""
    from emberpool_local.report.page import PageNotWritable  # noqa: PLC0415

    if not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PageNotWritable(f"the file {path} cannot be written", f"name another file with {option}")


def _show_result(result: Any, output: Path, as_json: bool, broken: list[str]) -> None:
    from emberpool_local.burst.results import to_json  # noqa: PLC0415
    from emberpool_local.report.page import NEXT_STEPS, terminal_table, write_page  # noqa: PLC0415
    from emberpool_local.report.wording import headline  # noqa: PLC0415

    write_page(result, output, broken)
    if as_json:
        click.echo(
            json.dumps({**json.loads(to_json(result)), "page": str(output.resolve()), "promises_broken": broken})
        )
        return
    console = Console(highlight=False)
    console.print()
    console.print(terminal_table(result))
    console.print(f"\n[bold]{escape(headline(result))}[/]")
    console.print(f"The page with the plots: {escape(output.resolve().as_uri())}\n", soft_wrap=True)
    console.print("[bold]What next[/]")
    for step in NEXT_STEPS:
        console.print(escape(step["text"]), soft_wrap=True)
        console.print("\n".join(f"    {line}" for line in escape(step["code"]).splitlines()), style="cyan")


def _show_running(description: str, tasks: int) -> None:
    click.echo(description)
    if tasks > 1:
        click.echo("See the tasks share the budget: emberpool fleet --watch")
    click.echo("Run a handler: emberpool invoke MODULE:HANDLER --event event.json   Stop: Ctrl-C")


def _typed_command() -> str:
    return " ".join(["emberpool", *sys.argv[1:]])


def _raise_exit(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)  # as a shell reports it; on the way out every `with` cleans up


def main() -> None:
    """Run the command line. SIGTERM cleans up as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _raise_exit)
    cli()
