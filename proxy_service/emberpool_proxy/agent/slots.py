"""This task's slots: taken, given back and listed over its one control connection to the database.

A slot is the right to one server connection above the floor. It is held as an advisory lock, so it ends with the
session that holds it. When to take and to give is decide's; what the locks are is written in slot_locks.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Sequence

import psycopg
from psycopg import sql

from emberpool_proxy.agent.budget_reading import FleetView
from emberpool_proxy.agent.control_connection import DEADLINE_SECONDS, ControlConnection, Rows
from emberpool_proxy.agent.slot_locks import (
    CONTROL_NAME,
    LARGEST_VALUE,
    MAY_WE,
    Mark,
    SlotLocks,
    end_session,
    fleet_view,
    mark_key,
    terms_value,
)
from emberpool_proxy.errors import BudgetUnusable, words_of
from emberpool_proxy.settings import ProxySettings, variable

INHERIT_SECONDS = 5.0  # a backend that is told to end does so in milliseconds, unless its machine is overloaded
INHERIT_POLL_SECONDS = 0.005
# libpq gives no SQLSTATE for a failed login. Where the server speaks another language this does not match, and the
# login is tried again.
NEVER_LETS_US_IN = re.compile(r"permission denied for database|database \"[^\"]*\" does not exist")


class Slots:
    """The slots of one task. `login` returns (role, password), `roles` those of the pools' server connections.

    One question at a time goes over the connection; others wait for their turn. Whatever fails ends the connection, and
    `held` is empty from that moment: the failing call raises psycopg.OperationalError.
    """

    def __init__(
        self,
        settings: ProxySettings,
        task_name: str,
        login: Callable[[], tuple[str, str]],
        roles: Callable[[], frozenset[str]],
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._settings = settings
        self._task_name = task_name
        self._login = login
        self._roles = roles
        self._deadline_seconds = deadline_seconds
        self._database = settings.budget_database or settings.database_name
        self._locks = SlotLocks.of(settings.budget_name)
        self._connection: ControlConnection | None = None
        self._held: frozenset[int] = frozenset()
        self._missing = 0
        self._lost_callbacks: list[Callable[[], None]] = []

    @property
    def is_open(self) -> bool:
        """Whether there is a control connection."""
        return self._connection is not None

    @property
    def held(self) -> frozenset[int]:
        """The numbers of the slots that are held; empty as soon as the connection is lost."""
        return self._held

    @property
    def missing(self) -> int:
        """How many connections the others read that this task lacks."""
        return self._missing

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, from the event loop, as soon as the connection is lost; not when it is closed."""
        self._lost_callbacks.append(callback)

    def descriptor(self) -> int:
        """Return the socket's descriptor. Raises psycopg.OperationalError when there is no connection."""
        return self._opened().descriptor

    async def open(self) -> int:
        """Connect and publish what the settings promise; return the process id of the backend.

        Raises BudgetUnusable for what only people can mend, psycopg.OperationalError and TimeoutError for what may
        pass.
        """
        if self._connection:
            return self._connection.process_id
        connection = await self._connect()
        try:
            await self._prepare(connection)
        except psycopg.ProgrammingError as error:
            raise BudgetUnusable(f"{self._place} cannot keep the budget: {words_of(error)}") from error
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            raise psycopg.OperationalError(words_of(error)) from error
        except BaseException:
            connection.close()
            raise
        if not connection.is_open:
            raise psycopg.OperationalError("the control connection was lost as soon as it was open")
        self._connection = connection
        return connection.process_id

    async def view(self) -> FleetView:
        """Return what all tasks hold and lack, and how many connections the database counts."""
        at = time.monotonic()
        connection = self._opened()
        rows = await self._ask(self._locks.fleet(self._roles()))
        own = next((row for row in rows if row[0] == connection.process_id), None)
        if own is None or own[2] is None or not self._held <= set(own[1]):
            connection.lose()
            raise psycopg.OperationalError("the database does not know our locks any more")
        if rows[0][-1] and self._settings.database_must_be_writable == "yes":
            connection.lose()
            raise psycopg.OperationalError("the database takes no writes any more: another one has its place")
        return fleet_view(self._settings, at, connection.process_id, rows)

    async def take(self, candidates: Sequence[int], count: int) -> frozenset[int]:
        """Try the candidates in their order until `count` more slots are held; return which were got."""
        wanted = [number for number in candidates if number not in self._held]  # a lock counts how often it is taken
        if not wanted or count <= 0:
            return frozenset()
        taken = _numbers(await self._ask(self._locks.take(wanted, count)))
        self._held |= taken
        return taken

    async def give(self, numbers: Iterable[int]) -> None:
        """Give slots back; those that are not held are left out."""
        given = self._held & frozenset(numbers)
        if not given:
            return
        self._held -= given  # before the database hears of it: from then on they may be another's
        await self._ask(self._locks.give(given))

    async def publish_missing(self, missing: int) -> None:
        """Tell the others how many connections this task lacks; 0: it is not hungry."""
        missing = min(max(missing, 0), LARGEST_VALUE)
        if missing == self._missing:
            return
        before, self._missing = self._missing, missing
        added = [mark_key(Mark.MISSING, missing)] if missing else []
        removed = [mark_key(Mark.MISSING, before)] if before else []
        if not before:
            added.append(mark_key(Mark.HUNGER))
        if not missing:
            removed.append(mark_key(Mark.HUNGER))
        await self._ask(self._locks.publish(added, removed))

    async def is_anybody_hungry(self) -> bool:
        """Return whether another task lacks connections, at a cost that does not depend on how many tasks there are.

        Once in a while it is True although nobody does: when two tasks ask in the same microseconds.
        """
        return bool((await self._ask(self._locks.is_anybody_hungry()))[0][0])

    async def inherit(self, process_id: int) -> frozenset[int]:
        """End the control session of an agent before this one, and take the slots that it held; return those got.

        Takes at most INHERIT_SECONDS. Empty when that session is gone, is none of this budget, or is another role's.
        """
        found = await self._ask(self._locks.slots_of(process_id))
        if not found or process_id == self._opened().process_id or not await self._ask(end_session(process_id)):
            return frozenset()
        left = set(found[0][0])
        until = time.monotonic() + INHERIT_SECONDS
        has_ended = False
        while left and not has_ended and time.monotonic() < until:
            await asyncio.sleep(INHERIT_POLL_SECONDS)
            has_ended = not await self._ask(self._locks.slots_of(process_id))
            left -= await self.take(sorted(left), len(left))
        return frozenset(found[0][0]) & self._held

    async def close(self) -> None:
        """End the session; its locks are free as soon as the database hears of it."""
        connection, self._connection = self._connection, None
        self._forget()
        if connection:
            connection.close()

    @property
    def _place(self) -> str:
        settings = self._settings
        return f"database {self._database!r} at {settings.database_host}:{settings.database_port}"

    async def _connect(self) -> ControlConnection:
        try:
            return await ControlConnection.open(
                self._settings,
                self._database,
                self._login(),
                application_name=f"{CONTROL_NAME} {self._task_name}",
                deadline_seconds=self._deadline_seconds,
                on_lost=self._lost,
            )
        except psycopg.OperationalError as error:
            if NEVER_LETS_US_IN.search(str(error)):
                raise BudgetUnusable(
                    f"the pool's role cannot connect to the budget's database: {words_of(error)}; grant it CONNECT, or "
                    f"set {variable('budget_database')} to a database that it may connect to"
                ) from error
            raise

    async def _prepare(self, connection: ControlConnection) -> None:
        [(process_id, role, lacking)] = await connection.ask(MAY_WE)
        if process_id != connection.process_id:
            raise BudgetUnusable(
                f"{self._place} is reached through a pooler (the login was told of backend {connection.process_id}, "
                f"the queries run in {process_id}), where locks do not stay with who took them: give the proxy the "
                f"address of the database itself in {variable('database_host')}"
            )
        if lacking:
            grants = "; ".join(f'grant {what} to "{role}"' for what in lacking)
            raise BudgetUnusable(
                f"the role {role!r} lacks what the budget needs in {self._place}; as a superuser run there: {grants}"
            )
        terms = mark_key(Mark.TERMS, terms_value(self._settings))
        parts = [connection.settings(), self._locks.prepare_fleet(), self._locks.publish([terms], ())]
        await connection.ask(sql.SQL("; ").join(parts))

    def _opened(self) -> ControlConnection:
        if self._connection is None:
            raise psycopg.OperationalError("there is no control connection")
        return self._connection

    async def _ask(self, question: sql.Composed) -> Rows:
        try:
            return await self._opened().ask(question)
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            raise psycopg.OperationalError(words_of(error)) from error

    def _lost(self) -> None:
        if self._connection is None:  # not open yet: `open` says so
            return
        self._connection = None
        self._forget()
        for callback in self._lost_callbacks:
            callback()

    def _forget(self) -> None:
        self._held = frozenset()
        self._missing = 0


def _numbers(rows: Rows) -> frozenset[int]:
    return frozenset(number for (number,) in rows)
