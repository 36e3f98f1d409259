"""How much one caller may ask of this task: so many requests a second, so many at once.

Counted after the signature was verified, so that nobody can use up another's share. Who is over it gets
ThrottlingException, which every SDK waits for and sends again: nothing has run.
"""

from __future__ import annotations

from emberpool_proxy.data_endpoint.errors import THROTTLED, DataError


class _Share:
    """What a caller has left: requests of this second, and how many are being worked on."""

    __slots__ = ("at", "left", "running")

    def __init__(self, left: float, at: float) -> None:
        self.left = left
        self.at = at
        self.running = 0


class Limits:
    """The limits of each caller: `requests_per_second` 0 is no limit, and a second's worth may come at once."""

    def __init__(self, requests_per_second: float, most_concurrent: int) -> None:
        self._per_second = requests_per_second
        self._burst = max(requests_per_second, 1.0)
        self._most_concurrent = most_concurrent
        self._shares: dict[str, _Share] = {}

    def enter(self, name: str, now: float) -> None:
        """Count a request in; `now` is in monotonic seconds. Raises DataError, and then there is nothing to leave."""
        share = self._shares.get(name)
        if share is None:
            share = self._shares[name] = _Share(self._burst, now)
        if share.running >= self._most_concurrent:
            raise DataError(
                THROTTLED,
                f"{name} has {share.running} requests running at this task, as many as it may; nothing has run",
            )
        if self._per_second:
            left = min(self._burst, share.left + (now - share.at) * self._per_second)
            share.at = now
            if left < 1:
                share.left = left
                raise DataError(
                    THROTTLED,
                    f"{name} sends more than {self._per_second:g} requests a second to this task, as many as it may; "
                    "nothing has run",
                )
            share.left = left - 1
        share.running += 1

    def leave(self, name: str) -> None:
        """Count a request out that `enter` has counted in."""
        share = self._shares[name]
        share.running -= 1
        # Kept only while it says something: users come and go with rotations.
        if not share.running and not self._per_second:
            del self._shares[name]

    def forget_idle(self, now: float) -> None:
        """Drop who has asked for nothing for so long that the whole share is there again."""
        for name, share in list(self._shares.items()):
            if not share.running and share.left + (now - share.at) * self._per_second >= self._burst:
                del self._shares[name]

    @property
    def running(self) -> int:
        """How many requests of all callers are being worked on."""
        return sum(share.running for share in self._shares.values())
