"""The local Lambda leaves no process, port or descriptor behind, however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from emberpool_local.errors import LocalStackError
from emberpool_local.lambda_runtime import Fleet, Outcome

METHODS = ("process", "fork")
HANDLER = """
    import subprocess, time
    def handler(event, context):
        if event == "busy":
            open("busy", "w").close()
            time.sleep(1000)
        return event
"""
OWNER = """
    import asyncio, sys
    from pathlib import Path
    from emberpool_local.lambda_runtime import Fleet

    async def main() -> None:
        async with Fleet("app:handler", Path(sys.argv[1]), start_method=sys.argv[2]) as fleet:
            await fleet.scale_out(4)
            await fleet.invoke(b"1")
            await fleet.invoke(b'"busy"')

    asyncio.run(main())
"""


@pytest.fixture
def code_folder(tmp_path: Path) -> Path:
    """Return a folder with the handler."""
    (tmp_path / "app.py").write_text(textwrap.dedent(HANDLER))
    return tmp_path


def wait_until(failure: str, is_true: Callable[[], bool], timeout_seconds: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not is_true():
        assert time.monotonic() < deadline, failure
        time.sleep(0.02)


def parents() -> dict[int, int]:
    """Return the parent of every process that is not a zombie."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found[int(folder.name)] = int(parent)
    return found


def descendants(pid: int) -> set[int]:
    """Return the processes below `pid`."""
    parent_of = parents()
    found: set[int] = set()
    while more := {child for child, parent in parent_of.items() if parent in {pid, *found}} - found:
        found |= more
    return found


def descriptors() -> set[str]:
    """Return what this process's open descriptors are: sockets, pipes, files."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found.add(str(descriptor.readlink()))
        except OSError:
            continue  # the listing's own
    return found


@pytest.mark.parametrize("method", METHODS)
async def test_closed_fleet_leaves_no_process_and_no_descriptor(code_folder: Path, method: str) -> None:
    """After the block nothing that the fleet opened exists: free, busy and dead environments alike."""
    processes, opened = descendants(os.getpid()), descriptors()
    async with Fleet("app:handler", code_folder, start_method=method) as fleet:  # type: ignore[arg-type]
        await fleet.scale_out(3)
        busy = asyncio.create_task(fleet.invoke(b'"busy"'))
        await asyncio.to_thread(wait_until, "the handler did not start", (code_folder / "busy").exists)
        await fleet.environments[0].kill()
        assert len(descendants(os.getpid()) - processes) >= 2
    assert (await busy).status == "crashed"
    assert descendants(os.getpid()) == processes
    assert descriptors() == opened


@pytest.mark.parametrize("method", METHODS)
async def test_exception_in_the_body_closes_the_fleet(code_folder: Path, method: str) -> None:
    """An exception passes through, and everything has ended."""
    processes, opened = descendants(os.getpid()), descriptors()

    async def body() -> None:
        async with Fleet("app:handler", code_folder, start_method=method) as fleet:  # type: ignore[arg-type]
            await fleet.scale_out(2)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await body()
    assert descendants(os.getpid()) == processes
    assert descriptors() == opened


@pytest.mark.parametrize("method", METHODS)
async def test_scaling_out_that_is_cancelled_leaves_nothing(code_folder: Path, method: str) -> None:
    """Ctrl-C while environments start ends those that were started."""
    processes, opened = descendants(os.getpid()), descriptors()
    async with Fleet("app:handler", code_folder, start_method=method) as fleet:  # type: ignore[arg-type]
        one_is_ready = asyncio.Event()
        scaling = asyncio.create_task(fleet.scale_out(20, progress=lambda *_: one_is_ready.set()))
        await one_is_ready.wait()
        scaling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await scaling
    assert descendants(os.getpid()) == processes
    assert descriptors() == opened


@pytest.mark.parametrize("method", METHODS)
async def test_closing_while_environments_start_leaves_nothing(code_folder: Path, method: str) -> None:
    """Environments that were being started when the fleet closed do not come to life after it."""
    processes, opened = descendants(os.getpid()), descriptors()
    async with Fleet("app:handler", code_folder, start_method=method) as fleet:  # type: ignore[arg-type]
        invocations = [asyncio.create_task(fleet.invoke(b"1")) for _ in range(20)]
        await asyncio.wait(invocations, return_when=asyncio.FIRST_COMPLETED)
    assert descendants(os.getpid()) == processes
    assert descriptors() == opened
    outcomes = await asyncio.gather(*invocations, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {Outcome, RuntimeError}


@pytest.mark.parametrize("method", METHODS)
def test_environments_die_with_an_owner_that_is_killed(code_folder: Path, method: str) -> None:
    """SIGKILL to the owning process ends frozen and busy environments and the fork server."""
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(OWNER), str(code_folder), method]) as owner:
        wait_until("the handler did not start", (code_folder / "busy").exists)
        below = descendants(owner.pid)
        owner.send_signal(signal.SIGKILL)
    assert len(below) >= 4
    wait_until("processes outlived their owner", lambda: not below & parents().keys())


async def test_environments_die_with_the_fork_server(code_folder: Path) -> None:
    """When the fork server is killed, its environments end, and the next invocation says so."""
    async with Fleet("app:handler", code_folder, start_method="fork") as fleet:
        await fleet.scale_out(2)
        parent_of = parents()
        (template,) = {parent_of[environment.pid] for environment in fleet.environments}
        below = descendants(template)
        os.kill(template, signal.SIGKILL)
        await asyncio.to_thread(wait_until, "the fleet kept dead environments", lambda: not fleet.environments)
        wait_until("environments outlived the fork server", lambda: not below & parents().keys())
        with pytest.raises(LocalStackError, match="forks Lambda execution environments has ended"):
            await fleet.invoke(b"1")


def test_environments_die_when_owner_and_fork_server_are_killed_together(code_folder: Path) -> None:
    """With nobody left who could clean up, the kernel ends the environments."""
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(OWNER), str(code_folder), "fork"]) as owner:
        wait_until("the handler did not start", (code_folder / "busy").exists)
        below = descendants(owner.pid)
        (template,) = (pid for pid, parent in parents().items() if parent == owner.pid)
        owner.send_signal(signal.SIGSTOP)  # it must not notice the end of the fork server
        os.kill(template, signal.SIGKILL)
        owner.send_signal(signal.SIGKILL)
    assert len(below) >= 5
    wait_until("processes outlived their owner", lambda: not below & parents().keys())
