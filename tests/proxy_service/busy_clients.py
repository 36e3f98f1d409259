"""Clients that run one short transaction after the other until standard input ends; prints what became of them."""

from __future__ import annotations

import asyncio
import json
import sys

import psycopg


async def _serve(conninfo: str, statement: str, stop: asyncio.Event, seen: dict[str, list[str] | int]) -> None:
    try:
        async with await psycopg.AsyncConnection.connect(
            conninfo, autocommit=True, prepare_threshold=None, connect_timeout=20
        ) as connection:
            while not stop.is_set():
                await connection.execute(statement.encode())
                seen["transactions"] += 1
    except psycopg.Error as error:
        seen["errors"].append(str(error))


async def _main(clients: int, statement: str) -> None:
    conninfo = sys.stdin.readline().strip()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
    seen: dict[str, list[str] | int] = {"transactions": 0, "errors": []}
    tasks = [asyncio.create_task(_serve(conninfo, statement, stop, seen)) for _ in range(clients)]
    while seen["transactions"] < clients and not seen["errors"]:  # noqa: ASYNC110 (a count, not an event)
        await asyncio.sleep(0.01)
    sys.stdout.write("busy\n")
    sys.stdout.flush()
    await asyncio.gather(*tasks)
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2]))
