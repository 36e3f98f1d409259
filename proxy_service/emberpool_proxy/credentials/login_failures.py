"""Who has given too many wrong passwords, and for how long PgBouncer should not even ask. Pure.

What is counted is the pair of address and user, and what is refused is that pair only: a wrong password of one user
never locks out another one. Behind a load balancer that hides its clients' addresses, or one network interface that
many functions share, good and bad clients of a user have the same address: a pair that has a good client connected is
therefore never refused. What a refusal is worth there is little anyway: it saves PgBouncer 0.07 ms of SCRAM, after the
TLS handshake; passwords that we generate cannot be guessed at any speed. It is for those that people choose.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from emberpool_proxy.settings import PLAIN_NAME

MOST_FAILURES = 20  # a function with an old password tries again a few times while its secret rotates
WINDOW_SECONDS = 60.0
REFUSED_SECONDS = 30.0
MOST_PAIRS = 1_000  # an attacker with a network of addresses must not fill our memory


@dataclass(frozen=True, order=True)
class Pair:
    """A client's address and the user that it claims to be."""

    address: str
    user: str


class LoginFailures:
    """Counts wrong passwords. Times are seconds of any one clock that does not go backwards."""

    def __init__(
        self,
        most_failures: int = MOST_FAILURES,
        window_seconds: float = WINDOW_SECONDS,
        refused_seconds: float = REFUSED_SECONDS,
        most_pairs: int = MOST_PAIRS,
    ) -> None:
        self._most_failures = most_failures
        self._window_seconds = window_seconds
        self._refused_seconds = refused_seconds
        self._most_pairs = most_pairs
        self._failed_at: dict[Pair, deque[float]] = {}
        self._refused_until: dict[Pair, float] = {}

    def add(self, pair: Pair, now: float) -> bool:
        """Count a wrong password; return whether the pair has reached the limit with it."""
        times = self._failed_at.pop(pair, None) or deque(maxlen=self._most_failures)
        times.append(now)
        self._failed_at[pair] = times  # the last one: the first is the one that was quiet for longest
        if len(self._failed_at) > self._most_pairs:
            del self._failed_at[next(iter(self._failed_at))]
        return len(times) == self._most_failures and now - times[0] <= self._window_seconds

    def refuse(self, pair: Pair, now: float) -> None:
        """Refuse a pair from now on; its earlier failures are forgotten, so that it starts afresh afterwards."""
        self.forget(pair)
        self._refused_until.pop(pair, None)
        self._refused_until[pair] = now + self._refused_seconds
        if len(self._refused_until) > self._most_pairs:
            del self._refused_until[next(iter(self._refused_until))]

    def forget(self, pair: Pair) -> None:
        """Start counting afresh for a pair."""
        self._failed_at.pop(pair, None)

    def refused(self, now: float) -> tuple[Pair, ...]:
        """Return the pairs that are refused now, in a stable order."""
        self._refused_until = {pair: until for pair, until in self._refused_until.items() if until > now}
        return tuple(sorted(self._refused_until))

    def seconds_to_next_end(self, now: float) -> float | None:
        """Return when the next refusal ends, from now; None when nobody is refused."""
        return max(min(self._refused_until.values()) - now, 0.0) if self._refused_until else None


def hba_rows(refused: Collection[Pair]) -> tuple[str, ...]:
    """Return the rows of PgBouncer's hba file that refuse these pairs; they belong before all that let somebody in.

    What is no IP address, or no name that a user of ours can have, gets none: it is text that a stranger chose.
    """
    rows = []
    for pair in refused:
        try:
            address = ipaddress.ip_address(pair.address)
        except ValueError:
            continue
        if PLAIN_NAME.fullmatch(pair.user):
            rows.append(f'host all "{pair.user}" {address}/{address.max_prefixlen} reject')
    return tuple(rows)
