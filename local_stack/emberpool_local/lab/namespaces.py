"""Linux namespaces and TUN devices, by their system calls; all of it belongs to threads and open files of processes.

Nothing has a name that outlives them: the kernel takes a namespace away with its last process and file, a TUN
device with its file.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from ipaddress import IPv4Interface
from pathlib import Path
from typing import TypeVar

ResultT = TypeVar("ResultT")

CLONE_FS, CLONE_NEWNS, CLONE_NEWNET = 0x200, 0x20000, 0x40000000
MS_BIND, MS_REC, MS_SLAVE, MS_SHARED = 0x1000, 0x4000, 0x80000, 0x100000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
# The kernel hands over and takes one packet of up to so many bytes at a time: few packets carry much.
MTU = 65_535
QUEUED_PACKETS = 10_000  # a storm of logins must not be lost in the device's queue
THIS_THREAD = Path("/proc/thread-self/ns")
RESOLV_CONF = Path("/etc/resolv.conf")

OVER_THE_DEVICE = 77  # a routing table of our own
MAIN_PREFIX = 24  # of the network of the main device's addresses

_LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def own_namespaces() -> Iterator[None]:
    """Move the calling thread into a network and a mount namespace of its own, and back at the end.

    Threads and children that it starts meanwhile are there too. Mounts of ours are not seen outside. Raises OSError.
    """
    before = [os.open(THIS_THREAD / name, os.O_RDONLY | os.O_CLOEXEC) for name in ("net", "mnt")]
    folder = Path.cwd()
    try:
        unshare(CLONE_NEWNET | CLONE_NEWNS)
        try:
            mount(None, Path("/"), MS_REC | MS_SLAVE)
            mount(None, Path("/"), MS_REC | MS_SHARED)  # a task's namespace sees what is mounted here later
            ip("link set lo up")
            yield
        finally:
            unshare(CLONE_FS)  # threads that began meanwhile share our root folder, and they stay
            for namespace, flag in zip(before, (CLONE_NEWNET, CLONE_NEWNS), strict=True):
                _check(_LIBC.setns(namespace, flag))
            os.chdir(folder)  # entering a mount namespace leaves us at its root
    finally:
        for namespace in before:
            os.close(namespace)


def in_new_thread(function: Callable[[], ResultT]) -> ResultT:
    """Call `function` in a thread of its own, whose namespaces it may change."""
    results: list[ResultT] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 (it is raised again in the thread that asked)
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def task_namespaces(device: str, address: str, network: str, resolv_conf: Path | None) -> tuple[int, int, int]:
    """Make a network and a mount namespace with one TUN device; return their files and the device's.

    `network` is what is reached over the device, besides the address itself. Changes the calling thread's namespaces.
    """
    unshare(CLONE_NEWNET | CLONE_NEWNS)
    mount(None, Path("/"), MS_REC | MS_SLAVE)
    if resolv_conf is not None:
        mount(resolv_conf, Path(os.path.realpath(RESOLV_CONF)), MS_BIND)
    tun = open_tun(device)
    ip("link set lo up", *link_commands(device, [address]), f"route add {network} dev {device}")
    net, mnt = (os.open(THIS_THREAD / name, os.O_RDONLY | os.O_CLOEXEC) for name in ("net", "mnt"))
    return net, mnt, tun


def main_device(device: str, addresses: Sequence[str], network: str) -> int:
    """Make a TUN device with these addresses in this thread's network namespace; return its file.

    What binds no address comes from the first one. What goes from one of the addresses to another one is the kernel's
    own until lead_over_device().
    """
    tun = open_tun(device)
    ip(
        *link_commands(device, addresses),
        f"route add {network} dev {device} src {addresses[0]} table {OVER_THE_DEVICE}",
        f"rule add pref 10 iif {device} lookup local",
        f"rule add pref 20 to {network} lookup {OVER_THE_DEVICE}",
        "rule add pref 30 lookup local",
        "rule del pref 0",
        f"route add {_straight(addresses)}",
    )
    for name, value in (("accept_local", "1"), ("rp_filter", "0")):  # packets from our own addresses come in
        Path(f"/proc/sys/net/ipv4/conf/{device}/{name}").write_text(value)
    Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text("0")  # the stricter one of both counts
    return tun


def lead_over_device(addresses: Sequence[str], is_led: bool) -> None:
    """Lead what goes from one address of the main device to another one over the device, or straight again.

    Connections that exist change their way too.
    """
    ip(f"route {'del' if is_led else 'add'} {_straight(addresses)}")


def _straight(addresses: Sequence[str]) -> str:
    """Return the route that delivers packets to our own addresses; of their network no other ones are used."""
    main = IPv4Interface(f"{addresses[0]}/{MAIN_PREFIX}").network
    return f"local {main} dev lo src {addresses[0]} table {OVER_THE_DEVICE}"


def link_commands(device: str, addresses: Sequence[str]) -> list[str]:
    """Return what `ip` is told to give the device these addresses and set it up."""
    _quiet_ipv6(device)
    return [
        *(f"addr add {address}/32 dev {device}" for address in addresses),
        f"link set {device} mtu {MTU} txqueuelen {QUEUED_PACKETS} up",
    ]


def open_tun(device: str) -> int:
    """Make a TUN device in this thread's network namespace; it lives as long as the returned file. Raises OSError."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH14x", device.encode(), IFF_TUN | IFF_NO_PI))
    except OSError:
        os.close(file)
        raise
    return file


def ip(*commands: str) -> None:
    """Have `ip` carry out commands in this thread's network namespace. Raises OSError with its words."""
    done = subprocess.run(
        ["ip", "-batch", "-"], input="\n".join(commands) + "\n", check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise OSError(errno.EINVAL, f"ip: {done.stderr.strip()}")


def mount_tmpfs(sizes_bytes: Mapping[Path, int]) -> None:
    """Mount a tmpfs of so many bytes at each path, seen in this thread's mount namespace and its tasks'."""
    for folder, size_bytes in sizes_bytes.items():
        folder.mkdir(parents=True, exist_ok=True)
        _check(_LIBC.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size_bytes},mode=0755".encode()))


def unmount(folder: Path) -> None:
    """Take a mount away, at once for the eyes and when its last open file is closed for the kernel."""
    lazily = 2  # MNT_DETACH
    _check(_LIBC.umount2(os.fsencode(folder), lazily))


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces. Raises OSError."""
    _check(_LIBC.unshare(flags))


def mount(source: Path | None, target: Path, flags: int) -> None:
    """Bind `source` to `target`, or change how mounts spread. Raises OSError."""
    _check(_LIBC.mount(None if source is None else os.fsencode(source), os.fsencode(target), None, flags, None))


def _quiet_ipv6(device: str) -> None:
    with suppress(FileNotFoundError):  # a kernel without IPv6
        Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").write_text("1")


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
