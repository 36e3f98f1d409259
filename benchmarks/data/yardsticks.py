"""Two servers of a few lines each, as somebody would write them instead: one statement over HTTP, no contract.

`python -m benchmarks.data.yardsticks starlette|granian PORT`, the connection by libpq's variables. Both answer
POST /Execute with the records of the statement in the body, as the data endpoint does, without its types and limits.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import uvloop

POOL_SIZE = 8
LOOPBACK = "127.0.0.1"


def starlette(port: int) -> None:
    """Run uvicorn, starlette and psycopg's asynchronous pool."""
    import uvicorn  # noqa: PLC0415 (each yardstick loads only its own)
    from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.requests import Request  # noqa: PLC0415
    from starlette.responses import JSONResponse  # noqa: PLC0415
    from starlette.routing import Route  # noqa: PLC0415

    pool = AsyncConnectionPool(kwargs={"autocommit": True}, min_size=POOL_SIZE, max_size=POOL_SIZE, open=False)

    async def execute(request: Request) -> JSONResponse:
        sql = (await request.json())["sql"]
        async with pool.connection() as connection:
            cursor = await connection.execute(sql)
            rows = await cursor.fetchall()
        return JSONResponse({"records": [[_field(value) for value in row] for row in rows]})

    app = Starlette(routes=[Route("/Execute", execute, methods=["POST"])])

    async def serve() -> None:
        await pool.open(wait=True)
        config = uvicorn.Config(app, host=LOOPBACK, port=port, log_level="error", access_log=False)
        await uvicorn.Server(config).serve()

    uvloop.run(serve())


def granian(port: int) -> None:
    """Run granian's RSGI and asyncpg, whose pool resets nothing."""
    import asyncpg  # noqa: PLC0415
    import orjson  # noqa: PLC0415
    from granian.constants import HTTPModes, Interfaces  # noqa: PLC0415
    from granian.server.embed import Server  # noqa: PLC0415

    class NoReset(asyncpg.Connection):
        def get_reset_query(self) -> str:
            return ""

    async def serve() -> None:
        pool = await asyncpg.create_pool(
            host=os.environ["PGHOST"], min_size=POOL_SIZE, max_size=POOL_SIZE, connection_class=NoReset
        )

        async def app(_: Any, protocol: Any) -> None:
            sql = orjson.loads(await protocol())["sql"]
            async with pool.acquire() as connection:
                rows = await connection.fetch(sql)
            body = orjson.dumps({"records": [[_field(value) for value in row] for row in rows]})
            protocol.response_bytes(200, [("content-type", "application/json")], body)

        server = Server(
            app, address=LOOPBACK, port=port, interface=Interfaces.RSGI, http=HTTPModes.http1, log_enabled=False
        )
        await server.serve()

    uvloop.run(serve())


def _field(value: object) -> dict[str, object]:
    if isinstance(value, bool):
        return {"booleanValue": value}
    if isinstance(value, int):
        return {"longValue": value}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"isNull": True} if value is None else {"stringValue": str(value)}


def main() -> None:
    """Run the yardstick that the command line names."""
    name, port = sys.argv[1], int(sys.argv[2])
    {"starlette": starlette, "granian": granian}[name](port)


if __name__ == "__main__":
    main()
