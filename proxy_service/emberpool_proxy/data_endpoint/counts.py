"""What the data endpoint counts, and the file by which the agent hears of it: the agent tells the world."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import orjson

from emberpool_proxy import metrics
from emberpool_proxy.errors import RunFolderUnusable
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.config import DATA_COUNTS_FILE
from emberpool_proxy.pgbouncer.run_folder import RunFolder

WRITE_SECONDS = 5.0


class DataCounts:
    """Counts since the start of the process. `running` and `transactions` say how many there are now."""

    def __init__(self) -> None:
        self._requests = 0
        self._seconds = 0.0
        self._errors: Counter[str] = Counter()
        self.running: Callable[[], int] = int
        self.transactions: Callable[[], int] = int

    def add(self, seconds: float, error: str | None) -> None:
        """Count a request that was answered; `error` is the service's name of it."""
        self._requests += 1
        self._seconds += seconds
        if error is not None:
            self._errors[error] += 1

    def encoded(self) -> bytes:
        """Return them as JSON: a list of [metric, its labels, value]."""
        rows = [
            (metrics.DATA_REQUESTS, (), self._requests),
            (metrics.DATA_SECONDS, (), self._seconds),
            (metrics.DATA_RUNNING, (), self.running()),
            (metrics.DATA_TRANSACTIONS, (), self.transactions()),
            *((metrics.DATA_ERRORS, (kind,), count) for kind, count in self._errors.items()),
        ]
        return orjson.dumps(rows)

    async def keep_written(self, folder: RunFolder) -> None:
        """Write them every WRITE_SECONDS until cancelled. A full tmpfs is logged once."""
        has_failed = False
        while True:
            try:
                folder.write(DATA_COUNTS_FILE, self.encoded())
                has_failed = False
            except RunFolderUnusable as error:
                if not has_failed:
                    logger.warning("%s; the agent does not hear of the data endpoint meanwhile", error)
                has_failed = True
            await asyncio.sleep(WRITE_SECONDS)
