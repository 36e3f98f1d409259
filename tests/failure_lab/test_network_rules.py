"""What becomes of a packet: the rules between two addresses, without any device."""

from __future__ import annotations

import struct

from emberpool_local.lab.packet_rules import DROP, TCP, Flight, decide, number_of, rule_between

A, B, C = "10.77.0.1", "10.77.0.2", "10.77.1.1"
DEVICE = 7
SYN, ACK, UDP = 0x02, 0x10, 17


def decided(*rules: object, source: str = A, target: str = B, device: int = DEVICE) -> int | Flight:
    return decide(device, number_of(source), number_of(target), rules)


def packet(source_port: int, target_port: int, flags: int, protocol: int = TCP) -> memoryview:
    """Return the headers of a packet, as far as the rules look at them."""
    header = bytes([0x45, *bytes(8), protocol, *bytes(10)])
    return memoryview(header + struct.pack(">HH", source_port, target_port) + bytes(9) + bytes([flags]) + bytes(6))


def test_without_rules_a_packet_goes_to_its_device() -> None:
    """No rule, or one between others: the device; an address that nobody has: lost."""
    assert decided() == DEVICE
    assert decided(rule_between(A, C, is_silent=True)) == DEVICE
    assert decided(device=DROP) == DROP


def test_rule_holds_in_both_directions() -> None:
    """A rule between two holds for either's packets; one without a second end for everybody's."""
    for rule in (rule_between(A, B, is_silent=True), rule_between(A, None, is_silent=True)):
        assert decided(rule) == DROP
        assert decided(rule, source=B, target=A) == DROP
    assert decided(rule_between(A, None, is_silent=True), source=C, target=B) == DEVICE


def test_silence_wins_over_delay() -> None:
    """Of a silent and a slow rule the silent one counts."""
    assert decided(rule_between(A, B, delay_seconds=1.0), rule_between(A, B, is_silent=True)) == DROP


def test_overlapping_rules_add_up() -> None:
    """Delays are added, and what passes one loss has to pass the other one."""
    slow = rule_between(A, B, delay_seconds=0.5, jitter_seconds=0.1, loss=0.5)
    flight = decided(slow, rule_between(A, None, delay_seconds=0.25, loss=0.5))
    assert isinstance(flight, Flight)
    assert (flight.delay_seconds, flight.jitter_seconds, flight.loss) == (0.75, 0.1, 0.75)


def test_packets_keep_their_order_whatever_the_jitter() -> None:
    """Moments never go back within one direction, and each packet has at least its delay."""
    flight = decided(rule_between(A, B, delay_seconds=0.5, jitter_seconds=0.5))
    assert isinstance(flight, Flight)
    moments = [flight.due(packet(1, 2, ACK), float(now) / 100) for now in range(100)]
    assert moments == sorted(moments)
    assert all(moment >= now / 100 + 0.5 for now, moment in enumerate(moments))


def test_total_loss_loses_everything_and_none_nothing() -> None:
    """With a loss of 1 no packet is due, with 0 and no delay each at once."""
    total = decided(rule_between(A, B, loss=1.0))
    none = decided(rule_between(A, B))
    assert isinstance(total, Flight)
    assert isinstance(none, Flight)
    assert total.due(packet(1, 2, ACK), 5.0) is None
    assert none.due(packet(1, 2, ACK), 5.0) == 0.0


def test_only_younger_connections_get_through_a_rule_that_forgets() -> None:
    """A connection is young from its SYN on, in both directions, for this rule; what is not TCP always passes."""
    rule = rule_between(A, B, younger=set())
    there, back = decided(rule), decided(rule, source=B, target=A)
    assert isinstance(there, Flight)
    assert isinstance(back, Flight)
    assert there.due(packet(4000, 5432, ACK), 1.0) is None
    assert there.due(packet(4001, 5432, SYN), 1.0) == 0.0
    assert back.due(packet(5432, 4001, SYN | ACK), 1.0) == 0.0
    assert there.due(packet(4001, 5432, ACK), 1.0) == 0.0
    assert back.due(packet(5432, 4000, SYN | ACK), 1.0) is None
    assert there.due(packet(53, 53, 0, protocol=UDP), 1.0) == 0.0
