"""BeginTransaction, CommitTransaction, RollbackTransaction, and how a session comes back from a transaction."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from emberpool_proxy.data_endpoint.calls import BeginTransaction, Caller
from emberpool_proxy.data_endpoint.errors import DATABASE_ERROR, DataError
from emberpool_proxy.data_endpoint.failures import ABORTED, database_error, lost
from emberpool_proxy.data_endpoint.leases import Address, Lease, LeaseLimits, Leases
from emberpool_proxy.data_endpoint.pool import SessionPool
from emberpool_proxy.data_endpoint.runner import CLIENT_HAS_GONE, Runner
from emberpool_proxy.data_endpoint.session import IDLE, Session, SessionLost
from emberpool_proxy.data_endpoint.steps import COMMIT, ROLLBACK, begin, search_path
from emberpool_proxy.data_endpoint.verdict import error_of


class Transactions:
    """Opens and ends leases; `leases` has them."""

    def __init__(self, pool: SessionPool, runner: Runner, limits: LeaseLimits, address: Address | None) -> None:
        self._pool = pool
        self._runner = runner
        self.leases = Leases(limits, address, self._take_back)

    async def begin(self, caller: Caller, call: BeginTransaction) -> Lease:
        """Open a transaction. Raises DataError."""
        return await self.leases.open(caller, lambda: self._begun(caller, call.place.schema))

    async def commit(self, transaction_id: str, caller: Caller) -> None:
        """End a transaction. Raises DataError when it is not committed, or nobody knows."""
        async with self.leases.use(transaction_id, caller) as lease:
            ended = "its commit failed, and it was rolled back"
            try:
                await self._commit_in(lease.session)
                ended = "it was committed"
            except SessionLost as error_in_commit:
                ended = "it is not known whether it was committed"
                raise lost(error_in_commit, is_sent=True) from None
            finally:
                self.leases.end(lease, ended)
                self.release(lease.session)

    async def roll_back(self, transaction_id: str, caller: Caller) -> None:
        """Undo a transaction. Raises DataError."""
        async with self.leases.use(transaction_id, caller) as lease:
            self.leases.end(lease, "it was rolled back")
            await self._rolled_back(lease.session)

    def look_after(self, lease: Lease) -> None:
        """End a lease whose transaction was ended by a statement: by one that is known under no name of ours."""
        if lease.session.is_usable and not lease.session.is_running and lease.session.transaction_status == IDLE:
            self.leases.end(lease, "a statement has ended it")
            self.release(lease.session)

    def release(self, session: Session) -> None:
        """Give a session back to the pool; one that is not clean is closed, and PostgreSQL rolls it back."""
        self._pool.give(session)

    async def _commit_in(self, session: Session) -> None:
        # Not stopped for a client that has gone: it may be committed already.
        outcomes, why = await self._runner.run(session, (COMMIT,), stops=False)
        error = error_of(session, outcomes, why, self._runner.seconds, 0)
        if error is not None:
            raise database_error(error)
        if outcomes[0][-1].command_status != b"COMMIT":
            raise DataError(
                DATABASE_ERROR,
                f"ERROR: the transaction was aborted by an earlier error and has been rolled back; SQLState: {ABORTED}",
            )

    async def _begun(self, caller: Caller, schema: str) -> Session:
        session = self._pool.idle(caller) or await self._pool.take(caller)
        try:
            await self._open_in(session, caller, schema)
        except SessionLost as error_in_begin:
            self.release(session)
            raise lost(error_in_begin) from None
        except BaseException:
            await self._rolled_back(session)
            raise
        return session

    async def _open_in(self, session: Session, caller: Caller, schema: str) -> None:
        steps = [*begin(caller.is_read_only), *([search_path(schema)] if schema else [])]
        outcomes, why = await self._runner.run(session, steps)
        error = error_of(session, outcomes, why, self._runner.seconds, 0)
        if error is not None:
            raise database_error(error)
        if why == CLIENT_HAS_GONE:
            raise asyncio.CancelledError  # nobody would ever know its id

    async def _take_back(self, lease: Lease, why: str) -> None:
        """Roll back a lease that has ended by itself, after what it runs was stopped."""
        self._runner.stop(lease.session, why)
        async with lease.lock:
            await self._rolled_back(lease.session)

    async def _rolled_back(self, session: Session) -> None:
        with suppress(SessionLost):  # then PostgreSQL does it
            if session.transaction_status != IDLE:
                await self._runner.run(session, (ROLLBACK,), stops=False)
        self.release(session)
