"""`python -m emberpool_proxy`: starts the proxy, drains it on SIGTERM. `… config` prints what would be rendered."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from emberpool_proxy import log
from emberpool_proxy.errors import ProxyError
from emberpool_proxy.health import Health, serve_health
from emberpool_proxy.pgbouncer.config import render
from emberpool_proxy.settings import ProxySettings, SettingsInvalid
from emberpool_proxy.supervisor import Supervisor

EXIT_FAILED = 1
EXIT_USAGE = 2


async def serve(settings: ProxySettings) -> None:
    """Run the proxy until SIGTERM or SIGINT, then drain it. Raises ProxyError when it cannot go on."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        # Set once: a second signal must not cut short a drain that would end by itself.
        loop.add_signal_handler(name, stop.set)
    health = Health()
    async with serve_health(settings, health):
        await Supervisor(settings, health, stop).run()


def print_config(settings: ProxySettings) -> None:
    """Print PgBouncer's files as they would be rendered, secrets masked."""
    rendered = render(settings, agent_password="not-rendered")  # noqa: S106 (masked below)
    for name, text in rendered.files.items():
        print(f"# --- {settings.run_path / name}")  # noqa: T201 (the command's output)
        if name in rendered.secret_files:
            users = [line.split('" "')[0] + '" "…"' for line in text.splitlines()]
            text = "\n".join(users) + "\n"  # noqa: PLW2901 (masked from here on)
        print(text)  # noqa: T201


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 drained, 1 failed, 2 wrong settings."""
    parser = argparse.ArgumentParser(prog="python -m emberpool_proxy", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("run", "config"), default="run")
    chosen = parser.parse_args(arguments)
    log.configure("INFO")
    try:
        settings = ProxySettings.from_environment()
    except SettingsInvalid as error:
        log.logger.error("%s", error)
        return EXIT_USAGE
    if chosen.command == "config":
        print_config(settings)
        return 0
    log.configure(settings.log_level)
    try:
        asyncio.run(serve(settings))
    except ProxyError as error:
        log.logger.error("%s", error)
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
