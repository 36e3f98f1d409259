"""The advisory locks behind the fleet's budget: their keys, what the marks say, and the SQL that reads and takes them.

Every lock has two keys, of 32 bits each, as pg_locks shows them (classid, objid; objsubid is 2). They belong to the
database that they were taken in: tasks whose budget_database differs share nothing.

- A slot: an exclusive lock, classid = key("emberpool:" + budget_name), objid = its number from 0.
- A mark: a shared lock, classid = key("emberpool-marks:" + budget_name), objid = kind * 2**24 + value. Each control
  session has TERMS = claim * 2**10 + floor (the claim: how many shared slots its settings promise); while its clients
  lack connections also MISSING (how many) and HUNGER.

key(text) is the first 31 bits of sha256(text) in UTF-8, big-endian: the same number as int4 and in pg_locks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from psycopg import sql

from emberpool_proxy.agent.budget_reading import FleetView, Session
from emberpool_proxy.agent.pool_connection import PROBE_NAME
from emberpool_proxy.credentials.probe import PROOF_NAME
from emberpool_proxy.settings import AGENT_CONNECTIONS, ProxySettings

CONTROL_NAME = "emberpool-agent"  # application_name of a control connection, with the task's name behind it
# The application_name of each login of an agent that is not its pool's. A pool's is its client's: perhaps a function
# whose name begins with "emberpool-", too.
AGENTS_NAMES = f"^({CONTROL_NAME} .*|{PROBE_NAME}|{PROOF_NAME})$"
VALUE_BITS = 24
LARGEST_VALUE = (1 << VALUE_BITS) - 1
FLOOR_BITS = 10  # a floor is at most 1,000, a claim at most 10,000


class Mark(IntEnum):
    """What a mark says; the number stands in the lock's key."""

    TERMS = 1
    MISSING = 2
    HUNGER = 3  # held by all that are hungry: whether anybody is costs one try for the exclusive lock


def lock_class(prefix: str, budget_name: str) -> int:
    """Return the first 31 bits of sha256(prefix + ":" + budget_name)."""
    return int.from_bytes(hashlib.sha256(f"{prefix}:{budget_name}".encode()).digest()[:4], "big") >> 1


def mark_key(mark: Mark, value: int = 0) -> int:
    """Return a mark's second key; a value that does not fit is cut to the largest one."""
    return int(mark) << VALUE_BITS | min(value, LARGEST_VALUE)


def terms_value(settings: ProxySettings) -> int:
    """Return the value of the mark TERMS."""
    return settings.shared_slots << FLOOR_BITS | settings.floor


# What all of it needs. Everybody has it by default; has_..._privilege never fails, unlike the use.
FUNCTIONS = (
    "pg_try_advisory_lock(integer,integer)",
    "pg_try_advisory_lock_shared(integer,integer)",
    "pg_advisory_lock_shared(integer,integer)",
    "pg_advisory_unlock(integer,integer)",
    "pg_advisory_unlock_shared(integer,integer)",
    "pg_lock_status()",
    "pg_stat_get_activity(integer)",
)
VIEWS = ("pg_locks", "pg_stat_activity", "pg_database", "pg_roles")
MAY_WE = sql.SQL(
    """select pg_backend_pid(), current_user::text, array(
  select 'execute on function ' || name from unnest({functions}::text[]) as name
  where not has_function_privilege(to_regprocedure('pg_catalog.' || name), 'execute')
  union all
  select 'select on ' || name from unnest({views}::text[]) as name
  where not has_table_privilege(to_regclass('pg_catalog.' || name), 'select'))"""
).format(functions=sql.Literal(list(FUNCTIONS)), views=sql.Literal(list(VIEWS)))

# The locks are read before the clients are counted: a connection that its slot allows is never seen without the slot,
# and one that is opened in between looks like one too many, not one too few.
PREPARE_FLEET = sql.SQL(
    """prepare emberpool_fleet(text[]) as
with locks as materialized (
  select pid, classid = {slots}::oid as is_slot, objid::int8 as key from pg_locks
  where locktype = 'advisory' and objsubid = 2 and granted and classid in ({slots}::oid, {marks}::oid)
    and database = (select oid from pg_database where datname = current_database())
), sessions as materialized (
  select pid, coalesce(array_agg(key) filter (where is_slot), '{{}}') as slots,
    {terms} as terms, {missing} as missing
  from locks group by pid
), clients as materialized (
  select pid, usesysid, application_name ~ {agents} as is_agents, coalesce(host(client_addr), '') as address
  from pg_stat_activity
  where datid is not null and coalesce(backend_type, 'client backend') = 'client backend'
), fleet_roles as materialized (
  select oid from pg_roles where rolname = any($1) union select usesysid from clients join sessions using (pid)
), counted as materialized (
  select address, count(*) filter (where is_fleets and not is_agents) as pool,
    count(*) filter (where not is_fleets) as others
  from (select address, is_agents, usesysid in (select oid from fleet_roles) as is_fleets from clients) as c
  group by address
)
select pid, slots, terms, missing, address,
  (select json_object_agg(address, pool) from counted where pool > 0),
  (select sum(others) from counted)::int8, current_setting('max_connections')::int,
  current_setting('superuser_reserved_connections')::int
    + coalesce(current_setting('reserved_connections', true), '0')::int
    + coalesce(current_setting('rds.rds_superuser_reserved_connections', true), '0')::int,
  pg_is_in_recovery()
from sessions left join clients using (pid)"""
)


@dataclass(frozen=True, slots=True)
class SlotLocks:
    """The classes of one budget, and the statements about them."""

    slots: int
    marks: int

    @classmethod
    def of(cls, budget_name: str) -> SlotLocks:
        """Return those of a budget."""
        return cls(lock_class("emberpool", budget_name), lock_class("emberpool-marks", budget_name))

    def prepare_fleet(self) -> sql.Composed:
        """Return what prepares `fleet` for a session."""
        return PREPARE_FLEET.format(
            slots=self.slots,
            marks=self.marks,
            agents=AGENTS_NAMES,
            terms=_values(Mark.TERMS),
            missing=_values(Mark.MISSING),
        )

    def fleet(self, roles: Iterable[str]) -> sql.Composed:
        """Return the question for all sessions, one row each; `roles` are those of the pools' server connections."""
        return sql.SQL("execute emberpool_fleet({})").format(sorted(roles))

    def take(self, candidates: Sequence[int], count: int) -> sql.Composed:
        """Return what tries the candidates in their order until `count` are taken, and tells which."""
        # Rows of unnest come in its order, and LIMIT ends the tries.
        text = (
            "select number from unnest({numbers}::int4[]) as number "
            "where pg_try_advisory_lock({slots}, number) limit {count}"
        )
        return sql.SQL(text).format(numbers=list(candidates), slots=self.slots, count=count)

    def give(self, numbers: Iterable[int]) -> sql.Composed:
        """Return what gives slots back and tells which were held."""
        text = "select number from unnest({numbers}::int4[]) as number where pg_advisory_unlock({slots}, number)"
        return sql.SQL(text).format(numbers=list(numbers), slots=self.slots)

    def publish(self, added: Iterable[int], removed: Iterable[int]) -> sql.Composed:
        """Return what takes marks, and then drops others."""
        # It waits for those who just look whether anybody is hungry; nobody holds a mark exclusively for longer.
        parts = [sql.SQL("pg_advisory_lock_shared({}, {})").format(self.marks, key) for key in added]
        parts += [sql.SQL("pg_advisory_unlock_shared({}, {})").format(self.marks, key) for key in removed]
        return sql.SQL("select {}").format(sql.SQL(", ").join(parts))

    def is_anybody_hungry(self) -> sql.Composed:
        """Return the question whether another session has the mark HUNGER."""
        text = (
            "select case when pg_try_advisory_lock({marks}, {key}) then not pg_advisory_unlock({marks}, {key}) "
            "else true end"
        )
        return sql.SQL(text).format(marks=self.marks, key=mark_key(Mark.HUNGER))

    def slots_of(self, process_id: int) -> sql.Composed:
        """Return the question for the slots of one session; no row if it is no control session of this budget."""
        text = (
            "select coalesce(array_agg(objid::int8) filter (where classid = {slots}::oid), '{{}}') from pg_locks "
            "where pid = {pid} and locktype = 'advisory' and objsubid = 2 and granted "
            "and database = (select oid from pg_database where datname = current_database()) "
            "and classid in ({slots}::oid, {marks}::oid) having count(*) > 0"
        )
        return sql.SQL(text).format(slots=self.slots, marks=self.marks, pid=process_id)


def end_session(process_id: int) -> sql.Composed:
    """Return what ends a session of a role that we may speak for; no row when it is gone or another's."""
    text = "select pg_terminate_backend(pid) from pg_stat_activity where pid = {pid} and pg_has_role(usesysid, 'usage')"
    return sql.SQL(text).format(pid=process_id)


def _values(mark: Mark) -> sql.Composed:
    """Return the SQL for the largest value of the marks of a kind: while a mark is replaced, there are two."""
    return sql.SQL("max(key & {mask}) filter (where not is_slot and key >> {bits} = {mark})").format(
        mask=LARGEST_VALUE, bits=VALUE_BITS, mark=int(mark)
    )


def fleet_view(settings: ProxySettings, at: float, own_process_id: int, rows: Sequence[Sequence[Any]]) -> FleetView:
    """Return what the answer to `fleet` means; the own session is among the rows.

    A session without TERMS is at its end, whose locks go one by one: it is left out, but what it has is not free yet.
    Floors of more tasks than the settings foresee are taken from the slots.
    """
    *_, pools_by_address, other_clients, max_connections, reserved, _ = rows[0]
    pools_by_address = pools_by_address or {}
    alive = [row for row in rows if row[2] is not None]
    of_a_task = settings.floor + AGENT_CONNECTIONS
    unforeseen = max(0, len(alive) - settings.most_tasks_alive) * of_a_task
    above_floors = max_connections - settings.most_tasks_alive * of_a_task - unforeseen
    room = above_floors - max(settings.reserved_connections, reserved + other_clients)
    smallest_claim = min(terms >> FLOOR_BITS for _, _, terms, *_ in alive)
    slots = max(0, min(settings.shared_slots, smallest_claim, settings.shared_slots - unforeseen, room))
    taken = {number for row in rows for number in row[1]}
    sessions = {
        pid: Session(pid, len(held), terms & ((1 << FLOOR_BITS) - 1), missing or 0)
        for pid, held, terms, missing, *_ in alive
    }
    addresses = {pid: address for pid, _, _, _, address, *_ in alive}
    return FleetView(
        at=at,
        own=sessions[own_process_id],
        others=tuple(session for pid, session in sessions.items() if pid != own_process_id),
        free=tuple(number for number in range(slots) if number not in taken),
        slots=slots,
        pool_connections=sum(pools_by_address.values()),
        promised_slots=settings.shared_slots,
        smallest_claim=smallest_claim,
        database_has_room_for=room,
        least_room_for=above_floors - max(settings.reserved_connections, reserved),
        others_excess=_others_excess(
            pools_by_address,
            {addresses[pid]: session for pid, session in sessions.items()} if _are_distinct(addresses) else {},
            addresses[own_process_id],
            settings.floor,
        ),
    )


def _are_distinct(addresses: Mapping[int, str | None]) -> bool:
    return all(addresses.values()) and len(set(addresses.values())) == len(addresses)


def _others_excess(
    pools_by_address: Mapping[str, int], by_address: Mapping[str | None, Session], own_address: str | None, floor: int
) -> int | None:
    """Return the connections of other tasks above what each may have, or None when addresses do not tell tasks apart.

    They do where each task has an address of its own, as on Fargate; not on one machine, nor behind a NAT.
    """
    if not by_address or "" in pools_by_address:
        return None
    excess = 0
    for address, connections in pools_by_address.items():
        if address != own_address:
            session = by_address.get(address)
            excess += max(0, connections - (session.floor + session.slots if session else floor))
    return excess
