"""What the network of namespaces makes on the machine: what a task sees of it, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from emberpool_local.host.children import start_child
from emberpool_local.host.waiting import wait_until
from emberpool_local.lab.network import LabNetwork, open_network
from emberpool_local.lab.packet_network import why_no_namespaces

pytestmark = pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces() or "never")

ROOM_BYTES = 1_048_576
LAB = """
import signal, sys
from pathlib import Path
from emberpool_local.host.children import start_child
from emberpool_local.lab.network import open_network

folder = Path(sys.argv[1])
with open_network("namespaces") as network:
    task = network.add_task(tmpfs={folder / "run": 1048576})
    child = start_child(task.command(["sleep", "600"]), log_path=folder / "log", death_signal=signal.SIGTERM)
    here = start_child(["sleep", "600"], log_path=folder / "log")
    print(network._router.pid, child.pid, here.pid, flush=True)
    signal.pause()
"""


@pytest.fixture
def network() -> Iterator[LabNetwork]:
    """A network of the test's own."""
    with open_network("namespaces") as opened:
        yield opened


def output(network_command: list[str]) -> str:
    return subprocess.run(network_command, check=True, capture_output=True, text=True).stdout


def network_namespace(pid: int | str) -> str:
    return Path(f"/proc/{pid}/ns/net").readlink().name


def test_each_task_has_its_own_resolver(network: LabNetwork) -> None:
    """A task's programs read the resolv.conf that it was given, another one's and the lab's the machine's."""
    before = Path("/etc/resolv.conf").read_text()
    named = network.add_task(resolv_conf="nameserver 10.77.0.9\n")
    assert output(named.command(["cat", "/etc/resolv.conf"])) == "nameserver 10.77.0.9\n"
    assert output(network.add_task().command(["cat", "/etc/resolv.conf"])) == before
    assert Path("/etc/resolv.conf").read_text() == before


def test_tmpfs_of_a_task_is_small_and_seen_by_the_lab(network: LabNetwork, tmp_path: Path) -> None:
    """What a task writes is there for the lab to read, the room ends where it was told to; removal takes it away."""
    folder = tmp_path / "deep" / "run"
    task = network.add_task(tmpfs={folder: ROOM_BYTES})
    subprocess.run(task.command(["sh", "-c", 'echo text > "$1/file"', "sh", str(folder)]), check=True)
    assert (folder / "file").read_text() == "text\n"
    with pytest.raises(OSError, match="No space left"):
        (folder / "filler").write_bytes(bytes(ROOM_BYTES))
    network.remove(task)
    assert list(folder.iterdir()) == []


def test_task_reaches_only_the_lab(network: LabNetwork) -> None:
    """A task has its own loopback and one device; the machine's own network is not there."""
    devices = output(network.add_task().command(["cat", "/proc/net/dev"])).splitlines()[2:]
    assert sorted(line.split(":")[0].strip() for line in devices) == ["lab0", "lo"]


def test_children_are_started_in_the_lab_and_threads_come_back(tmp_path: Path) -> None:
    """Inside, children of the process are in the lab's namespace; afterwards the calling thread is where it was."""
    before = network_namespace("thread-self"), Path.cwd(), Path("/proc/thread-self/mounts").read_text()
    with open_network("namespaces") as opened:
        assert network_namespace("thread-self") != before[0]
        child = start_child(["sleep", "600"], log_path=tmp_path / "log")
        assert network_namespace(child.pid) == network_namespace("thread-self")
        child.kill()
        opened.add_task(tmpfs={tmp_path / "run": ROOM_BYTES})
    assert (network_namespace("thread-self"), Path.cwd(), Path("/proc/thread-self/mounts").read_text()) == before
    outside = start_child(["sleep", "600"], log_path=tmp_path / "log")
    assert network_namespace(outside.pid) == before[0]
    outside.kill()


def test_threads_may_ask_at_once(network: LabNetwork) -> None:
    """Tasks that several threads add at once are all there, each with an address of its own."""
    addresses: list[str] = []
    threads = [threading.Thread(target=lambda: addresses.append(network.add_task().address)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(addresses)) == 8


def processes_in(namespaces: set[str]) -> list[int]:
    """Return the processes of the machine that are in one of these network namespaces."""
    found = []
    for each in Path("/proc").iterdir():
        try:
            if each.name.isdigit() and network_namespace(each.name) in namespaces:
                found.append(int(each.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_when_the_lab_is_killed(tmp_path: Path, stop: signal.Signals) -> None:
    """Whatever ends the lab's process, its router, its children in tasks, its namespaces and its mounts end too."""
    with subprocess.Popen([sys.executable, "-c", LAB, str(tmp_path)], stdout=subprocess.PIPE, text=True) as lab:
        try:
            pids = [int(pid) for pid in lab.stdout.readline().split()]
            comm = Path(f"/proc/{pids[1]}/comm")
            wait_until("the task has not become the program", lambda: comm.read_text() == "sleep\n")
            namespaces = {network_namespace(pid) for pid in pids}
        finally:
            os.kill(lab.pid, stop)
    assert len(namespaces) == 2, "the lab's own and the task's"
    assert network_namespace("self") not in namespaces
    wait_until("processes of the lab are left", lambda: not processes_in(namespaces), 20)
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
