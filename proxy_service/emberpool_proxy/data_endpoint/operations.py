"""The operations of the service: what each call becomes in the database, and its answer."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

from psycopg.pq.abc import PGresult

from emberpool_proxy.data_endpoint.asked import Asked, Batch, One
from emberpool_proxy.data_endpoint.autocommit import Autocommit
from emberpool_proxy.data_endpoint.calls import (
    BatchExecuteStatement,
    BeginTransaction,
    Call,
    Caller,
    CommitTransaction,
    ExecuteStatement,
    Place,
)
from emberpool_proxy.data_endpoint.catalog import Ask, Catalog
from emberpool_proxy.data_endpoint.errors import DATABASE_NOT_FOUND, DataError
from emberpool_proxy.data_endpoint.failures import database_error, failed, lost
from emberpool_proxy.data_endpoint.fallbacks import Fallbacks
from emberpool_proxy.data_endpoint.in_transaction import InTransaction
from emberpool_proxy.data_endpoint.leases import Address, Lease, LeaseLimits
from emberpool_proxy.data_endpoint.login import APPLICATION_NAME
from emberpool_proxy.data_endpoint.patience import Patience
from emberpool_proxy.data_endpoint.pool import SessionPool
from emberpool_proxy.data_endpoint.replies import COMMITTED, ROLLED_BACK, batch_reply, begun, execute_reply
from emberpool_proxy.data_endpoint.runner import Runner
from emberpool_proxy.data_endpoint.session import IN_TRANSACTION, Session, SessionLost
from emberpool_proxy.data_endpoint.statements import prepared_batch, prepared_call
from emberpool_proxy.data_endpoint.steps import Outcome, statement
from emberpool_proxy.data_endpoint.transactions import Transactions
from emberpool_proxy.data_endpoint.values import Value

_PROCESS = b"SELECT pid FROM pg_catalog.pg_stat_activity WHERE application_name = $1"
_OWN_PROCESS = b"SELECT pg_catalog.pg_backend_pid()"
_NAME = 19


class Operations:
    """Runs calls on the sessions of `pool`. `address` is this task's: it is in the ids of its transactions."""

    def __init__(
        self,
        pool: SessionPool,
        statement_seconds: float = 45.0,
        response_bytes: int = 1024 * 1024,
        limits: LeaseLimits | None = None,
        address: Address | None = None,
        catalog: Catalog | None = None,
    ) -> None:
        fallbacks, endless = Fallbacks(), Runner(math.inf)
        self._pool = pool
        self._response_bytes = response_bytes
        self._catalog = catalog or Catalog()
        self._runner = Runner(statement_seconds)
        self._autocommit = Autocommit(self._runner, fallbacks, response_bytes)
        self._in_transaction = InTransaction(self._runner, fallbacks, response_bytes)
        self._endless_autocommit = Autocommit(endless, fallbacks, response_bytes)
        self._endless_in_transaction = InTransaction(endless, fallbacks, response_bytes)
        self._transactions = Transactions(pool, self._runner, limits or LeaseLimits(), address)
        self._patience = Patience(statement_seconds)

    @property
    def open_transactions(self) -> int:
        """How many leases there are."""
        return len(self._transactions.leases)

    async def run(self, caller: Caller, call: Call) -> bytes:
        """Return the answer's body. Raises DataError; CancelledError when it was cancelled and has changed nothing."""
        if isinstance(call, ExecuteStatement):
            _check_database(caller, call.place)
            return await self._execute(caller, call)
        if isinstance(call, BatchExecuteStatement):
            _check_database(caller, call.place)
            return await self._batch(caller, call)
        if isinstance(call, BeginTransaction):
            _check_database(caller, call.place)
            return begun((await self._transactions.begin(caller, call)).id)
        if isinstance(call, CommitTransaction):
            await self._transactions.commit(call.transaction_id, caller)
            return COMMITTED
        await self._transactions.roll_back(call.transaction_id, caller)
        return ROLLED_BACK

    async def drain(self, seconds: float) -> None:
        """Open no more transactions, let those that are open end for so long, and roll the others back."""
        await self._transactions.leases.close(seconds)

    async def close(self, seconds: float = 0.0) -> None:
        """Drain, stop the statements that went on after their time, and log out."""
        await self.drain(seconds)
        await self._patience.close()
        self._pool.close()

    async def _execute(self, caller: Caller, call: ExecuteStatement) -> bytes:
        asked = One(*prepared_call(call))
        if call.place.transaction_id:
            return await self._execute_in_transaction(caller, call, asked)
        if call.continues_after_timeout:
            return await self._execute_patiently(caller, call, asked)
        session = self._pool.idle(caller) or await self._pool.take(caller)
        try:
            return await self._executed(session, caller, call, asked, self._autocommit)
        finally:
            self._pool.give(session)

    async def _executed(
        self, session: Session, caller: Caller, call: ExecuteStatement, asked: Asked, autocommit: Autocommit
    ) -> bytes:
        try:
            (outcome,) = await autocommit.run(session, caller, call.place.schema, asked)
        except SessionLost as error:
            raise lost(error) from None
        return await execute_reply(self._catalog, caller, call, outcome, self._ask(session), self._response_bytes)

    async def _execute_patiently(self, caller: Caller, call: ExecuteStatement, asked: Asked) -> bytes:
        # By its name the statement's process is found when the time is up. The session is not given to others: nobody
        # knows when it ends.
        name = f"{APPLICATION_NAME}-{secrets.token_hex(8)}"
        session = await self._pool.separate(caller, name)

        async def work() -> bytes:
            try:
                return await self._executed(session, caller, call, asked, self._endless_autocommit)
            finally:
                session.close()

        return await self._patience.wait(work(), lambda: self._process(caller, name))

    async def _process(self, caller: Caller, name: str) -> int:
        session = self._pool.idle(caller) or await self._pool.take(caller)
        try:
            return _number(await self._ask(session)(_PROCESS, [Value(name.encode(), _NAME)]))
        finally:
            self._pool.give(session)

    async def _execute_in_transaction(self, caller: Caller, call: ExecuteStatement, asked: Asked) -> bytes:
        if not call.continues_after_timeout:
            return await self._executed_in_transaction(caller, call, asked, self._in_transaction)
        pid = 0

        async def work() -> bytes:
            nonlocal pid
            async with self._transactions.leases.use(call.place.transaction_id, caller) as lease:
                if lease.session.transaction_status == IN_TRANSACTION:
                    pid = _number(await self._ask(lease.session)(_OWN_PROCESS, ()))
            return await self._executed_in_transaction(caller, call, asked, self._endless_in_transaction)

        async def process() -> int:
            return pid

        return await self._patience.wait(work(), process)

    async def _executed_in_transaction(
        self, caller: Caller, call: ExecuteStatement, asked: Asked, in_transaction: InTransaction
    ) -> bytes:
        async with self._transactions.leases.use(call.place.transaction_id, caller) as lease:
            (outcome,) = await self._run_in(lease, call.place.schema, asked, in_transaction)
            ask = self._ask(lease.session)
            return await execute_reply(self._catalog, caller, call, outcome, ask, self._response_bytes)

    async def _batch(self, caller: Caller, call: BatchExecuteStatement) -> bytes:
        asked = Batch(*prepared_batch(call))
        if call.place.transaction_id:
            async with self._transactions.leases.use(call.place.transaction_id, caller) as lease:
                outcomes = await self._run_in(lease, call.place.schema, asked, self._in_transaction)
                ask = self._ask(lease.session)
                return await batch_reply(self._catalog, caller, outcomes, ask, self._response_bytes)
        session = self._pool.idle(caller) or await self._pool.take(caller)
        try:
            outcomes = await self._autocommit.run(session, caller, call.place.schema, asked)
            return await batch_reply(self._catalog, caller, outcomes, self._ask(session), self._response_bytes)
        except SessionLost as error:
            raise lost(error) from None
        finally:
            self._pool.give(session)

    async def _run_in(
        self, lease: Lease, schema: str, asked: Asked, in_transaction: InTransaction
    ) -> Sequence[Outcome]:
        try:
            return await in_transaction.run(lease, schema, asked)
        except SessionLost as error:
            raise lost(error, in_transaction=True) from None
        finally:
            self._transactions.look_after(lease)

    def _ask(self, session: Session) -> Ask:
        async def ask(query: bytes, values: Sequence[Value]) -> PGresult:
            try:
                outcomes, _ = await self._runner.run(session, (statement(query, values),))
            except SessionLost as error:
                raise lost(error) from None
            if error_result := failed(outcomes):
                raise database_error(error_result)
            return outcomes[0][-1]

        return ask


def _number(result: PGresult) -> int:
    return int(result.get_value(0, 0) or 0) if result.ntuples else 0


def _check_database(caller: Caller, place: Place) -> None:
    if place.database and place.database != caller.entry:
        raise DataError(
            DATABASE_NOT_FOUND, f'this user has no database "{place.database}": it is "{caller.entry}", or leave it out'
        )
