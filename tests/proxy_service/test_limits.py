"""Limits on client connections: of one user, of the whole proxy; what is refused and who still gets in."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from emberpool_proxy.pgbouncer.config import AGENT_CONSOLES

from .conftest import CLIENT_USER, Proxy, wait_until

TOO_MANY = 20
MakeProxy = Callable[..., Proxy]


def refusal(proxy: Proxy) -> str:
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(proxy.conninfo(), connect_timeout=5).close()
    return str(caught.value)


def all_that_get_in(proxy: Proxy, stack: ExitStack) -> list[psycopg.Connection[Any]]:
    """Connect until a login is refused."""
    clients: list[psycopg.Connection[Any]] = []
    while len(clients) < TOO_MANY:
        try:
            clients.append(stack.enter_context(psycopg.connect(proxy.conninfo())))
        except psycopg.OperationalError as error:
            if "no more connections allowed (max_client_conn)" not in str(error):
                raise
            break
    return clients


def logged(proxy: Proxy, text: str) -> list[dict[str, object]]:
    return [line for line in proxy.log_lines() if text in line["message"]]


def test_user_has_at_most_its_connections(make_proxy: MakeProxy) -> None:
    """A user's login above its limit is refused with the reason and logged; when one leaves, the next gets in."""
    proxy = make_proxy(max_connections_per_client_user=2).start_ready()
    with ExitStack() as stack:
        first, second = (stack.enter_context(psycopg.connect(proxy.conninfo())) for _ in range(2))
        assert "client connections exceeded (max_user_client_connections)" in refusal(proxy)
        wait_until("the refusal was not logged", lambda: logged(proxy, "max_user_client_connections"))
        assert CLIENT_USER in proxy.printed()
        for connection in (first, second):
            assert connection.execute("select 1").fetchone() == (1,)
            connection.rollback()
        first.close()

        def gets_in() -> bool:
            try:
                psycopg.connect(proxy.conninfo()).close()
            except psycopg.OperationalError:
                return False
            return True

        wait_until("nobody gets in after one left", gets_in)


def test_full_proxy_refuses_clients_but_not_its_agent(make_proxy: MakeProxy) -> None:
    """Above max_client_connections a login is refused with the reason; an agent that starts again still gets in."""
    proxy = make_proxy(max_client_connections=3).start_ready()
    with ExitStack() as stack:
        clients = all_that_get_in(proxy, stack)
        assert 3 <= len(clients) <= 3 + AGENT_CONSOLES
        wait_until("the refusal was not logged", lambda: logged(proxy, "max_client_conn"))
        agent = proxy.agent_pid()
        os.kill(agent, signal.SIGKILL)
        wait_until("no new agent", lambda: proxy.agent_pid() not in {0, agent})
        wait_until("the new agent did not attach", lambda: len(logged(proxy, "pgbouncer answers")) == 2)
        wait_until("the proxy did not become ready again", lambda: proxy.status("/readyz") == 200)
        for client in clients:
            assert client.execute("select 1").fetchone() == (1,)
            client.rollback()
