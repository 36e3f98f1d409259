"""Environments that run several invocations at once, as on Lambda Managed Instances: the real client forks workers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from emberpool_local.lambda_runtime import Environment, HandlerNotLoaded, Outcome
from emberpool_local.lambda_runtime.process import RunningProcess

from ..local_lambda import NewFleet, answer, wait_until
from ..processes import children_of, is_running

METHODS = ("process", "fork")
WORKERS = 3

# Answers when `event["together"]` invocations run at once, so that each of them has met the others.
MEETS = """
    import os, pathlib, time
    def handler(event, context):
        folder = pathlib.Path(event["round"])
        folder.mkdir(exist_ok=True)
        (folder / context.aws_request_id).touch()
        until = time.monotonic() + 20
        while len(list(folder.iterdir())) < event["together"] and time.monotonic() < until:
            time.sleep(0.005)
        return {
            "pid": os.getpid(), "parent": os.getppid(), "met": len(list(folder.iterdir())),
            "concurrency": os.environ["AWS_LAMBDA_MAX_CONCURRENCY"],
            "type": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"],
        }
"""


async def together(fleet: Any, name: str, count: int = WORKERS) -> list[dict[str, Any]]:
    event = json.dumps({"round": name, "together": count}).encode()
    return [answer(outcome) for outcome in await asyncio.gather(*(fleet.invoke(event) for _ in range(count)))]


def states(environment: Environment) -> set[str]:
    """Return the states of the environment's processes; T is stopped."""
    pids = [environment.pid, *workers(environment)]
    return {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in pids}


def workers(environment: Environment) -> list[int]:
    return [pid for pid in children_of(environment.pid) if is_running(pid)]


@pytest.mark.parametrize("method", METHODS)
async def test_each_invocation_has_a_worker_of_its_own(new_fleet: NewFleet, method: str) -> None:
    """As many invocations as workers run at once in one environment, and the workers stay for the next ones."""
    async with new_fleet(MEETS, start_method=method, max_concurrency=WORKERS, max_environments=1) as fleet:
        rounds = [await together(fleet, name) for name in ("first", "second")]
        (environment,) = fleet.environments
        assert {seen["pid"] for seen in rounds[0]} == {seen["pid"] for seen in rounds[1]} == set(workers(environment))
    for seen in (*rounds[0], *rounds[1]):
        assert (seen["met"], seen["parent"], seen["concurrency"]) == (WORKERS, environment.pid, str(WORKERS))
        assert seen["type"] == "lambda-managed-instances"


async def test_more_invocations_than_workers_get_another_environment(new_fleet: NewFleet) -> None:
    """When every worker is busy the fleet starts an environment, and at its maximum the invocation waits."""
    async with new_fleet(MEETS, max_concurrency=2, max_environments=2) as fleet:
        await together(fleet, "four", count=4)
        assert len(fleet.environments) == 2
        event = json.dumps({"round": "alone", "together": 1}).encode()
        outcomes = await asyncio.gather(*(fleet.invoke(event) for _ in range(20)))
        assert len({answer(outcome)["pid"] for outcome in outcomes}) <= 4
        assert len(fleet.environments) == 2


async def test_environment_is_never_frozen(new_fleet: NewFleet) -> None:
    """Neither beside a running invocation nor when all have ended are its processes stopped."""
    async with new_fleet(MEETS, max_concurrency=WORKERS, max_environments=1) as fleet:
        first = asyncio.create_task(fleet.invoke(json.dumps({"round": "two", "together": 2}).encode()))
        await fleet.invoke(json.dumps({"round": "one", "together": 1}).encode())
        (environment,) = fleet.environments
        environment.freeze()  # somebody asks for it while `first` runs
        assert not environment.is_frozen
        assert not first.done()
        assert "T" not in states(environment)
        await fleet.invoke(json.dumps({"round": "two", "together": 2}).encode())
        answer(await first)
        assert "T" not in states(environment)


async def test_timeout_ends_one_invocation_only(new_fleet: NewFleet, tmp_path: Path) -> None:
    """Lambda Managed Instances report the timeout and let the code run on; the others never notice."""
    source = """
        import pathlib, time
        def handler(event, context):
            while event == "waits" and not pathlib.Path("released").exists():
                time.sleep(0.005)
            if event == "waits":
                pathlib.Path("ran on").touch()
            return event
    """
    async with new_fleet(source, max_concurrency=2, max_environments=1, timeout_seconds=2) as fleet:
        waiting = asyncio.create_task(fleet.invoke(b'"waits"'))
        assert answer(await fleet.invoke(b"1")) == 1
        assert (await waiting).status == "timed_out"
        (environment,) = fleet.environments
        assert answer(await fleet.invoke(b"2")) == 2
        (tmp_path / "released").touch()
        await wait_until("the code did not run on", (tmp_path / "ran on").exists)
        assert answer(await fleet.invoke(b"3")) == 3
        assert fleet.environments == (environment,)


async def test_worker_that_dies_leaves_the_others(new_fleet: NewFleet) -> None:
    """The invocation of a worker that ended is lost; the environment goes on with the workers that are left."""
    source = "import os\ndef handler(event, context):\n    return os._exit(1) if event == 'dies' else os.getpid()"
    async with new_fleet(source, max_concurrency=2, max_environments=1, timeout_seconds=2) as fleet:
        await fleet.scale_out(1)
        (environment,) = fleet.environments
        assert (await fleet.invoke(b'"dies"')).status == "timed_out"
        assert {answer(await fleet.invoke(b"1")) for _ in range(3)} == set(workers(environment))
        assert len(workers(environment)) == 1


@pytest.mark.parametrize("method", METHODS)
async def test_process_that_dies_takes_its_workers_and_their_invocations_with_it(
    new_fleet: NewFleet, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each invocation is told that the environment has ended, and the kernel ends the workers, whoever cleans up."""
    monkeypatch.setattr(RunningProcess, "end_children", lambda _: None)
    source = "import time, pathlib\ndef handler(event, context):\n    pathlib.Path(event).touch()\n    time.sleep(1000)"
    async with new_fleet(source, start_method=method, max_concurrency=2, max_environments=1) as fleet:
        await fleet.scale_out(1)
        (environment,) = fleet.environments
        running = [asyncio.create_task(fleet.invoke(f'"{name}"'.encode())) for name in ("a", "b")]
        await wait_until("they did not start", lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
        below = workers(environment)
        assert len(below) == 2
        os.kill(environment.pid, signal.SIGKILL)
        outcomes: list[Outcome] = await asyncio.gather(*running)
        await wait_until("workers outlived their parent", lambda: not any(map(is_running, below)))
    assert [outcome.status for outcome in outcomes] == ["crashed", "crashed"]


async def test_handler_that_cannot_be_loaded_is_one_error(new_fleet: NewFleet) -> None:
    """All workers fail to import it; the first report is the error, and nothing is left."""
    async with new_fleet("import nothing_like_it", max_concurrency=WORKERS) as fleet:
        with pytest.raises(HandlerNotLoaded, match="nothing_like_it"):
            await fleet.invoke(b"{}")
        assert fleet.environments == ()


@pytest.mark.parametrize("settings", [{"max_concurrency": 0}, {"max_concurrency": 2, "snapstart": True}])
def test_settings_out_of_range_are_refused(new_fleet: NewFleet, settings: dict[str, Any]) -> None:
    """The error names the setting, the allowed range and the value seen."""
    with pytest.raises(ValueError, match="max_concurrency must be at least 1, and 1 with snapstart, got"):
        new_fleet(MEETS, **settings)
