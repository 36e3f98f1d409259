"""`emberpool up`: the local stack until it is told to stop, findable for `emberpool invoke` and `status` meanwhile."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from emberpool_local.errors import PostgresUnavailable, ProxyUnavailable
from emberpool_local.running_stack import announced
from emberpool_local.stack import LocalStack

WATCH_SECONDS = 0.5


def run_until_stopped(stack: LocalStack, show: Callable[[str], None], tell: Callable[[str], None]) -> None:
    """Start `stack`, hand its description to `show`, and stop it on Ctrl-C or SIGTERM.

    Of several tasks one may end, which is told; that is what they are several for.

    Raises PostgresUnavailable or ProxyUnavailable when one of them ends by itself, and what LocalStack.open() raises.
    """
    with stack, announced(stack.handler_environment(), stack.proxy.status_url), _stop_signals() as stopped:
        show(stack.describe())
        running = stack.proxies
        while not stopped.wait(WATCH_SECONDS):
            before, running = running, tuple(proxy for proxy in running if proxy.child.is_running)
            if not running:
                raise ProxyUnavailable(
                    f"the proxy ended by itself; its last lines:\n{before[-1].child.last_log_lines()}",
                    "mend what they name and run `emberpool up` again",
                )
            for ended in set(before) - set(running):
                tell(f"The task on {ended.host} has ended; the others go on")
            if not stack.postgres.is_running:
                raise PostgresUnavailable("PostgreSQL ended by itself", "run `emberpool up` again")


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    stopped = threading.Event()
    before = {name: signal.signal(name, lambda *_: stopped.set()) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
