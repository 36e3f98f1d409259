"""The relays' process: `python -m emberpool_local.lab.relay_process` reads commands of relays.Relays (JSON lines)."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from typing import Any

from emberpool_local.lab.commanded import answer, refuse
from emberpool_local.lab.delay_queue import DelayQueue
from emberpool_local.lab.packet_rules import Rule, number_of, rule_between
from emberpool_local.lab.relay_way import MAY_LOSE, Way

# What the kernels of targets do otherwise: an agent's control connection outlives those of its pool.
KEEPALIVES = {"pool_seconds": 3.0, "control_seconds": 15.0}
SILENT = {"is_silent": True}
LAST_WORDS_SECONDS = 0.5


class _Program:
    def __init__(self) -> None:
        self.delayed: DelayQueue[Callable[[], None]] = DelayQueue()
        self.ways: dict[tuple[str, str, int], tuple[Way, int]] = {}
        self.rules: dict[int, Rule] = {}
        self.timers: dict[int, list[asyncio.TimerHandle]] = {}

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self.delayed.file, self.carry_out_delayed)
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            try:
                answer(await self.carry_out(*json.loads(line)))
            except OSError as error:
                refuse(error)

    def carry_out_delayed(self) -> None:
        for action in self.delayed.due():
            action()

    async def carry_out(self, command: str, *arguments: Any) -> object:
        match command:
            case "way":
                return await self.way(*arguments)
            case "rule":
                self.begin(*arguments)
            case "loses_packets":
                return MAY_LOSE
            case "forget":
                self.forget(*arguments)
            case "forget_clients":
                self.forget_clients({(host, port) for host, port in arguments[0]})
            case "end":
                self.end(*arguments)
            case "remove":
                self.remove(*arguments)
        return None

    async def way(self, source: str, target: str, port: int) -> int:
        """Return the port of this way on 127.0.0.1."""
        ends = source, target, port
        if ends not in self.ways:
            way = Way(source, target, port, self.delayed)
            self.ways[ends] = way, await way.listen(list(self.rules.values()))
        return self.ways[ends][1]

    def begin(self, number: int, a: str, b: str | None, asked: dict[str, Any], ends: dict[str, float]) -> None:
        """Let a rule hold; `ends` are the seconds until the keepalives of a target take effect."""
        rule = self.rules[number] = rule_between(a, b, **asked)
        self.apply()
        if rule.is_silent and not MAY_LOSE:
            ends = KEEPALIVES | ends
        loop = asyncio.get_running_loop()
        self.timers[number] = [
            loop.call_later(seconds, self.reset_at_target, rule, name == "control_seconds")
            for name, seconds in ends.items()
        ]

    def end(self, number: int) -> None:
        """End a rule."""
        del self.rules[number]
        for timer in self.timers.pop(number):
            timer.cancel()
        self.apply()

    def forget(self, _: int, a: str, b: str | None) -> None:
        """Let what is connected now lose everything from now on."""
        for way in self.concerned(rule_between(a, b)):
            for connection in way.connections:
                connection.forget()

    def forget_clients(self, ends: set[tuple[str, int]]) -> None:
        for way, _ in self.ways.values():
            for connection in way.connections:
                if connection.far and connection.far.address in ends:
                    connection.forget()

    def remove(self, number: int, address: str) -> None:
        """Let nothing through to an address any more, once its last words have been passed on."""
        asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, self.begin, number, address, None, SILENT, {})

    def reset_at_target(self, rule: Rule, is_control: bool) -> None:
        for way in self.concerned(rule):
            way.reset_at_target(is_control=is_control)

    def concerned(self, rule: Rule) -> list[Way]:
        return [way for way, _ in self.ways.values() if rule.concerns(number_of(way.source), number_of(way.target))]

    def apply(self) -> None:
        for way, _ in self.ways.values():
            way.apply(list(self.rules.values()))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_Program().run())
