"""Which of the bundle's authorities PgBouncer verifies the database by: those that it needs, once that is seen.

PgBouncer reads its file of authorities again at each login at the database, on its one thread: 30 ms with the 145 of a
system, 6 ms with one. A pool that grows by 40 connections would stop for more than a second. So the file is a link to
the whole bundle at first; once the agent has seen the root that verifies the database, it holds that, its kin, and no
certificate that the bundle does not hold. Whenever PgBouncer finds the database unverified it is the link again, within
the call that hears of it: PgBouncer's next try, a tenth of a second later, has all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from emberpool_proxy.errors import RunFolderUnusable
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.config import DATABASE_CA_FILE, bundle_path, narrows_authorities
from emberpool_proxy.pgbouncer.log_lines import Event, ServerUnreachable
from emberpool_proxy.pgbouncer.run_folder import RunFolder
from emberpool_proxy.settings import ProxySettings
from emberpool_proxy.tls.database_chain import Bundle, Trusted, verified_chain

MOST_KEPT = 8  # each costs PgBouncer 0.2 ms at a login
# RDS has three roots a region, of which an instance has one at a time: "Amazon RDS eu-west-1 Root CA RSA2048 G1".
ALGORITHM = re.compile(r"(?:RSA|ECC|ECDSA|EC|EDDSA|ED)-?\d*", re.IGNORECASE)
GENERATION = re.compile(r"[A-Z]?\d{1,4}|CA", re.IGNORECASE)
CHECK_SECONDS = 1.0  # clients wait meanwhile
LONGEST_PAUSE_SECONDS = 60.0
# The file narrowed, PgBouncer did not verify the database by it: the next time is later, twice as late each time.
LONGEST_PAUSE_AFTER_FAULT_SECONDS = 3600.0
IN_FLIGHT_SECONDS = 0.5  # a login that began with the earlier file has failed by then
UNVERIFIED = ("certificate verify failed", "certificate has expired")
NO_ANSWER = (OSError, EOFError, TimeoutError)  # ssl.SSLError is an OSError

Stamp = tuple[int, int, int, int]


class DatabaseAuthorities:
    """Keeps PgBouncer's file of the database's authorities.

    `turn` is shared with whoever else connects to the database for the agent. `is_in_use` says whether a pool has
    connections: a paused database is not to be woken for this. `tell` gets the events of `saw`, without those that the
    whole bundle mends.
    """

    def __init__(
        self,
        settings: ProxySettings,
        turn: asyncio.Lock,
        is_in_use: Callable[[], Awaitable[bool]],
        tell: Callable[[int, Event], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._turn = turn
        self._is_in_use = is_in_use
        self._tell = tell
        self._clock = clock
        self._is_kept = narrows_authorities(settings)
        self._bundle_path = bundle_path(settings)
        self._path = settings.run_path / DATABASE_CA_FILE
        self._is_narrow = self._is_kept and self._path.is_file() and not self._path.is_symlink()
        self._is_settled = False
        self._stamp: Stamp | None = None
        self._roots: tuple[bytes, ...] = ()  # that have verified the database, the latest first
        self._is_awake = False
        self._woken = asyncio.Event()
        self._pause_seconds = 0.0
        self._not_before = 0.0
        self._faults = 0
        self._held_until = 0.0
        self._widened_at = -IN_FLIGHT_SECONDS
        self._withheld: tuple[int, Event] | None = None

    def begin(self) -> None:
        """Let the file be the whole bundle, for a PgBouncer that is to start. Raises RunFolderUnusable."""
        if self._is_kept:
            self._widen()

    def answered(self) -> None:
        """Hear that the database took a login just now: asking for its certificate wakes nobody."""
        self._is_awake = True
        if not self._is_settled:
            self._woken.set()

    def saw(self, index: int, event: Event) -> None:
        """Take an event of the log of PgBouncer `index`."""
        if isinstance(event, ServerUnreachable) and any(words in event.reason for words in UNVERIFIED):
            is_new = self._clock() - self._widened_at >= IN_FLIGHT_SECONDS
            if self._is_narrow and is_new:
                self._fault()
                is_new = False
            if not is_new:
                self._withheld = (index, event)
                return
        self._tell(index, event)

    async def check(self) -> None:
        """Look at a database that is back: it may be another one, or the first that the agent sees."""
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                if self._is_narrow:
                    context = Bundle.read(self._path, self._settings).context
                    await verified_chain(self._settings, context, self._turn)
                elif self._is_kept and not self._is_settled and not self._is_on_hold:
                    await self._look()
        except ssl.SSLCertVerificationError:
            self._fault()
        except NO_ANSWER:
            return

    async def run(self) -> None:
        """Keep the file until cancelled."""
        if not self._is_kept:
            await asyncio.Event().wait()
        await self._take_over()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.agent_tick_seconds):
                    await self._woken.wait()
            self._woken.clear()
            self._follow_bundle()
            if self._is_settled or self._is_on_hold or self._clock() < self._not_before:
                continue
            if self._is_awake or await self._is_in_use():
                await self._look()

    @property
    def _is_on_hold(self) -> bool:
        """Whether the file is to be the whole bundle for a while: narrowed, it did not hold."""
        return self._clock() < self._held_until

    async def _take_over(self) -> None:
        """Take the file as an agent before this one left it; the bundle may have changed since."""
        if not self._is_narrow:
            if not self._path.exists():
                self._widen_or_say()
            return
        self._stamp = _stamp(self._bundle_path)
        try:
            bundle = await self._read(self._bundle_path)
            if not (await self._read(self._path)).certificates <= bundle.certificates:
                self._widen_or_say()
        except OSError:
            self._widen_or_say()

    def _follow_bundle(self) -> None:
        stamp = _stamp(self._bundle_path)
        if stamp is None or stamp == self._stamp or self._stamp is None:
            return  # a bundle that is gone takes nobody's trust away: whoever replaces it writes a new one
        self._stamp, self._is_settled = None, False
        self._pause_seconds = self._not_before = self._held_until = 0.0
        if self._is_narrow:
            self._widen_or_say()

    async def _look(self) -> None:
        stamp, faults = _stamp(self._bundle_path), self._faults
        try:
            bundle = await self._read(self._bundle_path)
            is_small = len(bundle.authorities) <= MOST_KEPT
            chain = () if is_small else await verified_chain(self._settings, bundle.context, self._turn)
            if faults != self._faults:
                return  # PgBouncer said meanwhile that what was seen before does not hold
            kept = authorities_to_keep(bundle.authorities, chain, self._roots, time.time())
            if kept:
                self._narrow(kept, len(bundle.authorities))
                self._roots = tuple(dict.fromkeys((chain[-1], *self._roots)))[:MOST_KEPT]
        except RunFolderUnusable as error:
            logger.warning("%s; pgbouncer verifies the database by all of %s", error, self._bundle_path)
            self._try_later()
        except ssl.SSLCertVerificationError:
            self._try_later()
            if self._withheld:
                self._tell(*self._withheld)
                self._withheld = None
        except NO_ANSWER:
            self._try_later()
        else:
            self._withheld = None
            self._stamp, self._is_settled, self._pause_seconds = stamp, True, 0.0

    def _try_later(self) -> None:
        self._is_awake = False
        self._pause_seconds = min(self._pause_seconds * 2 or 1.0, LONGEST_PAUSE_SECONDS)
        self._not_before = self._clock() + self._pause_seconds

    def _fault(self) -> None:
        self._widen_or_say()
        self._is_settled, self._is_awake = False, True
        pause = min(2.0**self._faults, LONGEST_PAUSE_AFTER_FAULT_SECONDS)
        self._faults += 1
        self._widened_at = self._clock()
        self._held_until = self._widened_at + pause
        logger.warning(
            "the database's certificate is not of the authorities that it was of: pgbouncer verifies it by all of %s",
            self._bundle_path,
        )

    def _narrow(self, kept: Iterable[bytes], out_of: int) -> None:
        text = "".join(map(ssl.DER_cert_to_PEM_cert, kept))
        folder = RunFolder.existing(self._settings.run_path, self._settings.run_as_user)
        folder.write(DATABASE_CA_FILE, text)
        self._is_narrow = True
        fields = {"authorities": text.count("BEGIN CERTIFICATE"), "of": out_of}
        logger.info("pgbouncer verifies the database by the authorities that it needs", extra={"fields": fields})

    def _widen(self) -> None:
        folder = RunFolder.existing(self._settings.run_path, self._settings.run_as_user)
        folder.link(DATABASE_CA_FILE, self._bundle_path)
        self._is_narrow = False

    def _widen_or_say(self) -> None:
        try:
            self._widen()
        except RunFolderUnusable as error:
            logger.error("%s; pgbouncer verifies the database by the authorities in there", error)

    async def _read(self, path: Path) -> Bundle:
        return await asyncio.to_thread(Bundle.read, path, self._settings)


def authorities_to_keep(
    bundle: tuple[Trusted, ...], chain: tuple[bytes, ...], earlier_roots: tuple[bytes, ...], now: float
) -> tuple[bytes, ...]:
    """Return the certificates of `bundle` that verify what `chain` verified; none when it must stay whole.

    Those of the chain, then roots that did so earlier, then, up to MOST_KEPT and if they have not expired, those whose
    names differ from the root's in the algorithm or the generation only: a rotated certificate is often one of theirs.
    """
    known = {each.der: each for each in bundle}
    if not chain or chain[-1] not in known or len(bundle) <= MOST_KEPT:
        return ()
    needed = [der for der in reversed(chain) if der in known]
    root = known[chain[-1]]
    kin = [
        each.der
        for ignored in ((ALGORITHM,), (ALGORITHM, GENERATION))
        for each in bundle
        if each.expires_at > now and _family(each, *ignored) == _family(root, *ignored)
    ]
    kept = dict.fromkeys([*needed, *(der for der in earlier_roots if der in known), *kin])
    return tuple(kept)[: max(MOST_KEPT, len(needed))]


def _family(authority: Trusted, *ignored: re.Pattern[str]) -> tuple[object, ...]:
    words = [word for word in authority.common_name.split() if not any(each.fullmatch(word) for each in ignored)]
    return (words, [pair for pair in authority.subject if pair[0] != "commonName"])


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
