"""What becomes of a packet between two addresses: decided from the rules that hold now, without any device."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

DROP = -1
TCP = 6
SYN, ACK = 0x02, 0x10

Connection = tuple[int, int, int, int]


@dataclass(frozen=True)
class Rule:
    """Holds between the addresses `a` and `b` (None: everybody), in both directions."""

    a: int
    b: int | None
    is_silent: bool = False
    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    loss: float = 0.0
    # Connections that began after this rule; None when it does not ask.
    younger: set[Connection] | None = None

    def concerns(self, source: int, target: int) -> bool:
        """Whether the rule holds for packets from `source` to `target`."""
        if self.b is None:
            return self.a in (source, target)
        return {self.a, self.b} == {source, target}


@dataclass
class Flight:
    """The packets from one address to another when rules hold for them."""

    device: int
    source: int
    target: int
    delay_seconds: float
    jitter_seconds: float
    loss: float
    younger: Sequence[set[Connection]]
    last_due: float = field(default=0.0)

    def due(self, packet: memoryview, now: float) -> float | None:
        """Return when the packet is due: 0 for at once, None for never."""
        if self.younger and not self._is_young(packet):
            return None
        if self.loss and random.random() < self.loss:  # noqa: S311 (not a secret)
            return None
        if not (self.delay_seconds or self.jitter_seconds):
            return 0.0
        jitter = random.random() * self.jitter_seconds  # noqa: S311
        # Networks seldom overtake themselves; TCP would take it for loss.
        self.last_due = max(self.last_due, now + self.delay_seconds + jitter)
        return self.last_due

    def _is_young(self, packet: memoryview) -> bool:
        header_bytes = (packet[0] & 0x0F) * 4
        if packet[9] != TCP:
            return True
        source_port, target_port = (int.from_bytes(packet[header_bytes + at :][:2], "big") for at in (0, 2))
        here, there = (self.source, source_port), (self.target, target_port)
        connection = (*min(here, there), *max(here, there))
        if packet[header_bytes + 13] & (SYN | ACK) == SYN:
            for known in self.younger:
                known.add(connection)
        return all(connection in known for known in self.younger)


def number_of(address: str) -> int:
    """Return an IPv4 address as the number that stands in packets."""
    return int(IPv4Address(address))


def rule_between(a: str, b: str | None, **asked: Any) -> Rule:
    """Return a rule between two addresses; `asked` are fields of Rule."""
    return Rule(number_of(a), None if b is None else number_of(b), **asked)


def decide(device: int, source: int, target: int, rules: Iterable[Rule]) -> int | Flight:
    """Return where packets from `source` to `target` go: `device`, DROP, or a flight that asks for each packet."""
    held = [rule for rule in rules if rule.concerns(source, target)]
    if device == DROP or any(rule.is_silent for rule in held):
        return DROP
    if not held:
        return device
    kept = 1.0
    for rule in held:
        kept *= 1.0 - rule.loss
    return Flight(
        device,
        source,
        target,
        sum(rule.delay_seconds for rule in held),
        sum(rule.jitter_seconds for rule in held),
        1.0 - kept,
        [rule.younger for rule in held if rule.younger is not None],
    )
