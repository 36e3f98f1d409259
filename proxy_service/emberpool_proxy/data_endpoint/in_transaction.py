"""A statement, or a batch, in a transaction that its caller has opened."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.pq.abc import PGresult

from emberpool_proxy.data_endpoint.asked import Asked
from emberpool_proxy.data_endpoint.failures import database_error
from emberpool_proxy.data_endpoint.fallbacks import Fallbacks, Key, Typing, no_type_found
from emberpool_proxy.data_endpoint.leases import Lease
from emberpool_proxy.data_endpoint.runner import Runner
from emberpool_proxy.data_endpoint.statements import OF_SAVEPOINTS
from emberpool_proxy.data_endpoint.steps import (
    BACK_TO_SAVEPOINT,
    RELEASE,
    RESTORE_SEARCH_PATH,
    SAVEPOINT,
    Outcome,
    Step,
    Way,
    search_path,
)
from emberpool_proxy.data_endpoint.verdict import error_of
from emberpool_proxy.data_endpoint.wire_bytes import wire_bytes


class InTransaction:
    """Runs statements in leases."""

    def __init__(self, runner: Runner, fallbacks: Fallbacks, most_bytes: int) -> None:
        self._runner = runner
        self._fallbacks = fallbacks
        self._most_bytes = most_bytes

    async def run(self, lease: Lease, schema: str, asked: Asked) -> Sequence[Outcome]:
        """Return the outcomes of the steps of `asked`. Raises DataError and SessionLost.

        After an error the transaction is aborted, as PostgreSQL has it. A result that is too large leaves it as it was.
        """
        key = asked.key(lease.caller.entry)
        typing = self._fallbacks.typing(key) if asked.is_untyped else Typing.FOUND
        if typing is Typing.UNKNOWN:
            return await self._find_out(lease, schema, asked, key)
        outcomes, error = await self._attempt(lease, schema, asked, typing is Typing.FALLBACK)
        if error is not None:
            if asked.is_untyped and no_type_found(error):
                self._fallbacks.forget(key)  # what the statement calls has changed; it has cost this transaction
            raise database_error(error, asked.compiled)
        return outcomes

    async def _find_out(self, lease: Lease, schema: str, asked: Asked, key: Key) -> Sequence[Outcome]:
        """Try it untyped behind a savepoint: a statement that PostgreSQL refuses would abort the transaction."""
        outcomes, error = await self._attempt(lease, schema, asked, False, [SAVEPOINT], [RELEASE])
        if error is None:
            self._fallbacks.learn(key, Typing.FOUND)
            return outcomes
        if not no_type_found(error):
            raise database_error(error, asked.compiled)
        outcomes, second = await self._attempt(lease, schema, asked, True, [BACK_TO_SAVEPOINT], [RELEASE])
        if second is not None:
            raise database_error(error if no_type_found(second) else second, asked.compiled)
        self._fallbacks.learn(key, Typing.FALLBACK)
        return outcomes

    async def _attempt(
        self,
        lease: Lease,
        schema: str,
        asked: Asked,
        with_fallbacks: bool,
        first: Sequence[Step] = (),
        last: Sequence[Step] = (),
    ) -> tuple[Sequence[Outcome], PGresult | None]:
        has_path = schema and asked.compiled.first_word not in OF_SAVEPOINTS
        before = [*first, search_path(schema, is_kept=True)] if has_path else [*first]
        after = [RESTORE_SEARCH_PATH, *last] if has_path else [*last]
        # Not prepared by name: a plan that has become stale would abort the transaction.
        steps = asked.steps(Way.PLAIN, with_fallbacks)
        session = lease.session
        outcomes, why = await self._runner.run(
            session, [*before, *steps, *after], wire_bytes(self._most_bytes), drops_rows=True
        )
        error = error_of(session, outcomes, why, self._runner.seconds, self._most_bytes)
        return outcomes[len(before) : len(outcomes) - len(after)], error
