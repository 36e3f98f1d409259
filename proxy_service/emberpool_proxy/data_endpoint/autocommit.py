"""A statement, or a batch, in a transaction of its own."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.pq.abc import PGresult

from emberpool_proxy.data_endpoint.asked import Asked, Batch
from emberpool_proxy.data_endpoint.calls import Caller
from emberpool_proxy.data_endpoint.failures import database_error, is_stale_plan
from emberpool_proxy.data_endpoint.fallbacks import Fallbacks, Typing, no_type_found
from emberpool_proxy.data_endpoint.runner import Runner
from emberpool_proxy.data_endpoint.session import IDLE, Session
from emberpool_proxy.data_endpoint.statements import FORGETS_PREPARED
from emberpool_proxy.data_endpoint.steps import COMMIT, ROLLBACK, Outcome, Step, Way, begin, search_path
from emberpool_proxy.data_endpoint.verdict import error_of
from emberpool_proxy.data_endpoint.wire_bytes import wire_bytes


class Autocommit:
    """Runs statements that are no part of a caller's transaction."""

    def __init__(self, runner: Runner, fallbacks: Fallbacks, most_bytes: int) -> None:
        self._runner = runner
        self._fallbacks = fallbacks
        self._most_bytes = most_bytes

    async def run(self, session: Session, caller: Caller, schema: str, asked: Asked) -> Sequence[Outcome]:
        """Return the outcomes of the steps of `asked`. Raises DataError and SessionLost; then nothing was changed."""
        before, after = _around(caller, schema, asked)
        typed = not asked.is_untyped or self._fallbacks.typing(asked.key(caller.entry)) is Typing.FALLBACK
        way, first = Way.REPEATED, None
        while True:
            steps = asked.steps(way, with_fallbacks=typed)
            outcomes, error = await self._attempt(session, [*before, *steps, *after])
            if error is None:
                break
            # Nothing has run: PostgreSQL has refused the statement itself.
            if way is Way.REPEATED and is_stale_plan(error):
                session.renew_prepared()
                way = Way.PLAIN
            elif not typed and no_type_found(error):
                typed, first = True, error
            else:
                raise database_error(first if first and no_type_found(error) else error, asked.compiled)
        if asked.is_untyped:
            self._fallbacks.learn(asked.key(caller.entry), Typing.FALLBACK if typed else Typing.FOUND)
        if asked.compiled.first_word in FORGETS_PREPARED:
            session.renew_prepared()
        return outcomes[len(before) : len(outcomes) - len(after)]

    async def _attempt(self, session: Session, steps: Sequence[Step]) -> tuple[list[Outcome], PGresult | None]:
        outcomes, why = await self._runner.run(session, steps, wire_bytes(self._most_bytes))
        try:
            return outcomes, error_of(session, outcomes, why, self._runner.seconds, self._most_bytes)
        finally:
            if session.transaction_status != IDLE:
                await self._runner.run(session, (ROLLBACK,), stops=False)


def _around(caller: Caller, schema: str, asked: Asked) -> tuple[list[Step], list[Step]]:
    """Return the steps before and after, all of them in one transaction.

    It is an explicit one where a procedure's own COMMIT must not end it: that would take READ ONLY off, and break a
    batch in two.
    """
    path = [search_path(schema)] if schema else []
    if caller.is_read_only or isinstance(asked, Batch):
        return [*begin(caller.is_read_only), *path], [COMMIT]
    return path, []
