"""Who is in the fleet and under which peer ids: what the tasks tell each other, and what follows from it.

Pure. Asking the other tasks is fleet's. A peer id names one PgBouncer process; it is part of every cancel key, so a
cancel request that the balancer brought to another process is passed on to the one that runs the query.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from emberpool_proxy.pgbouncer.config import Peer

LARGEST_PEER_ID = 16383  # PgBouncer's; two of the cancel key's bits count how often a request was passed on
MOST_PROCESSES = 32
MOST_MEMBERS = 1000
LONGEST_REPORT_BYTES = 512 * 1024
LONGEST_AGE_SECONDS = 3600.0
# It becomes part of peers.ini: nothing that could be a second key, a comment, a list or a socket's path.
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")

Address = tuple[str, int]  # host and port of the health endpoint: what tells two tasks apart


class ReportUnreadable(ValueError):  # noqa: N818 (named by what happened; it never leaves the agent)
    """What answered is no agent of ours, or one of a version that we do not understand."""


@dataclass(frozen=True)
class Member:
    """One task. It holds the peer ids from `first_peer_id` on, one a process; `is_settled` once it uses them.

    `data_port` is the data endpoint's, 0 when there is none.
    """

    host: str
    client_port: int
    health_port: int
    first_peer_id: int
    processes: int
    is_settled: bool = False
    data_port: int = 0

    @property
    def address(self) -> Address:
        """Where it answers; no two members have the same."""
        return self.host, self.health_port

    @property
    def peer_ids(self) -> range:
        """Its block of ids."""
        return range(self.first_peer_id, self.first_peer_id + self.processes)

    def overlaps(self, other: Member) -> bool:
        """Whether both hold one id."""
        return self.first_peer_id < other.peer_ids.stop and other.first_peer_id < self.peer_ids.stop


@dataclass(frozen=True)
class Report:
    """What an agent says of the fleet: itself (None until it has chosen its ids), and whom it knows, with the age."""

    member: Member | None
    known: tuple[tuple[Member, float], ...] = ()

    def encoded(self) -> bytes:
        """Return it as JSON."""
        known = [{**asdict(member), "age_seconds": round(age, 3)} for member, age in self.known]
        return json.dumps({"member": asdict(self.member) if self.member else None, "known": known}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Report:
        """Read what another agent sent; keys that we do not know are ignored. Raises ReportUnreadable."""
        if len(data) > LONGEST_REPORT_BYTES:
            raise ReportUnreadable(f"a report has at most {LONGEST_REPORT_BYTES} bytes, got {len(data)}")
        try:
            values = json.loads(data)
            said, known = values["member"], values["known"]
            return cls(_member(said) if said is not None else None, tuple(map(_known, _list(known))))
        except ReportUnreadable:
            raise
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise ReportUnreadable(f"not a report: {type(error).__name__}") from error


class Membership:
    """Whom this agent knows, and how long ago somebody reached each of them.

    An age counts from the last time that any agent got the member's own answer, so one that is gone grows old
    everywhere at once and nobody brings it back. Times are seconds of one clock that the caller reads.
    """

    def __init__(self, own_address: Address, forget_seconds: float) -> None:
        self._own_address = own_address
        self._forget_seconds = forget_seconds
        self._seen: dict[Address, tuple[Member, float]] = {}

    def learn(self, report: Report, now: float) -> None:
        """Take over what an agent said of itself just now, and whom it knows."""
        if report.member:
            self._note(report.member, now)
        for member, age in report.known:
            self._note(member, now - age)

    def forget(self, now: float) -> None:
        """Drop the members that nobody has reached for `forget_seconds`."""
        for address, (_, seen) in list(self._seen.items()):
            if now - seen > self._forget_seconds:
                del self._seen[address]

    def members(self) -> tuple[Member, ...]:
        """Return the others, in an order that is the same for all who know the same."""
        return tuple(member for _, (member, _) in sorted(self._seen.items()))

    def report(self, own: Member | None, now: float) -> Report:
        """Return what to tell the others."""
        known = ((member, max(now - seen, 0.0)) for member, seen in self._seen.values())
        return Report(own, tuple((member, age) for member, age in known if age <= LONGEST_AGE_SECONDS))

    def _note(self, member: Member, seen: float) -> None:
        if member.address == self._own_address:
            return  # what others remember of us, or of who had our address before
        earlier = self._seen.get(member.address)
        if earlier is None and len(self._seen) >= MOST_MEMBERS:
            return
        if earlier is None or earlier[1] < seen:
            self._seen[member.address] = (member, seen)


def choose_block(host: str, client_port: int, processes: int, others: Iterable[Member]) -> int:
    """Return the first of `processes` peer ids in a row that nobody of `others` holds; 0 when there is none.

    It starts at a hash of the address, so that tasks that do not know of each other rarely meet: two of 2 processes
    do once in 5,000 times.
    """
    taken = {peer_id for other in others for peer_id in other.peer_ids}
    starts = LARGEST_PEER_ID - processes + 1
    wanted = int.from_bytes(hashlib.sha256(f"{host}:{client_port}".encode()).digest()[:8]) % starts
    for offset in range(starts):
        first = 1 + (wanted + offset) % starts
        if taken.isdisjoint(range(first, first + processes)):
            return first
    return 0


def must_yield(own: Member, others: Iterable[Member]) -> bool:
    """Whether `own`, which does not use its ids yet, must choose others: two who chose at the same moment.

    Who uses its ids already keeps them; of two who do not, the one with the smaller address does.
    """
    return any(own.overlaps(other) and (other.is_settled or other.address < own.address) for other in others)


def peers_of(own: Member, engine_folders: Sequence[Path], others: Iterable[Member]) -> tuple[Peer, ...]:
    """Return whom the PgBouncers of `own` can pass a cancel request to.

    Those of the same task share its port, so they are reached by their unix sockets. Those of another task too: a
    request to its port reaches any of them, which passes it on. An id that two hold is left to the one that has been
    here for longer, as far as that can be known: ourselves first, then who has settled.
    """
    peers: dict[int, Peer] = {}
    if own.processes > 1:
        for peer_id, folder in zip(own.peer_ids, engine_folders, strict=True):
            peers[peer_id] = Peer(peer_id, str(folder), own.client_port)
    for other in sorted(others, key=lambda other: (not other.is_settled, other.address)):
        for peer_id in other.peer_ids:
            if peer_id not in own.peer_ids:
                peers.setdefault(peer_id, Peer(peer_id, other.host, other.client_port))
    return tuple(peers[peer_id] for peer_id in sorted(peers))


def settled(member: Member) -> Member:
    """Return the member as one that uses its ids."""
    return replace(member, is_settled=True)


def is_host(text: str) -> bool:
    """Whether `text` is an IP address or a host name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return bool(HOST.fullmatch(text))
    return "%" not in text  # an IPv6 scope means something on one machine only


def _list(value: object) -> list[Any]:
    if not isinstance(value, list) or len(value) > MOST_MEMBERS:
        raise ReportUnreadable(f"a report names at most {MOST_MEMBERS} tasks")
    return value


def _known(values: Mapping[str, Any]) -> tuple[Member, float]:
    age = values["age_seconds"]
    if not isinstance(age, int | float) or not 0 <= age <= LONGEST_AGE_SECONDS:  # NaN is not either
        raise ReportUnreadable(f"an age is between 0 and {LONGEST_AGE_SECONDS} seconds")
    return _member(values), float(age)


def _member(values: Mapping[str, Any]) -> Member:
    host = values["host"]
    if not isinstance(host, str) or not is_host(host):
        raise ReportUnreadable("a member's host is neither a name nor an address")
    processes = _whole(values["processes"], 1, MOST_PROCESSES)
    return Member(
        host=host,
        client_port=_whole(values["client_port"], 1, 65535),
        health_port=_whole(values["health_port"], 1, 65535),
        first_peer_id=_whole(values["first_peer_id"], 1, LARGEST_PEER_ID - processes + 1),
        processes=processes,
        is_settled=values.get("is_settled") is True,
        data_port=_whole(values.get("data_port", 0), 0, 65535),  # a task of an earlier version does not say it
    )


def _whole(value: object, lowest: int, highest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise ReportUnreadable(f"a whole number between {lowest} and {highest} was expected")
    return value
