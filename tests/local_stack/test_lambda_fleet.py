"""The local Lambda: invocations of real handlers by the real runtime client."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from emberpool_local.errors import EventInvalid, HandlerInvalid
from emberpool_local.lambda_runtime import Environment, Fleet, HandlerNotLoaded

from ..local_lambda import NewFleet, answer, wait_until
from ..processes import is_running

METHODS = ("process", "fork")

ECHO = """
    import os
    count = 0
    def handler(event, context):
        global count
        count += 1
        return {"event": event, "count": count, "pid": os.getpid()}
"""


def is_stopped(environment: Environment) -> bool:
    status = Path(f"/proc/{environment.pid}/stat").read_text()
    return status.rpartition(")")[2].split()[0] in "Tt"


@pytest.mark.parametrize("method", METHODS)
async def test_warm_invocations_keep_process_and_state(new_fleet: NewFleet, method: str) -> None:
    """The first invocation is cold; the next ones run in the same process with the module's state kept."""
    async with new_fleet(ECHO, start_method=method) as fleet:
        first = await fleet.invoke(b'{"order": 7}')
        second = await fleet.invoke(b"[]")
        (environment,) = fleet.environments
        assert answer(first) == {"event": {"order": 7}, "count": 1, "pid": environment.pid}
        assert answer(second) == {"event": [], "count": 2, "pid": environment.pid}
        assert first.is_cold
        assert first.init_ms is not None
        assert first.init_ms > 0
        assert not second.is_cold
        assert second.init_ms is None
        assert first.environment_number == second.environment_number == environment.number


@pytest.mark.parametrize("method", METHODS)
async def test_handler_sees_what_lambda_gives_it(new_fleet: NewFleet, method: str) -> None:
    """Context, variables, arguments, import path, working folder and session are those of a Lambda environment."""
    source = """
        import os, sys, time
        def handler(event, context):
            return {
                "arguments": sys.argv[1:], "cwd": os.getcwd(), "path": sys.path[0],
                "main_file": os.path.basename(os.path.dirname(sys.modules["__main__"].__file__)),
                "session": os.getsid(0) == os.getpid(), "ours": [m for m in sys.modules if m.startswith("emberpool")],
                "remaining_ms": context.get_remaining_time_in_millis(), "name": context.function_name,
                "memory": context.memory_limit_in_mb, "arn": context.invoked_function_arn,
                "variables": dict(os.environ), "zone": time.tzname[0],
                "descriptors": len(os.listdir("/proc/self/fd")),
            }
    """
    async with new_fleet(
        source, start_method=method, function_name="orders", memory_mb=256, environment={"TABLE": "o"}
    ) as fleet:
        seen = answer(await fleet.invoke(b"{}"))
    folder = seen["cwd"]
    assert seen["path"] == folder
    assert (seen["arguments"], seen["main_file"]) == (["app.handler"], "awslambdaric")
    assert (seen["session"], seen["ours"], seen["zone"]) == (True, [], "UTC")
    assert 0 < seen["remaining_ms"] <= 30_000
    assert (seen["name"], seen["memory"]) == ("orders", "256")
    assert seen["arn"].endswith(":function:orders")
    # Standard streams, curl's connection to the Runtime API and its wake-up pair, the listing: nothing of ours.
    assert seen["descriptors"] <= 7
    variables = seen["variables"]
    assert variables["TABLE"] == "o"
    assert variables["LAMBDA_TASK_ROOT"] == folder
    assert variables["AWS_LAMBDA_FUNCTION_NAME"] == "orders"
    assert variables["AWS_LAMBDA_FUNCTION_VERSION"] == "$LATEST"
    assert variables["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "256"
    assert variables["AWS_LAMBDA_LOG_GROUP_NAME"] == "/aws/lambda/orders"
    assert variables["AWS_LAMBDA_INITIALIZATION_TYPE"] == "on-demand"
    assert variables["AWS_EXECUTION_ENV"].startswith("AWS_Lambda_python3.")


@pytest.mark.parametrize("method", METHODS)
async def test_developers_secrets_do_not_reach_the_handler(
    new_fleet: NewFleet, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of our own variables only the allow-list is passed, and boto3 would find no credentials by itself."""
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "PGPASSWORD", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, "a secret")
    source = """
        import os
        def handler(event, context):
            try:
                os.makedirs(os.path.expanduser("~/.cache"))
            except OSError as error:
                return {**os.environ, "refusal": type(error).__name__}
    """
    async with new_fleet(source, start_method=method) as fleet:
        variables = answer(await fleet.invoke(b"{}"))
    assert "a secret" not in variables.values()
    assert variables["AWS_SHARED_CREDENTIALS_FILE"] == variables["AWS_CONFIG_FILE"] == os.devnull
    assert variables["refusal"] == "NotADirectoryError"  # there is no home, and none can be made


@pytest.mark.parametrize("method", METHODS)
async def test_handler_that_raises_fails_and_stays_warm(new_fleet: NewFleet, method: str) -> None:
    """The outcome has the exception's type, message and trace, and the environment takes the next event."""
    source = """
        def handler(event, context):
            print("about to raise")
            raise LookupError("no order " + str(event["order"]))
    """
    async with new_fleet(source, start_method=method) as fleet:
        outcome = await fleet.invoke(b'{"order": 7}')
        again = await fleet.invoke(b'{"order": 8}')
    assert (outcome.status, outcome.error_type, outcome.error_message) == ("failed", "LookupError", "no order 7")
    assert any("raise LookupError" in entry for entry in outcome.stack_trace)
    assert json.loads(outcome.payload)["errorType"] == "LookupError"
    assert "about to raise\n" in outcome.log
    assert "no order 7" in outcome.log
    assert "no order 7" not in again.log
    assert again.environment_number == outcome.environment_number


async def test_log_has_what_this_invocation_printed(new_fleet: NewFleet) -> None:
    """An outcome's log has prints, logging and children's output of that invocation only."""
    source = """
        import logging, subprocess, sys
        print("at import")
        def handler(event, context):
            print("printed", event)
            logging.getLogger().warning("logged %s", event)
            subprocess.run(["echo", "child " + str(event)], check=True)
    """
    async with new_fleet(source) as fleet:
        first, second = [await fleet.invoke(payload) for payload in (b"1", b"2")]
        assert "at import" in fleet.environments[0].log_lines
    for outcome, number in ((first, 1), (second, 2)):
        lines = outcome.log.splitlines()
        assert lines[0] == f"printed {number}"
        assert lines[1].startswith("[WARNING]")
        assert lines[1].endswith(f"logged {number}")
        assert lines[2:] == [f"child {number}"]


@pytest.mark.parametrize("method", METHODS)
async def test_timeout_kills_the_environment_and_its_children(new_fleet: NewFleet, method: str, tmp_path: Path) -> None:
    """An invocation above the timeout is timed_out; its process and what that started are gone."""
    source = """
        import os, subprocess, time
        def handler(event, context):
            child = subprocess.Popen(["sleep", "1000"])
            with open("pids", "w") as pids:
                pids.write(f"{os.getpid()} {child.pid}")
            time.sleep(1000)
    """
    async with new_fleet(source, start_method=method, timeout_seconds=1) as fleet:
        outcome = await fleet.invoke(b"{}")
        pids = (tmp_path / "pids").read_text().split()
        assert len(pids) == 2
        await wait_until("processes outlived the timeout", lambda: not any(is_running(pid) for pid in pids))
        assert fleet.environments == ()
    assert (outcome.status, outcome.error_type) == ("timed_out", "Sandbox.Timedout")
    assert outcome.error_message == "Task timed out after 1.00 seconds"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("statement", "exit_code"),
    [("sys.exit(3)", 3), ("os._exit(4)", 4), ("os.kill(os.getpid(), 11)", -11)],
)
async def test_process_that_ends_is_crashed_and_replaced(
    new_fleet: NewFleet, method: str, statement: str, exit_code: int
) -> None:
    """The outcome is crashed with the exit code, and the next invocation is cold in another environment."""
    source = f"""
        import os, sys
        def handler(event, context):
            print("last words")
            if event == "end":
                {statement}
            return event
    """
    async with new_fleet(source, start_method=method) as fleet:
        outcome = await fleet.invoke(b'"end"')
        after = await fleet.invoke(b'"go on"')
    assert (outcome.status, outcome.exit_code) == ("crashed", exit_code)
    assert outcome.error_type == "Runtime.ExitError"
    assert "last words" in outcome.log
    assert answer(after) == "go on"
    assert after.is_cold
    assert after.environment_number != outcome.environment_number


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("source", "error_type", "message", "next_step"),
    [
        ("def other(event, context): pass", "Runtime.HandlerNotFound", "'handler' missing", "define handler"),
        ("import no_such_package", "Runtime.ImportModuleError", "no_such_package", "install what"),
        ("def handler(:", "Runtime.UserCodeSyntaxError", "Syntax error", "mend the syntax"),
        ("print('hm')\nraise ValueError('no TABLE')", "ValueError", "no TABLE", "stack trace"),
        ("import sys\nprint('bye')\nsys.exit(5)", "Runtime.ExitError", "exit status 5", "sys.exit"),
    ],
)
async def test_handler_that_cannot_be_loaded(
    new_fleet: NewFleet, method: str, source: str, error_type: str, message: str, next_step: str
) -> None:
    """Each way in which loading fails is a HandlerInvalid with the handler, the cause and what to do next."""
    async with new_fleet(source, start_method=method) as fleet:
        with pytest.raises(HandlerNotLoaded) as caught:
            await fleet.invoke(b"{}")
        assert fleet.environments == ()
    error = caught.value
    assert isinstance(error, HandlerInvalid)
    assert error.error_type == error_type
    assert "app:handler" in error.problem
    assert message in error.problem
    assert next_step in error.next_step
    assert "\n" not in error.problem
    assert "Traceback" not in error.problem
    assert "LAMBDA_WARNING" not in error.log
    if error_type == "ValueError":
        assert any("raise ValueError" in entry for entry in error.stack_trace)
        assert "hm\n" in error.log


async def test_missing_module_names_the_folder(new_fleet: NewFleet, tmp_path: Path) -> None:
    """A module that is not there is looked for in the code folder, and the error says so."""
    async with new_fleet(ECHO, handler="orders.api:handler") as fleet:
        with pytest.raises(HandlerNotLoaded, match="No module named 'orders'") as caught:
            await fleet.scale_out(3)
        assert fleet.environments == ()
    assert str(tmp_path) in caught.value.next_step


async def test_handler_that_waits_forever_at_import(new_fleet: NewFleet) -> None:
    """An initialisation above its limit is ended and reported."""
    source = "import time\ntime.sleep(1000)"
    async with new_fleet(source, init_timeout_seconds=0.5) as fleet:
        with pytest.raises(HandlerNotLoaded, match="was not loaded within 0.5 seconds"):
            await fleet.invoke(b"{}")
        assert fleet.environments == ()


async def test_missing_code_folder_is_named(tmp_path: Path) -> None:
    """A code folder that does not exist is reported before anything is started."""
    with pytest.raises(HandlerInvalid, match="nowhere does not exist"):
        await Fleet("app:handler", tmp_path / "nowhere").__aenter__()


async def test_dotted_module_is_loaded(new_fleet: NewFleet, tmp_path: Path) -> None:
    """A handler in a package is named with dots."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "orders.py").write_text("def create(event, context):\n    return __name__")
    async with new_fleet(ECHO, handler="shop.orders:create") as fleet:
        assert answer(await fleet.invoke(b"{}")) == "shop.orders"


@pytest.mark.parametrize("method", METHODS)
async def test_frozen_environment_stands_still_and_answers_after_thaw(
    new_fleet: NewFleet, method: str, tmp_path: Path
) -> None:
    """Idle environments are stopped with all their threads; the next event lets them go on."""
    source = """
        import threading, time
        def beat():
            while True:
                with open("beats", "a") as beats:
                    beats.write(".")
                time.sleep(0.005)
        threading.Thread(target=beat, daemon=True).start()
        def handler(event, context):
            time.sleep(0.05)
            return event
    """
    beats = tmp_path / "beats"
    async with new_fleet(source, start_method=method) as fleet:
        assert answer(await fleet.invoke(b"1")) == 1
        (environment,) = fleet.environments
        assert environment.is_frozen
        await wait_until("the environment was not stopped", lambda: is_stopped(environment))
        before = beats.stat().st_size
        await asyncio.sleep(0.2)
        assert beats.stat().st_size == before
        assert answer(await fleet.invoke(b"2")) == 2
        assert beats.stat().st_size > before
        environment.thaw()
        thawed = beats.stat().st_size
        await wait_until("it did not go on", lambda: beats.stat().st_size > thawed)
        assert not environment.is_frozen


async def test_environments_run_on_when_freezing_is_off(new_fleet: NewFleet) -> None:
    """With freeze_when_idle=False an idle environment is not stopped."""
    async with new_fleet(ECHO, freeze_when_idle=False) as fleet:
        await fleet.scale_out(1)
        await fleet.invoke(b"1")
        assert not fleet.environments[0].is_frozen
        assert not is_stopped(fleet.environments[0])


async def test_sixty_environments_run_at_once_each_for_itself(new_fleet: NewFleet) -> None:
    """Sixty concurrent invocations run in sixty processes with their own variables and state."""
    source = """
        import os, time
        def handler(event, context):
            open(f"running-{event}", "w").close()
            while len([name for name in os.listdir() if name.startswith("running-")]) < 60:
                time.sleep(0.01)
            return [event, os.getpid(), os.environ["AWS_LAMBDA_LOG_STREAM_NAME"], os.environ["AWS_LAMBDA_RUNTIME_API"]]
    """
    reported: list[tuple[int, int]] = []
    async with new_fleet(source, max_environments=60) as fleet:
        await fleet.scale_out(40, progress=lambda ready, count: reported.append((ready, count)))
        outcomes = await asyncio.gather(*(fleet.invoke(str(number).encode()) for number in range(60)))
        pids = {environment.pid for environment in fleet.environments}
    answers = [answer(outcome) for outcome in outcomes]
    assert reported == [(number, 40) for number in range(1, 41)]
    assert [entry[0] for entry in answers] == list(range(60))
    assert {entry[1] for entry in answers} == pids
    assert len(pids) == len({entry[2] for entry in answers}) == len({entry[3] for entry in answers}) == 60
    assert sum(outcome.is_cold for outcome in outcomes) == 20


async def test_invocations_above_the_maximum_wait_for_a_free_environment(
    new_fleet: NewFleet,
) -> None:
    """More invocations than environments are all served, by as many environments as are allowed."""
    async with new_fleet(ECHO, max_environments=2) as fleet:
        outcomes = await asyncio.gather(*(fleet.invoke(str(number).encode()) for number in range(20)))
    assert [answer(outcome)["event"] for outcome in outcomes] == list(range(20))
    assert {outcome.environment_number for outcome in outcomes} == {1, 2}
    assert sum(outcome.is_cold for outcome in outcomes) == 2


async def test_waiting_invocation_gets_a_new_environment_when_one_dies(
    new_fleet: NewFleet,
) -> None:
    """When the only environment crashes, whoever waited for it is served by a new one."""
    source = """
        import os
        def handler(event, context):
            return event if event else os._exit(1)
    """
    async with new_fleet(source, max_environments=1) as fleet:
        first, second = await asyncio.gather(fleet.invoke(b"0"), fleet.invoke(b"1"))
    assert first.status == "crashed"
    assert answer(second) == 1
    assert second.is_cold


async def test_given_environment_runs_the_invocation(new_fleet: NewFleet) -> None:
    """An invocation can be sent to a given free environment; a busy or dead one is refused."""
    async with new_fleet(ECHO) as fleet:
        await fleet.scale_out(3)
        chosen, *_, other = fleet.environments
        for _ in range(2):
            assert answer(await fleet.invoke(b"{}", environment=chosen))["pid"] == chosen.pid
        await other.kill()
        await wait_until("the dead one was not forgotten", lambda: len(fleet.environments) == 2)
        with pytest.raises(RuntimeError, match="is not free"):
            await fleet.invoke(b"{}", environment=other)


async def test_cancelled_invocation_does_not_return_its_environment(new_fleet: NewFleet, tmp_path: Path) -> None:
    """The environment of a cancelled invocation is killed: the next event never meets a busy one."""
    source = """
        import time
        def handler(event, context):
            open("running", "w").close()
            time.sleep(event)
    """
    async with new_fleet(source, max_environments=1) as fleet:
        task = asyncio.create_task(fleet.invoke(b"1000"))
        await wait_until("the handler was not started", (tmp_path / "running").exists)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await fleet.invoke(b"0")).is_cold


@pytest.mark.parametrize("method", METHODS)
async def test_sizes_are_limited_as_on_lambda(new_fleet: NewFleet, method: str) -> None:
    """6 MB in and out pass; more is refused before the handler, or fails with Function.ResponseSizeTooLarge."""
    source = 'def handler(event, context):\n    return "x" * (event if isinstance(event, int) else len(event))'
    largest_text = 6_291_456 - 2  # the quotes
    async with new_fleet(source, start_method=method) as fleet:
        assert len(answer(await fleet.invoke(b'"' + b"y" * largest_text + b'"'))) == largest_text
        with pytest.raises(EventInvalid, match="6291457 bytes"):
            await fleet.invoke(b" " * 6_291_457)
        outcome = await fleet.invoke(b"7000000")
        assert (outcome.status, outcome.error_type) == ("failed", "Function.ResponseSizeTooLarge")
        assert "7000002" in (outcome.error_message or "")
        assert answer(await fleet.invoke(b"1")) == "x"


async def test_package_of_the_function_wins_over_the_imported_ahead(new_fleet: NewFleet, tmp_path: Path) -> None:
    """A package that the function brings along is the one that its handler imports, forked or not."""
    (tmp_path / "psycopg").mkdir()
    (tmp_path / "psycopg" / "__init__.py").write_text("__version__ = 'my own'")
    async with new_fleet("import psycopg\ndef handler(event, context):\n    return psycopg.__version__") as fleet:
        assert answer(await fleet.invoke(b"{}")) == "my own"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_environments": 0}, "max_environments must be at least 1, got 0"),
        ({"timeout_seconds": 0}, "timeouts must be above 0, got 0"),
        ({"start_method": "spawn"}, "start_method must be one of auto, process, fork, got 'spawn'"),
    ],
)
def test_settings_out_of_range_are_refused(new_fleet: NewFleet, settings: dict[str, Any], message: str) -> None:
    """The error has the setting, the allowed range and the value seen."""
    with pytest.raises(ValueError, match=message):
        new_fleet(ECHO, **settings)


async def test_more_than_the_maximum_cannot_be_started(new_fleet: NewFleet) -> None:
    """Scaling out above max_environments starts nothing."""
    async with new_fleet(ECHO, max_environments=2) as fleet:
        with pytest.raises(ValueError, match="at most 2 environments"):
            await fleet.scale_out(3)
        assert fleet.environments == ()
