"""SnapStart and the shutdown: the real runtime client in local execution environments, and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiohttp import web

from emberpool import lifecycle
from emberpool import settings as names
from emberpool_local.lambda_runtime import Environment, Fleet, HandlerNotLoaded
from emberpool_local.lambda_runtime.extensions_api import ExtensionsApi
from emberpool_local.postgres.server import EmbeddedPostgres

from ..local_lambda import NewFleet, answer, wait_until
from .conftest import DATABASE, PASSWORD, ROLE

# Up to 3.11 the runtime client waits for events in native code, where Python handles no signal. What it does on later
# versions is a matter of this variable only.
CLIENT_OF_LATER_PYTHONS = {"AWS_EXECUTION_ENV": "AWS_Lambda_python3.12"}
SETTINGS = {names.HOST: "h", names.USER: "u", names.PASSWORD: "p", names.SSLMODE: "disable"}

RECORDS = """
    import os, signal, sys, time
    from emberpool import lifecycle
    from emberpool.settings import LayerSettings
    calls = []
    def discard():
        calls.append("discard")
        print("discarded", flush=True)
    def open_again():
        calls.append("open again")
    def handler(event, context):
        return {"calls": calls, "is_before_snapshot": lifecycle.is_before_snapshot()}
    calls.append(f"before snapshot: {lifecycle.is_before_snapshot()}")
"""
REGISTERS = RECORDS + "    lifecycle.register(discard, open_again, LayerSettings.from_environment())\n"


@pytest.fixture
def new_fleet(new_fleet: NewFleet) -> NewFleet:
    """The shared one, with real processes and the layer's settings."""

    def make(source: str, **given: Any) -> Fleet:
        environment = {**SETTINGS, **CLIENT_OF_LATER_PYTHONS, **given.pop("environment", {})}
        return new_fleet(source, environment=environment, start_method="process", **given)

    return make


def exit_code(environment: Environment) -> int:
    assert environment._process is not None
    return environment._process.exited.result()


# --- SnapStart ---


async def test_connection_is_closed_before_the_snapshot_and_opened_after_the_restore(
    new_fleet: NewFleet,
) -> None:
    """The snapshot holds no connection, and the restored environment has one before its first invocation."""
    async with new_fleet(REGISTERS, snapstart=True) as fleet:
        await fleet.scale_out(1)
        (environment,) = fleet.environments
        assert environment.is_frozen
        assert environment.log_lines == ["discarded"]
        await environment.restore()
        seen = answer(await fleet.invoke(b"{}", environment))
    assert seen == {"calls": ["before snapshot: True", "discard", "open again"], "is_before_snapshot": False}


async def test_first_invocation_restores_the_snapshot(new_fleet: NewFleet) -> None:
    """As on Lambda, an environment that is needed is restored without anybody asking for it."""
    async with new_fleet(REGISTERS, snapstart=True) as fleet:
        seen = answer(await fleet.invoke(b"{}"))
    assert seen["calls"] == ["before snapshot: True", "discard", "open again"]


async def test_failed_opening_does_not_fail_the_restore(new_fleet: NewFleet) -> None:
    """A database that is away while an environment is restored is a log line: the invocation tries again."""
    source = REGISTERS.replace('calls.append("open again")', 'raise OSError("database away")')
    async with new_fleet(source, snapstart=True) as fleet:
        outcome = await fleet.invoke(b"{}")
        (environment,) = fleet.environments
    assert answer(outcome)["calls"] == ["before snapshot: True", "discard"]
    assert any("after the restore failed" in line and "database away" in line for line in environment.log_lines)


async def test_without_snapstart_connections_may_be_opened_at_once(new_fleet: NewFleet) -> None:
    """In a usual environment there is no snapshot to wait for, and neither hook runs."""
    async with new_fleet(REGISTERS) as fleet:
        seen = answer(await fleet.invoke(b"{}"))
    assert seen == {"calls": ["before snapshot: False"], "is_before_snapshot": False}


async def test_restore_that_fails_ends_the_environment(new_fleet: NewFleet) -> None:
    """A hook of the function's own that raises after the restore is a failed invocation, not a hanging one."""
    source = """
        from snapshot_restore_py import register_after_restore
        @register_after_restore
        def fail():
            raise LookupError("no seed")
        def handler(event, context):
            return 1
    """
    async with new_fleet(source, snapstart=True) as fleet:
        outcome = await fleet.invoke(b"{}")
    assert (outcome.status, outcome.exit_code) == ("crashed", 65)


# --- shutdown ---


async def test_shutdown_closes_the_connection_and_ends_the_process(
    new_fleet: NewFleet, database: EmbeddedPostgres, tmp_path: Path
) -> None:
    """A frozen environment that Lambda ends says goodbye to PostgreSQL: no unexpected end of file in its log."""
    source = """
        import psycopg
        from emberpool import lifecycle
        from emberpool.settings import LayerSettings
        connection = psycopg.connect(open("conninfo").read(), application_name="shutdown test")
        def discard():
            connection.close()
            open("discarded", "w").close()
        lifecycle.register(discard, lambda: None, LayerSettings.from_environment())
        def handler(event, context):
            return connection.execute("select pg_backend_pid()").fetchone()[0]
    """
    (tmp_path / "conninfo").write_text(database.conninfo(user=ROLE, password=PASSWORD, database=DATABASE))
    async with new_fleet(source) as fleet:
        backend = answer(await fleet.invoke(b"{}"))
        (environment,) = fleet.environments
        assert environment.is_frozen
    assert (tmp_path / "discarded").exists()
    assert exit_code(environment) == 0
    with psycopg.connect(database.conninfo(database=DATABASE), autocommit=True) as admin:
        count = "select count(*) from pg_stat_activity where pid = %s and application_name = 'shutdown test'"
        await wait_until("the backend stayed", lambda: admin.execute(count, (backend,)).fetchone() == (0,))


async def test_shutdown_keeps_the_functions_own_handler(new_fleet: NewFleet) -> None:
    """A SIGTERM handler that the function installed before runs, too, after the connection is closed."""
    own = "    signal.signal(signal.SIGTERM, lambda *_: (print('own handler', flush=True), sys.exit(3)))\n"
    source = RECORDS + own + REGISTERS.removeprefix(RECORDS)
    async with new_fleet(source) as fleet:
        answer(await fleet.invoke(b"{}"))
        (environment,) = fleet.environments
    assert environment.log_lines == ["discarded", "own handler"]
    assert exit_code(environment) == 0


async def test_failed_close_does_not_keep_the_process(new_fleet: NewFleet) -> None:
    """When closing raises the process ends all the same, before the kill."""
    async with new_fleet(REGISTERS.replace('calls.append("discard")', 'raise OSError("broken")')) as fleet:
        answer(await fleet.invoke(b"{}"))
        (environment,) = fleet.environments
    assert exit_code(environment) == 0


async def test_invocation_at_its_timeout_closes_the_connection(new_fleet: NewFleet) -> None:
    """Lambda ends the environment of an invocation that takes too long in the same way, and says what it was."""
    source = REGISTERS.replace("return {", "time.sleep(60); return {")
    async with new_fleet(source, timeout_seconds=1) as fleet:
        outcome = await fleet.invoke(b"{}")
    assert outcome.status == "timed_out"
    assert "discarded" in outcome.log


async def test_shutdown_can_be_left_alone(new_fleet: NewFleet) -> None:
    """With EMBERPOOL_CLOSE_ON_SHUTDOWN off nothing registers: Lambda kills the process at once."""
    async with new_fleet(REGISTERS, environment={names.CLOSE_ON_SHUTDOWN: "off"}) as fleet:
        answer(await fleet.invoke(b"{}"))
        (environment,) = fleet.environments
    assert environment.log_lines == []
    assert exit_code(environment) == -signal.SIGKILL


async def test_restored_environment_closes_its_connection_at_the_shutdown(new_fleet: NewFleet) -> None:
    """Snapshot and shutdown each close what is open then."""
    async with new_fleet(REGISTERS, snapstart=True) as fleet:
        answer(await fleet.invoke(b"{}"))
        (environment,) = fleet.environments
    assert environment.log_lines == ["discarded", "discarded"]


async def test_process_that_the_function_forks_dies_of_sigterm_as_usual(new_fleet: NewFleet) -> None:
    """Our handler in a forked child closes nothing and leaves the signal its meaning."""
    source = REGISTERS.replace(
        'return {"calls": calls,',
        """ready, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writing, b"!")
            while True:
                time.sleep(0.01)
        os.read(ready, 1)
        os.kill(pid, signal.SIGTERM)
        calls.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return {"calls": calls,""",
    )
    async with new_fleet(source) as fleet:
        seen = answer(await fleet.invoke(b"{}"))
    assert seen["calls"] == ["before snapshot: False", -signal.SIGTERM]


# --- it never breaks the initialisation ---

INITIALISES = """
    from emberpool import lifecycle
    from emberpool.settings import LayerSettings
    lifecycle.register(lambda: None, lambda: None, LayerSettings.from_environment())
    print("initialised")
"""


def run(code: str, **variables: str) -> str:
    environment = {**os.environ, **SETTINGS, **variables}
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, check=True
    )
    return ended.stdout + ended.stderr


def test_extensions_api_that_refuses_connections_is_no_error() -> None:
    """A Runtime API that is away costs the clean shutdown only."""
    assert run(INITIALISES, AWS_LAMBDA_RUNTIME_API="127.0.0.1:1") == "initialised\n"


async def test_extensions_api_that_never_answers_does_not_hold_the_initialisation() -> None:
    """A Runtime API that accepts and stays silent holds the initialisation for a moment, not for ever."""
    released = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        address = "{}:{}".format(*server.sockets[0].getsockname())
        output = await asyncio.to_thread(run, INITIALISES, AWS_LAMBDA_RUNTIME_API=address)
        released.set()
    assert output == "initialised\n"


async def test_late_answer_to_the_registration_is_one(new_fleet: NewFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Lambda that answers after the layer has gone on waits for the extension, which asks for its event then.

    On a loaded machine some environments of many were never ready: they were registered and did not know it.
    """
    answers, answered = ExtensionsApi._register, list[ExtensionsApi]()

    async def late(api: ExtensionsApi, request: web.Request) -> web.Response:
        response = await answers(api, request)
        await asyncio.sleep(lifecycle.REGISTRATION_SECONDS + 1.0)
        answered.append(api)
        return response

    monkeypatch.setattr(ExtensionsApi, "_register", late)
    async with new_fleet(REGISTERS) as fleet:
        answer(await fleet.invoke(b"{}"))
        assert answered  # before: an environment is ready when its extension waits for its event


async def test_next_event_is_asked_for_again_when_lambda_hangs_up(
    new_fleet: NewFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that breaks while the extension asks for its next event costs a moment, not the function."""
    answers, asked = ExtensionsApi._next, itertools.count()

    async def hangs_up_once(api: ExtensionsApi, request: web.Request) -> web.Response:
        if next(asked) == 0:
            request.transport.abort()
            return web.Response()
        return await answers(api, request)

    monkeypatch.setattr(ExtensionsApi, "_next", hangs_up_once)
    async with new_fleet(REGISTERS, init_timeout_seconds=10) as fleet:
        answer(await fleet.invoke(b"{}"))
    assert next(asked) == 2


async def test_second_extension_of_the_same_name_is_refused_without_an_error(new_fleet: NewFleet) -> None:
    """Registered twice (two processes of one environment): Lambda refuses the second, the function goes on."""
    async with new_fleet(REGISTERS + REGISTERS.removeprefix(RECORDS)) as fleet:
        answer(await fleet.invoke(b"{}"))
        (environment,) = fleet.environments
    assert set(environment.log_lines) == {"discarded"}


def test_outside_lambda_nothing_is_registered() -> None:
    """In a script or a test the signal's handling stays as it is, and no thread is started."""
    code = (
        textwrap.dedent(INITIALISES) + "import signal, threading; print(signal.getsignal(15), threading.active_count())"
    )
    assert run(code) == "initialised\n0 1\n"


def test_outside_the_main_thread_is_no_error() -> None:
    """Python takes signal handlers in its main thread only; the rest goes on."""
    body = textwrap.indent(textwrap.dedent(INITIALISES), "    ")
    code = f"import threading\ndef register():\n{body}\nthread = threading.Thread(target=register)\nthread.start()\n"
    assert run(code, AWS_LAMBDA_RUNTIME_API="127.0.0.1:1") == "initialised\n"


def test_ignored_sigterm_stays_ignored() -> None:
    """A function that ignores SIGTERM does so on purpose."""
    code = (
        f"import signal; signal.signal(15, signal.SIG_IGN)\n{textwrap.dedent(INITIALISES)}print(signal.getsignal(15))"
    )
    assert run(code, AWS_LAMBDA_RUNTIME_API="127.0.0.1:1") == "initialised\n1\n"


# --- the local Runtime API ---


async def test_extension_that_asks_for_no_event_holds_the_initialisation(new_fleet: NewFleet) -> None:
    """As on Lambda, a registered extension that never asks for its next event keeps the function from being ready."""
    source = """
        import http.client, os
        connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
        headers = {"Lambda-Extension-Name": "mute"}
        connection.request("POST", "/2020-01-01/extension/register", b'{"events": []}', headers)
        assert connection.getresponse().getheader("Lambda-Extension-Identifier")
        def handler(event, context):
            return 1
    """
    async with new_fleet(source, init_timeout_seconds=2) as fleet:
        with pytest.raises(HandlerNotLoaded, match="was not loaded within 2 seconds"):
            await fleet.invoke(b"{}")
