"""Forwards IP packets between the lab's TUN devices, and delays and loses them as it is told: a process of its own.

`python -m emberpool_local.lab.packet_router` reads commands of packet_network (JSON lines). It owns the tasks'
namespaces: they are open files of it, which the nodes' launchers enter by /proc. One thread forwards and owns all
tables; the other one reads commands and has them carried out by the first.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from struct import Struct
from time import monotonic
from typing import Any

from emberpool_local.lab import namespaces
from emberpool_local.lab.commanded import answer, refuse
from emberpool_local.lab.delay_queue import DelayQueue
from emberpool_local.lab.packet_rules import DROP, Flight, Rule, decide, number_of, rule_between

BUFFER_BYTES = namespaces.MTU + 512
# So many packets of one device before the others' turn: a bulk transfer must not hold up the rest.
BATCH = 32
# The forwarding thread waits this long for the interpreter when the other one is at work.
SWITCH_SECONDS = 0.0005
# A network does not wait for the programs that use it; on a busy machine this process would.
PRIORITY = -15
DEVICE = "lab0"
_SOURCE_AND_TARGET = Struct(">Q")  # at byte 12 of an IPv4 header
_ADDRESSES_AT = 12


class Router:
    """The forwarding thread's tables; everything but post() belongs to that thread."""

    def __init__(self) -> None:
        self.devices: dict[int, int] = {}  # by address: the device's file
        self.rules: dict[int, Rule] = {}
        # What decide() said for a source and target that were seen: a device's file, or a flight with rules.
        self.decided: dict[int, int | Flight] = {}
        self.delayed: DelayQueue[tuple[int, bytes]] = DelayQueue()
        self.counts = {"forwarded": 0, "dropped": 0}
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._posted: deque[Callable[[], None]] = deque()
        for file in (self.delayed.file, self._wake):
            self._epoll.register(file, select.EPOLLIN)

    def post(self, change: Callable[[], object]) -> None:
        """Have the forwarding thread change the tables, and return when it has. Raises what the change raises."""
        done: Future[object] = Future()

        def carry_out() -> None:
            try:
                self.decided.clear()
                done.set_result(change())
            except BaseException as error:  # noqa: BLE001 (it is raised again in the thread that asked)
                done.set_exception(error)

        self._posted.append(carry_out)
        os.eventfd_write(self._wake, 1)
        done.result()

    def attach(self, device: int, addresses: list[str]) -> None:
        """Forward from and to a device that has these addresses."""
        for address in addresses:
            self.devices[number_of(address)] = device
        self._epoll.register(device, select.EPOLLIN)

    def detach(self, address: str) -> None:
        """Forget a device; what is under way to it is lost."""
        device = self.devices.pop(number_of(address))
        self.decided.clear()
        self._forward(device, bytearray(BUFFER_BYTES))  # its last words
        self._epoll.unregister(device)
        self.delayed.forget(lambda packet: packet[0] == device)
        os.close(device)

    def run(self) -> None:
        """Forward until the process ends."""
        buffer = bytearray(BUFFER_BYTES)
        while True:
            for file, _ in self._epoll.poll():
                if file == self._wake:
                    os.eventfd_read(self._wake)
                    while self._posted:
                        self._posted.popleft()()
                elif file == self.delayed.file:
                    for device, packet in self.delayed.due():
                        self._write(device, packet)
                else:
                    self._forward(file, buffer)

    def _forward(self, device: int, buffer: bytearray) -> None:
        """Read what has come from a device and pass it on: the hot path, a dictionary's look-up for each packet."""
        view, into, decided = memoryview(buffer), [buffer], self.decided
        forwarded = 0
        with suppress(OSError):  # there is nothing more to read, or a device was set down
            for _ in range(BATCH):
                size = os.readv(device, into)
                (ends,) = _SOURCE_AND_TARGET.unpack_from(buffer, _ADDRESSES_AT)
                way = decided.get(ends)
                if way is None:
                    way = self._decide(ends, buffer[0])
                if isinstance(way, Flight):
                    self._impair(way, view[:size])
                elif way != DROP:
                    os.write(way, view[:size])
                    forwarded += 1
                else:
                    self.counts["dropped"] += 1
        self.counts["forwarded"] += forwarded

    def _decide(self, ends: int, first_byte: int) -> int | Flight:
        if first_byte >> 4 != 4:  # noqa: PLR2004 (the IP version: IPv6's own announcements)
            return DROP
        source, target = ends >> 32, ends & 0xFFFFFFFF
        self.decided[ends] = decide(self.devices.get(target, DROP), source, target, self.rules.values())
        return self.decided[ends]

    def _impair(self, flight: Flight, packet: memoryview) -> None:
        due = flight.due(packet, monotonic())
        if due is None:
            self.counts["dropped"] += 1
        elif due == 0:
            self._write(flight.device, packet)
        else:
            self.delayed.add(due, (flight.device, bytes(packet)))

    def _write(self, device: int, packet: bytes | memoryview) -> None:
        with suppress(OSError):  # the device was set down
            os.write(device, packet)
            self.counts["forwarded"] += 1


class _Commands:
    """The thread that reads commands: makes namespaces and has the forwarding thread take note of them."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.namespaces: dict[str, tuple[int, int]] = {}
        self.main: list[str] = []
        self.is_led = False  # over our device, between main addresses

    def carry_out(self, name: str, *arguments: Any) -> object:
        command: Callable[..., object] = getattr(self, f"do_{name}")
        return command(*arguments)

    def do_main(self, network: str, addresses: list[str]) -> None:
        """Give this process's own network namespace a device with these addresses, the first one being the default."""
        device = namespaces.main_device(DEVICE, addresses, network)
        self.main = addresses
        self.router.post(lambda: self.router.attach(device, addresses))

    def do_task(self, address: str, network: str, resolv_conf: str | None) -> tuple[int, int]:
        """Make a task's namespaces; return their files' numbers."""
        resolver = Path(resolv_conf) if resolv_conf else None
        *entered, device = namespaces.in_new_thread(
            lambda: namespaces.task_namespaces(DEVICE, address, network, resolver)
        )
        self.router.post(lambda: self.router.attach(device, [address]))
        net, mnt = self.namespaces[address] = (entered[0], entered[1])
        return net, mnt

    def do_remove(self, address: str) -> None:
        self.router.post(lambda: self.router.detach(address))
        for file in self.namespaces.pop(address):
            os.close(file)

    def do_rule(self, number: int, a: str, b: str | None, asked: dict[str, Any], _: object) -> None:
        """Let a rule hold: `asked` are fields of Rule. Keepalives are the kernels' own here."""
        self._add(number, rule_between(a, b, **asked))

    def do_forget(self, number: int, a: str, b: str | None) -> None:
        """Let only connections through that begin from now on."""
        self._add(number, rule_between(a, b, younger=set()))

    def do_end(self, number: int) -> None:
        """End a rule."""
        self.router.post(lambda: self.router.rules.pop(number))
        self._lead_main_ways()

    def do_counts(self) -> dict[str, int]:
        return self.router.counts

    def _add(self, number: int, rule: Rule) -> None:
        self.router.post(lambda: self.router.rules.__setitem__(number, rule))
        self._lead_main_ways()

    def _lead_main_ways(self) -> None:
        """Have packets between two main addresses come here only while a rule may hold for them."""
        main = set(map(number_of, self.main))
        is_led = any(rule.a in main and (rule.b is None or rule.b in main) for rule in self.router.rules.values())
        if is_led != self.is_led:
            namespaces.lead_over_device(self.main, is_led)
            self.is_led = is_led


def main() -> None:
    """Carry out commands until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(PRIORITY)
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.disable()  # nothing here refers to itself, and a collection would hold up packets
    router = Router()
    threading.Thread(target=router.run, daemon=True).start()
    commands = _Commands(router)
    for line in sys.stdin:
        try:
            answer(commands.carry_out(*json.loads(line)))
        except OSError as error:
            refuse(error)


if __name__ == "__main__":
    main()
