"""`python -m emberpool_proxy`: runs the proxy until SIGTERM, then drains it. Its other commands look at one.

run       supervisor, agent and PgBouncer (the default)
config    print what would be rendered, secrets masked
status    print the pool of a running proxy
fleet     print the tasks that share its budget
agent, data-endpoint  what the supervisor starts; not for people
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import sys

from emberpool_proxy import log
from emberpool_proxy.control import Channel
from emberpool_proxy.errors import AgentRefused, ProxyError
from emberpool_proxy.settings import ProxySettings, SettingsInvalid

COMMANDS = ("run", "config", "status", "fleet", "agent", "data-endpoint")
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # as a shell reports Ctrl-C
WATCH_SECONDS = 1.0
SHORTEST_WATCH_SECONDS, LONGEST_WATCH_SECONDS = 0.05, 86_400.0
EXIT_CRASHED = 70  # EX_SOFTWARE: the supervisor starts such an agent again


async def supervise(settings: ProxySettings) -> None:
    """Run the proxy until SIGTERM or SIGINT, then drain it. Raises ProxyError when it cannot go on."""
    from emberpool_proxy.supervisor import Supervisor  # noqa: PLC0415 (each process loads only its own part)

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        # Set once: a second signal must not cut short a drain that would end by itself.
        loop.add_signal_handler(name, stop.set)
    await Supervisor(settings, stop).run()


async def be_the_agent(settings: ProxySettings, control: int, health: int) -> None:
    """Run the agent on the descriptors that the supervisor gave. Raises ProxyError when it cannot start."""
    from emberpool_proxy.agent.run import Agent  # noqa: PLC0415 (each process loads only its own part)

    channel = Channel(socket.socket(fileno=control))
    with socket.socket(fileno=health) as health_socket:
        await Agent(settings, channel, health_socket).run()


async def serve_data(settings: ProxySettings) -> None:
    """Run the data endpoint until SIGTERM, then let its calls end. Raises ProxyError when it cannot start."""
    from emberpool_proxy.data_endpoint.process import serve  # noqa: PLC0415 (each process loads only its own part)

    await serve(settings)


def data_loop() -> asyncio.AbstractEventLoop:
    """Return the loop that the data endpoint runs in."""
    from emberpool_proxy.data_endpoint.process import new_loop  # noqa: PLC0415 (as above)

    return new_loop()


def print_config(settings: ProxySettings) -> None:
    """Print the files of the first PgBouncer process as they would be rendered, secrets masked."""
    from emberpool_proxy.agent.preview import preview  # noqa: PLC0415 (each command loads only its own part)

    for path, text in preview(settings):
        print(f"# --- {path}\n{text}")  # noqa: T201 (the command's output)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 drained, 1 failed, 2 wrong settings, 70 crashed."""
    parser = argparse.ArgumentParser(
        prog="python -m emberpool_proxy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=COMMANDS, default="run")
    parser.add_argument("--url", help="status, fleet: where the proxy answers health checks")
    parser.add_argument("--json", action="store_true", help="status, fleet: print it as JSON")
    parser.add_argument(
        "--watch",
        type=_seconds,
        nargs="?",
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help=f"status, fleet: print it again every SECONDS ({WATCH_SECONDS:g})",
    )
    parser.add_argument("--control", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--health", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.command in ("status", "fleet"):
        return _show(chosen.command, chosen.url, chosen.json, chosen.watch)
    log.configure("INFO")
    try:
        settings = ProxySettings.from_environment()
        log.configure(settings.log_level)
        if chosen.command == "config":
            print_config(settings)
        elif chosen.command != "run":
            return _part(settings, chosen)
        else:
            asyncio.run(supervise(settings))
    except SettingsInvalid as error:
        log.logger.error("%s", error)
        return EXIT_USAGE
    except AgentRefused as error:
        return error.exit_code  # it has logged why
    except ProxyError as error:
        log.logger.error("%s", error)
        return EXIT_FAILED
    return 0


def _show(command: str, url: str | None, as_json: bool, watch_seconds: float | None) -> int:
    from emberpool_proxy.telemetry import fleet_view, status_view  # noqa: PLC0415 (as above)

    show = fleet_view.show if command == "fleet" else status_view.show
    try:
        show(url or status_view.DEFAULT_URL, as_json, watch_seconds)
    except status_view.StatusUnavailable as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 (for a person, not for the log)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _seconds(text: str) -> float:
    seconds = float(text)
    if not SHORTEST_WATCH_SECONDS <= seconds <= LONGEST_WATCH_SECONDS:
        raise argparse.ArgumentTypeError(
            f"between {SHORTEST_WATCH_SECONDS:g} and {LONGEST_WATCH_SECONDS:g} seconds, got {text}"
        )
    return seconds


def _part(settings: ProxySettings, chosen: argparse.Namespace) -> int:
    """Run a part that the supervisor started, and starts again when it crashes."""
    if chosen.command == "agent":
        if chosen.control is None or chosen.health is None:
            raise SettingsInvalid("`agent` is started by `run`, which gives it its sockets; use `run`")
        # The container's stop signal is the supervisor's to handle: it tells the agent when to drain.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        work, loop_factory = be_the_agent(settings, chosen.control, chosen.health), None
    else:
        work, loop_factory = serve_data(settings), data_loop
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(work)
    except (ProxyError, SettingsInvalid):
        raise
    except Exception:  # noqa: BLE001 (the supervisor starts it again; the log must say why it was needed)
        log.logger.exception("the %s crashed", chosen.command)
        return EXIT_CRASHED
    return 0


if __name__ == "__main__":
    sys.exit(main())
