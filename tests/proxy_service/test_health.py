"""The health endpoint: what load balancer and ECS are told, on a socket that outlives the agent."""

from __future__ import annotations

import asyncio
import json
import socket

import aiohttp
import pytest
from aiohttp import web

from emberpool_proxy.health import Health, serve_health

from .observed import observed


async def test_pool_that_answers_is_healthy_and_ready() -> None:
    """Both checks answer 200 without a reason."""
    async with observed() as seen:
        for path in ("/healthz", "/readyz"):
            status, body = await seen.get(path)
            assert status == 200
            assert json.loads(body) == {
                "status": "ok",
                "reason": None,
                "pgbouncer_restarts": 0,
                "client_connections": 0,
                "clients_waiting": 0,
                "warnings": [],
            }


async def test_drain_takes_new_connections_away_but_not_the_task() -> None:
    """While it drains the task is unready and healthy: replaced it will be anyway, but not before its time."""
    async with observed() as seen:
        seen.health.is_draining = True
        status, body = await seen.get("/readyz")
        assert (status, json.loads(body)["reason"]) == (503, "draining")
        assert (await seen.get("/healthz"))[0] == 200


async def test_pgbouncer_that_does_not_answer_is_unhealthy() -> None:
    """Both checks fail and say so."""
    async with observed() as seen:
        seen.health.is_answering = False
        for path in ("/healthz", "/readyz"):
            status, body = await seen.get(path)
            assert (status, json.loads(body)["reason"]) == (503, "pgbouncer does not answer")


async def test_every_part_can_object_to_new_connections() -> None:
    """All objections are in the body, each part takes back its own, and none of them makes the task unhealthy."""
    async with observed() as seen:
        seen.health.set_not_ready("peers", "another task has this peer id")
        seen.health.set_not_ready("tls", "the certificate has expired")
        status, body = await seen.get("/readyz")
        assert status == 503
        assert json.loads(body)["reason"] == "another task has this peer id; the certificate has expired"
        assert (await seen.get("/healthz"))[0] == 200
        for name in ("peers", "tls"):
            seen.health.set_not_ready(name, None)
        assert (await seen.get("/readyz"))[0] == 200


async def test_database_that_is_away_keeps_the_task_in_service() -> None:
    """Clients wait in line here; no other task would have the database either."""
    async with observed() as seen:
        seen.health.database = "away"
        assert (await seen.get("/healthz"))[0] == 200
        assert (await seen.get("/readyz"))[0] == 200


async def test_check_during_the_agents_restart_is_answered_by_the_next_one() -> None:
    """The socket stays when the agent goes: a check that comes in between waits for the next agent's answer."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/healthz"
        async with serve_health(listening.dup(), Health(is_answering=True)):
            pass
        async with aiohttp.ClientSession() as session:
            check = asyncio.create_task(session.get(url))
            await asyncio.sleep(0)
            async with serve_health(listening.dup(), Health(is_answering=True)), await check as answer:
                assert answer.status == 200


async def test_routes_of_other_parts_are_served_beside() -> None:
    """A part of the agent can answer on a path of its own."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="peers")

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with (
            serve_health(listening, Health(), routes=[web.get("/peers", answer)]),
            aiohttp.ClientSession() as session,
            session.get(url + "/peers") as answered,
        ):
            assert await answered.text() == "peers"


async def test_half_a_request_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends half a request and hangs holds a connection for a bounded time; others are answered meanwhile."""
    monkeypatch.setattr("emberpool_proxy.health.CONNECTION_SECONDS", 0.1)
    async with observed() as seen:
        reader, writer = await asyncio.open_connection(*seen.url.removeprefix("http://").split(":"))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost:")
        await writer.drain()
        assert (await seen.get("/healthz"))[0] == 200
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
