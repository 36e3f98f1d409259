"""The data endpoint as a process of the task: `python -m emberpool_proxy data-endpoint`, started by the supervisor.

The agent writes what it needs, the keys and the certificate, and knows the other tasks; its only way to the database is
PgBouncer's socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import aiohttp
import uvloop

from emberpool_proxy.addresses import ANY_IPV4, ANY_IPV6
from emberpool_proxy.agent.fleet import PEERS_PATH
from emberpool_proxy.agent.peers import LONGEST_REPORT_BYTES, Report
from emberpool_proxy.data_endpoint.app import App, Parts
from emberpool_proxy.data_endpoint.bodies import Bodies
from emberpool_proxy.data_endpoint.calls import Caller
from emberpool_proxy.data_endpoint.forwarding import Others
from emberpool_proxy.data_endpoint.keys import Keys
from emberpool_proxy.data_endpoint.leases import KEEP_ALIVE_SECONDS, Address, LeaseLimits
from emberpool_proxy.data_endpoint.limits import Limits
from emberpool_proxy.data_endpoint.listener import Listener
from emberpool_proxy.data_endpoint.memory import keep_growth_bounded
from emberpool_proxy.data_endpoint.once import Answers
from emberpool_proxy.data_endpoint.operations import Operations
from emberpool_proxy.data_endpoint.pool import SessionPool
from emberpool_proxy.data_endpoint.signature import Verifier
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.config import (
    CERTIFICATE_FILE,
    CLIENT_CA_FILE,
    DATA_COUNTS_FILE,
    DATA_KEYS_FILE,
    KEY_FILE,
)
from emberpool_proxy.pgbouncer.run_folder import RunFolder
from emberpool_proxy.settings import EVERY_ADDRESS, ProxySettings

ASK_AGENT_SECONDS = 1.0
FIND_OWN_SECONDS = 5.0
POLL_SECONDS = 0.05
ANSWER_SPARE_SECONDS = 15.0  # beyond a statement's time: another task answers later than it is cancelled
TIDY_SECONDS = 60.0
LOOPBACKS = {ANY_IPV4: "127.0.0.1", ANY_IPV6: "::1", EVERY_ADDRESS: "127.0.0.1"}


def new_loop() -> asyncio.AbstractEventLoop:
    """Return the endpoint's loop: with uvloop's a request costs a fifth less CPU than with asyncio's own."""
    return uvloop.new_event_loop()


def freeze_what_is_loaded() -> None:
    """Leave modules and settings out of garbage collections: a full one would stop all calls for tens of ms."""
    gc.collect()
    gc.freeze()


async def serve(settings: ProxySettings) -> None:
    """Serve until SIGTERM, then let calls and transactions end. Raises ProxyError when it cannot start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    folder = settings.engine_path(0)
    keys = Keys(folder / DATA_KEYS_FILE)
    keys.load()
    others = Others(
        partial(_others, settings), _trust(settings), settings.data_statement_seconds + ANSWER_SPARE_SECONDS
    )
    own = await _own_address(settings)
    # The file is this process's first; with the task's folder goes what another one may have left.
    has_predecessor = (folder / DATA_COUNTS_FILE).exists()
    parts = replace(
        make_parts(settings, Verifier(keys), others, own), restarted_at=time.monotonic() if has_predecessor else None
    )
    operations = parts.operations
    app = App(parts)
    listener = make_listener(settings, app)
    app.counts.running = lambda: app.running
    app.counts.transactions = lambda: operations.open_transactions
    counting = asyncio.create_task(app.counts.keep_written(RunFolder.existing(folder, settings.run_as_user)))
    freeze_what_is_loaded()
    serving = asyncio.create_task(listener.run())
    tidying = asyncio.create_task(_tidy(parts.limits))
    bounding = asyncio.create_task(keep_growth_bounded(settings.data_response_bytes))
    logger.info("the data endpoint serves", extra={"fields": {"port": settings.data_port, "address": own}})
    try:
        await asyncio.wait({serving, asyncio.create_task(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            await _drain(settings, app, operations)
            listener.stop()
        await serving
    finally:
        bounding.cancel()
        tidying.cancel()
        counting.cancel()
        await others.close()


def make_parts(
    settings: ProxySettings,
    verifier: Verifier | None,
    others: Others,
    own: Address | None,
    anybody: Caller | None = None,
) -> Parts:
    """Return what an app is made of. `anybody` is the caller where nobody verifies: no setting leads there."""
    return Parts(
        Bodies(settings.data_request_bytes, body_seconds=settings.data_body_seconds),
        verifier,
        Limits(settings.data_requests_per_second, settings.data_most_concurrent),
        Answers(),
        _operations(settings, own),
        others,
        own,
        anybody,
    )


def make_listener(settings: ProxySettings, app: App) -> Listener:
    """Return the server of an app, which does not listen yet."""
    folder = settings.engine_path(0)
    certificate = (folder / CERTIFICATE_FILE, folder / KEY_FILE) if settings.data_tls_mode == "require" else None
    return Listener(app, settings.listen_host, settings.data_port, certificate, settings.data_header_seconds)


def _operations(settings: ProxySettings, own: Address | None) -> Operations:
    folders = [settings.engine_path(index) for index in range(settings.pgbouncer_processes)]
    pool = SessionPool(folders, settings.client_port, settings.data_most_sessions)
    limits = LeaseLimits(
        idle_seconds=settings.data_transaction_idle_seconds,
        open_seconds=settings.data_transaction_seconds,
        most_open=settings.data_most_transactions,
        keep_alive_seconds=_keep_alive_seconds(settings),
    )
    return Operations(pool, settings.data_statement_seconds, settings.data_response_bytes, limits, own)


def _keep_alive_seconds(settings: ProxySettings) -> float:
    """Return how often an open transaction is used, so that PgBouncer does not end it as one that nobody uses."""
    allowed = settings.idle_transaction_seconds
    return min(KEEP_ALIVE_SECONDS, allowed / 3) if allowed else KEEP_ALIVE_SECONDS


async def _drain(settings: ProxySettings, app: App, operations: Operations) -> None:
    """Go on until nothing leads here any more and all that was begun has ended, or its time is over."""
    app.is_draining = True
    logger.info("the data endpoint drains", extra={"fields": {"transactions": operations.open_transactions}})
    closing = asyncio.create_task(operations.drain(settings.balancer_notice_seconds + settings.drain_seconds))
    await asyncio.sleep(settings.balancer_notice_seconds)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.drain_seconds):
            await closing
            while app.running:  # noqa: ASYNC110 (asked once, at the end)
                await asyncio.sleep(POLL_SECONDS)
    await operations.close()
    logger.info("the data endpoint has drained")


async def _tidy(limits: Limits) -> None:
    while True:
        await asyncio.sleep(TIDY_SECONDS)
        limits.forget_idle(time.monotonic())


# --- the other tasks


async def _own_address(settings: ProxySettings) -> Address | None:
    """Return where the others reach this task's endpoint; None when it has no others."""
    if not settings.fleet_name and not settings.fleet_members:
        return None
    until = asyncio.get_running_loop().time() + FIND_OWN_SECONDS
    while True:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError):
            if (member := (await _report(settings)).member) is not None:
                return member.host, settings.data_port
        if asyncio.get_running_loop().time() >= until:
            logger.warning("the agent does not say where this task is: its transactions cannot be reached by others")
            return None
        await asyncio.sleep(POLL_SECONDS)


async def _others(settings: ProxySettings) -> frozenset[Address]:
    report = await _report(settings)
    return frozenset((member.host, member.data_port) for member, _ in report.known if member.data_port)


async def _report(settings: ProxySettings) -> Report:
    host = LOOPBACKS.get(settings.listen_host, settings.listen_host)
    place = f"[{host}]" if ":" in host else host
    url = f"http://{place}:{settings.health_port}{PEERS_PATH}"
    timeout = aiohttp.ClientTimeout(total=ASK_AGENT_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
        return Report.decode(await answer.content.read(LONGEST_REPORT_BYTES + 1))


def _trust(settings: ProxySettings) -> Callable[[], ssl.SSLContext | None]:
    """Return what gives the TLS to other tasks: who has a certificate of the clients' authority is one of them."""
    known: dict[str, ssl.SSLContext] = {}

    def tls() -> ssl.SSLContext | None:
        if settings.data_tls_mode == "disable":
            return None
        path = settings.run_path / CLIENT_CA_FILE
        if not path.exists() or not path.stat().st_size:
            path = settings.engine_path(0) / CERTIFICATE_FILE  # one that was given: all tasks have the same
        stamp = f"{path} {path.stat().st_mtime_ns}"
        if stamp not in known:
            known.clear()
            context = ssl.create_default_context(cafile=str(path))
            context.check_hostname = False  # tasks are reached by addresses, which no certificate names
            context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
            known[stamp] = context
        return known[stamp]

    return tls
