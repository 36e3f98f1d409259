"""What the tasks tell each other, and what follows from it: pure."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberpool_proxy.agent.peers import (
    LARGEST_PEER_ID,
    LONGEST_REPORT_BYTES,
    MOST_MEMBERS,
    Member,
    Membership,
    Report,
    ReportUnreadable,
    choose_block,
    must_yield,
    peers_of,
)

OWN = Member("10.0.0.1", 6432, 8080, 100, 2)
FOLDERS = [Path("/run/emberpool/0"), Path("/run/emberpool/1")]


@st.composite
def members(draw: st.DrawFn, highest: int = LARGEST_PEER_ID) -> Member:
    processes = draw(st.integers(1, 32))
    return Member(
        host=draw(st.ip_addresses(v=4).map(str) | st.from_regex(r"[a-z]{1,10}(\.[a-z0-9]{1,10}){0,3}", fullmatch=True)),
        client_port=draw(st.integers(1, 65535)),
        health_port=draw(st.integers(1, 65535)),
        first_peer_id=draw(st.integers(1, min(highest, LARGEST_PEER_ID - processes + 1))),
        processes=processes,
        is_settled=draw(st.booleans()),
    )


close_together = members(highest=60)  # so that blocks often meet


@given(st.none() | members(), st.lists(st.tuples(members(), st.floats(0, 3600)), max_size=5))
def test_report_arrives_as_it_was_sent(own: Member | None, known: list[tuple[Member, float]]) -> None:
    """Decoding what was encoded gives the same members; ages to the millisecond."""
    arrived = Report.decode(Report(own, tuple(known)).encoded())
    assert arrived.member == own
    assert [member for member, _ in arrived.known] == [member for member, _ in known]
    assert [age for _, age in arrived.known] == pytest.approx([age for _, age in known], abs=0.001)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_garbage_is_unreadable_and_nothing_else(data: bytes) -> None:
    """No answer of a program that is no agent raises anything but ReportUnreadable."""
    with pytest.raises(ReportUnreadable):
        Report.decode(data)


@given(st.sampled_from([*asdict(OWN), "age_seconds"]), json_values)
def test_no_value_of_a_report_is_trusted(key: str, value: object) -> None:
    """A report with one strange value is unreadable, or what it says is within PgBouncer's bounds."""
    entry = {**asdict(OWN), "age_seconds": 1.0, key: value}
    try:
        report = Report.decode(json.dumps({"member": None, "known": [entry]}).encode())
    except ReportUnreadable:
        return
    ((member, age),) = report.known
    assert 1 <= member.first_peer_id <= member.peer_ids[-1] <= LARGEST_PEER_ID
    assert not set(member.host) & set(" \t\r\n=;,'\"/%#")
    assert 0 <= age <= 3600


@pytest.mark.parametrize("host", ["/tmp", "a b", "a,b", "a\nb=c", "", "a'b", "fe80::1%eth0", "a" * 300, "-a", "a;b"])
def test_host_that_would_be_more_than_a_host_in_peers_ini_is_refused(host: str) -> None:
    """A socket's path, a list, a second key or a comment is no host."""
    data = Report(replace(OWN, host=host)).encoded()
    with pytest.raises(ReportUnreadable, match="host"):
        Report.decode(data)


def test_oversized_reports_are_refused() -> None:
    """Neither bytes nor members without end are read."""
    with pytest.raises(ReportUnreadable, match="bytes"):
        Report.decode(b" " * (LONGEST_REPORT_BYTES + 1))
    with pytest.raises(ReportUnreadable, match="tasks"):
        Report.decode(json.dumps({"member": None, "known": [{}] * (MOST_MEMBERS + 1)}).encode())
    with pytest.raises(ReportUnreadable):
        Report.decode(b"[" * 100_000)


@given(st.lists(close_together, max_size=20), st.integers(1, 32))
def test_chosen_block_is_nobody_elses(others: list[Member], processes: int) -> None:
    """The chosen ids are in range and held by none that is known."""
    first = choose_block("10.0.0.9", 6432, processes, others)
    own = Member("10.0.0.9", 6432, 8080, first, processes)
    assert 1 <= first <= own.peer_ids[-1] <= LARGEST_PEER_ID
    assert not any(own.overlaps(other) for other in others)


def test_full_fleet_has_no_block_left() -> None:
    """When every id is held the answer is 0, not an id of somebody else."""
    others = [Member(f"10.0.{n >> 8}.{n & 255}", 6432, 8080, 1 + 32 * n, 32) for n in range(LARGEST_PEER_ID // 32)]
    assert choose_block("10.0.0.9", 6432, 32, others) == 0
    assert choose_block("10.0.0.9", 6432, 31, others) == LARGEST_PEER_ID - 30


@given(members(), members())
def test_overlap_is_what_the_ids_say(one: Member, other: Member) -> None:
    """Two overlap exactly when they have an id in common."""
    assert one.overlaps(other) == bool(set(one.peer_ids) & set(other.peer_ids))


@given(close_together, close_together)
def test_of_two_with_the_same_ids_exactly_one_yields(one: Member, other: Member) -> None:
    """Of two that overlap and have not settled one must choose again; who has settled never has to give way."""
    one, other = replace(one, host="10.0.0.1", is_settled=False), replace(other, host="10.0.0.2", is_settled=False)
    assert must_yield(one, [other]) + must_yield(other, [one]) == one.overlaps(other)
    assert must_yield(one, [replace(other, is_settled=True)]) == one.overlaps(other)


@given(st.lists(close_together, max_size=10), st.integers(1, 50))
def test_peers_have_one_address_an_id_and_siblings_their_sockets(others: list[Member], first: int) -> None:
    """Every id of the fleet is there once, our own processes by their sockets, whoever claims the same ids."""
    own = replace(OWN, first_peer_id=first)
    peers = peers_of(own, FOLDERS, others)
    assert [peer.peer_id for peer in peers] == sorted({*own.peer_ids, *(i for other in others for i in other.peer_ids)})
    assert [peer.host for peer in peers if peer.peer_id in own.peer_ids] == [str(folder) for folder in FOLDERS]
    assert peers == peers_of(own, FOLDERS, others[::-1]) or len({o.address for o in others}) < len(others)


def test_single_process_needs_no_peer_of_its_own() -> None:
    """A task of one process names the others only."""
    assert peers_of(replace(OWN, processes=1), FOLDERS[:1], []) == ()


def test_member_that_nobody_reaches_is_forgotten_by_all() -> None:
    """Two agents that tell each other of a third, which is gone, do not keep it alive."""
    gone, a, b = Member("10.0.0.3", 6432, 8080, 7, 1), Member("10.0.0.1", 1, 1, 1, 1), Member("10.0.0.2", 1, 1, 2, 1)
    at_a, at_b = Membership(a.address, 30), Membership(b.address, 30)
    at_a.learn(Report(gone), 0.0)
    for second in range(1, 40):
        at_b.learn(at_a.report(a, float(second)), float(second))
        at_a.learn(at_b.report(b, float(second)), float(second))
        at_a.forget(float(second))
        at_b.forget(float(second))
        assert (gone in at_a.members()) == (second <= 30)
        assert (gone in at_b.members()) == (second <= 30)
    assert at_a.members() == (b,)
    assert at_b.members() == (a,)


def test_newer_word_of_a_member_wins() -> None:
    """A task that took a gone one's address is known by what it says itself, not by what others remember."""
    before, after = Member("10.0.0.3", 6432, 8080, 7, 1), Member("10.0.0.3", 6432, 8080, 9, 2)
    membership = Membership(OWN.address, 30)
    membership.learn(Report(None, ((before, 0.0),)), 10.0)
    membership.learn(Report(after), 11.0)
    membership.learn(Report(None, ((before, 5.0),)), 12.0)
    assert membership.members() == (after,)


def test_what_others_remember_of_our_own_address_is_ignored() -> None:
    """A task never counts who had its address before as a member."""
    membership = Membership(OWN.address, 30)
    membership.learn(Report(None, ((replace(OWN, first_peer_id=5), 0.0),)), 0.0)
    assert membership.members() == ()


def test_number_of_members_is_bounded() -> None:
    """However many tasks are named, no more than a thousand are kept, and a report of them all is readable."""
    membership = Membership(OWN.address, 30)
    for n in range(MOST_MEMBERS + 10):
        membership.learn(Report(Member(f"10.1.{n >> 8}.{n & 255}", 65535, 65535, LARGEST_PEER_ID, 1)), 0.0)
    assert len(membership.members()) == MOST_MEMBERS
    assert len(Report.decode(membership.report(OWN, 1.0).encoded()).known) == MOST_MEMBERS
