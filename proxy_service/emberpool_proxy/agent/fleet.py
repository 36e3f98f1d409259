"""Keeps this agent's picture of the fleet current, and PgBouncer's peers with it.

The tasks are found by a DNS name or a fixed list, and then by asking one another: DNS answers with at most 8 of them.
What they tell each other and what follows from it is in peers. A task that is unreachable, slow or talks nonsense costs
one short wait beside the others and is otherwise ignored.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import aiohttp
from aiohttp import web

from emberpool_proxy.addresses import as_known, families_of, is_of_other_family
from emberpool_proxy.agent.peers import (
    LONGEST_REPORT_BYTES,
    Address,
    Member,
    Membership,
    Report,
    ReportUnreadable,
    choose_block,
    must_yield,
    peers_of,
    settled,
)
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.config import Peer
from emberpool_proxy.settings import ProxySettings

PEERS_PATH = "/peers"
ANSWER_SECONDS = 1.0
RESOLVE_SECONDS = 2.0
CHOOSE_SECONDS = 5.0  # the start does not wait for the fleet for longer
CLAIM_SECONDS = 0.1  # two who start at the same moment see each other's choice after this
ASKED_AT_START = 32
ASKED_PER_ROUND = 3  # however many tasks there are, each is asked about as often, and news reach all in a few rounds
ROUNDS_TO_FORGET = 15

Resolve = Callable[[str], Awaitable[Iterable[str]]]
OnChange = Callable[[tuple[Peer, ...]], Awaitable[bool]]


async def resolve(name: str) -> set[str]:
    """Return the addresses behind a DNS name. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return {str(info[4][0]) for info in found}


class Fleet:
    """The other tasks of this pool, as far as this agent knows them.

    `choose_identity` comes before PgBouncer starts, `run` lasts as long as the agent; `answer` is the handler of
    PEERS_PATH, for GET and POST, and is to be mounted before both.
    """

    def __init__(self, settings: ProxySettings, resolve: Resolve = resolve, rng: random.Random | None = None) -> None:
        self._settings = settings
        self._resolve = resolve
        self._rng = rng or random.Random()  # noqa: S311 (whom to ask next)
        self._host = ""
        self._own: Member | None = None
        self._membership = Membership(("", 0), 0)
        self._listed = {_address(text) for text in settings.fleet_members.split(",") if text.strip()}
        self._found: set[Address] = set()
        self._finding: asyncio.Future[Iterable[str]] | None = None
        self._news = asyncio.Event()

    @property
    def is_alone(self) -> bool:
        """Whether the settings name no fleet."""
        return not self._settings.fleet_name and not self._listed

    async def choose_identity(self, earlier_first_peer_id: int = 0) -> int:
        """Return the first of this task's peer ids, one a PgBouncer process; 0: it needs none, or none is free.

        An agent that started again passes what its PgBouncers have already. Ends within some seconds, whatever the
        others do.
        """
        settings = self._settings
        if self.is_alone:
            first = earlier_first_peer_id or (1 if settings.pgbouncer_processes > 1 else 0)
            self._own = self._as_member("localhost", first) if first else None
            return first
        self._host = settings.advertised_host or await _own_address(settings)
        self._membership = Membership(
            (self._host, settings.health_port), settings.fleet_check_seconds * ROUNDS_TO_FORGET
        )
        if earlier_first_peer_id:
            self._own = settled(self._as_member(self._host, earlier_first_peer_id))
            return earlier_first_peer_id
        with suppress(TimeoutError):
            async with asyncio.timeout(CHOOSE_SECONDS), self._session() as session:
                await self._claim(session)
        own = self._own or self._choice()
        if own is None:
            logger.error("no peer ids are free: cancel requests reach this task only if the balancer brings them here")
            return 0
        self._own = settled(own)
        return own.first_peer_id

    async def run(self, on_change: OnChange) -> None:
        """Await `on_change(peers)` at the start and at each change, again until it says True. Never returns."""
        if self._own is None:
            await asyncio.Event().wait()  # it has no peers
        done: tuple[Peer, ...] | None = None
        tried: tuple[Peer, ...] | None = None
        async with self._session() as session:
            while True:
                if not self.is_alone:
                    await self._ask(session, await self._whom_to_ask())
                    self._membership.forget(asyncio.get_running_loop().time())
                if (peers := self._peers()) != done:
                    if peers != tried:
                        self._log_change(peers)
                    tried = peers
                    done = peers if await on_change(peers) else None
                await self._next_round()

    async def answer(self, request: web.Request) -> web.Response:
        """Answer another agent (POST, with its own report) or an operator (GET) with what this one knows."""
        if request.method == "POST":
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    report = Report.decode(await _body(request.content))
            except (ReportUnreadable, TimeoutError) as error:
                return web.json_response({"error": str(error)}, status=400)
            self._hear(report, request.remote)
        now = asyncio.get_running_loop().time()
        return web.Response(body=self._membership.report(self._own, now).encoded(), content_type="application/json")

    def describe(self) -> dict[str, Any]:
        """Return where this task and the others that it knows answer, for /status and /fleet."""
        own = _as_json((self._host, self._settings.health_port)) if self._host else None
        return {"address": own, "members": [_as_json(member.address) for member in self._membership.members()]}

    # --- the ids

    async def _claim(self, session: aiohttp.ClientSession) -> None:
        """Choose ids that nobody has, tell the others, and look whether somebody told them the same meanwhile."""
        # Who did not answer at once is not waited for again.
        whom = await self._ask(session, await self._whom_to_ask(ASKED_AT_START))
        while True:
            self._own = self._choice()
            if self._own is None or not whom:
                return
            await self._ask(session, whom)
            await asyncio.sleep(CLAIM_SECONDS * self._rng.uniform(1, 2))
            await self._ask(session, whom)
            if not must_yield(self._own, self._membership.members()):
                return

    def _choice(self) -> Member | None:
        settings = self._settings
        first = choose_block(self._host, settings.client_port, settings.pgbouncer_processes, self._membership.members())
        return self._as_member(self._host, first) if first else None

    def _as_member(self, host: str, first_peer_id: int) -> Member:
        settings = self._settings
        return Member(
            host,
            settings.client_port,
            settings.health_port,
            first_peer_id,
            settings.pgbouncer_processes,
            data_port=settings.data_port,
        )

    def _peers(self) -> tuple[Peer, ...]:
        if self._own is None:
            return ()
        folders = [self._settings.engine_path(index) for index in range(self._own.processes)]
        return peers_of(self._own, folders, self._membership.members())

    # --- the others

    async def _whom_to_ask(self, at_most: int = ASKED_PER_ROUND) -> list[Address]:
        await self._find()
        known = {member.address for member in self._membership.members()}
        own = (self._host, self._settings.health_port)
        new = sorted((self._listed | self._found) - known - {own})
        # One who joins waits to be found: half of the round is for those, not all, as a listed one may be gone.
        chosen = self._rng.sample(new, min(len(new), max(at_most - len(known), (at_most + 1) // 2)))
        return chosen + self._rng.sample(sorted(known), min(len(known), at_most - len(chosen)))

    async def _find(self) -> None:
        if not self._settings.fleet_name:
            return
        # One at a time: a resolver that hangs holds a thread.
        self._finding = self._finding or asyncio.ensure_future(self._resolve(self._settings.fleet_name))
        await asyncio.wait((self._finding,), timeout=RESOLVE_SECONDS)
        if not self._finding.done():
            return
        try:
            # A task with addresses of both kinds is known by one of them: asked for by the other it would stay unknown.
            self._found = {
                (host, self._settings.health_port)
                for host in self._finding.result()
                if not is_of_other_family(host, self._host)
            }
        except (OSError, UnicodeError) as error:
            # The ones that we know already are enough to go on.
            logger.debug("the fleet's name %s has no answer: %r", self._settings.fleet_name, error)
        self._finding = None

    async def _ask(self, session: aiohttp.ClientSession, addresses: Iterable[Address]) -> list[Address]:
        """Ask all at once; return who answered."""
        asked = list(addresses)
        answered = await asyncio.gather(*(self._ask_one(session, address) for address in asked))
        return [address for address, did in zip(asked, answered, strict=True) if did]

    async def _ask_one(self, session: aiohttp.ClientSession, address: Address) -> bool:
        loop = asyncio.get_running_loop()
        host, port = address
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}{PEERS_PATH}"
        told = self._membership.report(self._own, loop.time()).encoded()
        try:
            async with session.post(url, data=told, allow_redirects=False) as response:
                if response.status != web.HTTPOk.status_code:
                    raise ReportUnreadable(f"status {response.status}")
                report = Report.decode(await _body(response.content))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            logger.debug("%s:%s did not say who is in the fleet: %r", host, port, error)
            return False
        self._membership.learn(report, loop.time())
        return True

    def _hear(self, report: Report, remote: str | None) -> None:
        # Who asks says who it is, so that it need not wait to be found; nobody can say it of another task.
        if report.member and remote and report.member.host == as_known(remote) and self._host:
            before = self._membership.members()
            self._membership.learn(report, asyncio.get_running_loop().time())
            if self._membership.members() != before:
                self._news.set()

    async def _next_round(self) -> None:
        seconds = self._settings.fleet_check_seconds
        # News bring the next round forward, but a flood of them must not become a flood of RELOADs.
        await asyncio.sleep(seconds / 4)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), seconds * self._rng.uniform(0.5, 1))
        self._news.clear()

    def _session(self) -> aiohttp.ClientSession:
        source = (self._host, 0) if _is_ours(self._host) else None
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(local_addr=source, force_close=True, limit=ASKED_AT_START),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
            trust_env=False,
        )

    def _log_change(self, peers: tuple[Peer, ...]) -> None:
        members = self._membership.members()
        own = self._own
        fields = {"tasks": len(members) + 1, "peers": len(peers), "first_peer_id": own.first_peer_id if own else 0}
        logger.info("the fleet changed", extra={"fields": fields})
        for other in members:
            if own and own.overlaps(other):
                logger.error(
                    "another task has the same peer ids: cancel requests for one of the two are lost",
                    extra={"fields": {"host": other.host, "first_peer_id": other.first_peer_id}},
                )


async def _body(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > LONGEST_REPORT_BYTES:
            break  # what decodes it refuses it
    return bytes(body)


def _as_json(address: Address) -> dict[str, Any]:
    host, port = address
    return {"host": host, "health_port": port}


def _address(text: str) -> Address:
    host, _, port = text.strip().rpartition(":")
    return host.strip("[]"), int(port)


async def _own_address(settings: ProxySettings) -> str:
    """Return the address from which this machine reaches the database: a task has only one."""
    families = families_of(settings.listen_host)
    if families is None:
        return settings.listen_host
    # IPv4 first, so that tasks with both kinds of addresses know each other by the same one.
    for family in families:
        with suppress(OSError, UnicodeError, TimeoutError):
            async with asyncio.timeout(RESOLVE_SECONDS):
                found = await asyncio.get_running_loop().getaddrinfo(
                    settings.database_host, settings.database_port, family=family, type=socket.SOCK_DGRAM
                )
            for found_family, kind, _, _, address in found:
                with socket.socket(found_family, kind) as probe:
                    probe.connect(address)  # sends nothing
                    return str(probe.getsockname()[0])
    return socket.gethostname()


def _is_ours(host: str) -> bool:
    """Whether requests can be sent from `host`, so that the others know us by it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return True
    return False
