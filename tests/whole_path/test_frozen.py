"""What happens to frozen environments (SIGSTOP), and what is printed then, with the real runtime client."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from emberpool import ConnectionUnavailable, opening
from emberpool import settings as names
from emberpool.connection import WarmConnection
from emberpool.deadline import NO_DEADLINE
from emberpool.settings import LayerSettings
from emberpool_local.lambda_runtime import Fleet, Outcome
from emberpool_local.postgres.server import StopMode
from emberpool_local.stack import LocalStack

FOLDER = Path(__file__).parent
MAX_SERVER_CONNECTIONS = 4


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    # Its own: the tests below restart the server and terminate all that is connected.
    with LocalStack(max_connections=60, max_server_connections=MAX_SERVER_CONNECTIONS) as stack:
        with psycopg.connect(stack.direct_conninfo) as connection:
            connection.execute("create table ledger (id text primary key)")
        yield stack


@pytest.fixture(params=["direct", "proxy"])
def environment(stack: LocalStack, request: pytest.FixtureRequest) -> dict[str, str]:
    """A function's variables: straight to PostgreSQL (a server's farewell arrives), or through the proxy."""
    return stack.direct_handler_environment() if request.param == "direct" else stack.handler_environment()


def fleet_of(environment: dict[str, str], **options: Any) -> Fleet:
    return Fleet(
        **{
            "handler": "function:handler",
            "code_folder": FOLDER,
            "environment": environment,
            "function_name": "frozen",
            "start_method": "fork",
            **options,
        }
    )


async def invoke(fleet: Fleet, **event: Any) -> Outcome:
    return await fleet.invoke(json.dumps(event).encode())


def answer(outcome: Outcome) -> Any:
    assert outcome.status == "succeeded", f"{outcome.error_type}: {outcome.error_message}\n{outcome.log}"
    return json.loads(outcome.payload)


async def become(sentence: str, fact: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < until, f"{sentence} within {seconds} s"
        await asyncio.sleep(0.02)


async def invoke_all(fleet: Fleet, count: int, generation: str) -> set[int]:
    """Invoke each of `count` environments once; return their process ids once all are frozen again."""
    outcomes = await asyncio.gather(*(invoke(fleet, id=f"{generation}-{n:03}", sleep=0.01) for n in range(count)))
    pids = {answer(outcome)["pid"] for outcome in outcomes}
    await become("environments did not freeze", lambda: all(e.is_frozen for e in fleet.environments))
    return pids


def ledger(stack: LocalStack) -> list[str]:
    with psycopg.connect(stack.superuser_conninfo) as connection:
        return [row[0] for row in connection.execute("select id from ledger order by id")]


@pytest.fixture(autouse=True)
def empty_ledger(stack: LocalStack) -> None:
    with psycopg.connect(stack.superuser_conninfo) as connection:
        connection.execute("truncate ledger")


def terminate_backends(stack: LocalStack) -> None:
    with psycopg.connect(stack.superuser_conninfo, autocommit=True) as admin:
        admin.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'app'")


async def test_backends_terminated_while_frozen_cost_no_invocation(
    stack: LocalStack, environment: dict[str, str]
) -> None:
    """Three times in a row, every backend is terminated while all environments are frozen: each invocation succeeds."""
    async with fleet_of(environment) as fleet:
        await fleet.scale_out(3)
        pids = await invoke_all(fleet, 3, "0")
        for generation in "123":
            terminate_backends(stack)
            assert await invoke_all(fleet, 3, generation) == pids
    assert len(ledger(stack)) == 4 * 3


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_server_restarted_while_frozen_costs_no_invocation(
    stack: LocalStack, environment: dict[str, str], mode: StopMode
) -> None:
    """A reboot (fast) or a crash (immediate) of the database while frozen: the next invocations succeed, data stays."""
    async with fleet_of(environment) as fleet:
        await fleet.scale_out(3)
        pids = await invoke_all(fleet, 3, "before")
        await asyncio.to_thread(stack.postgres.restart, mode)
        assert await invoke_all(fleet, 3, "after") == pids
    assert len(ledger(stack)) == 2 * 3


async def test_forty_of_forty_recover_when_everything_between_is_gone(stack: LocalStack) -> None:
    """Forty frozen environments, all backends terminated and PgBouncer killed: forty of forty commit again."""
    async with fleet_of(stack.handler_environment()) as fleet:
        await fleet.scale_out(40)
        pids = await invoke_all(fleet, 40, "before")
        assert len(pids) == 40
        terminate_backends(stack)
        running = answering_pgbouncers(stack)
        os.kill(running[-1], signal.SIGKILL)
        await become("no new PgBouncer answered", lambda: len(answering_pgbouncers(stack)) > len(running))
        assert await invoke_all(fleet, 40, "after") == pids
    assert len(ledger(stack)) == 2 * 40


def answering_pgbouncers(stack: LocalStack) -> list[int]:
    lines = [json.loads(line) for line in stack.proxy.log_path.read_text().splitlines() if line.endswith("}")]
    return [line["pid"] for line in lines if line["message"] == "pgbouncer answers"]


# --- what the proxy refuses


@pytest.fixture
def refused(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Opens a connection with the proxy's variables changed; returns the one error's text after one attempt."""
    attempts: list[object] = []
    original = opening._connect
    monkeypatch.setattr(opening, "_connect", lambda *given: attempts.append(1) or original(*given))

    def open_with(**changed: str) -> str:
        environment = {**stack.handler_environment(), **changed}
        with pytest.raises(ConnectionUnavailable, match="nothing has run") as caught:
            WarmConnection(LayerSettings.from_environment(environment)).begin(NO_DEADLINE, None, read_only=False)
        assert len(attempts) == 1, "what is permanent is not tried again"
        assert environment[names.PASSWORD] not in str(caught.value)
        return str(caught.value)

    return open_with


def test_certificate_of_somebody_else_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    """A proxy that cannot show a certificate of the given CA gets no login: nothing but the handshake was sent."""
    other = tmp_path / "other.pem"
    other.write_bytes(certificate())
    assert "certificate verify failed" in refused(**{names.SSLROOTCERT: str(other)})


def test_missing_certificate_file_is_one_clear_error(refused: Callable[..., str]) -> None:
    """A CA file that is not there is named."""
    assert "/nonexistent/ca.pem" in refused(**{names.SSLROOTCERT: "/nonexistent/ca.pem"})


def test_proxy_refuses_plain_text(refused: Callable[..., str]) -> None:
    """Without TLS the proxy takes nobody, and the layer says why."""
    assert "SSL required" in refused(**{names.SSLMODE: "disable"})


def test_database_that_the_proxy_does_not_have_is_named(refused: Callable[..., str]) -> None:
    """A misspelt database is one error that names it, at the first attempt."""
    assert "no_such_database" in refused(**{names.DATABASE: "no_such_database"})


def certificate() -> bytes:
    """Return the certificate of a CA that has nothing to do with the proxy's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody else")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


# --- what is printed

WRONG_PASSWORD = "wrong-password-that-nobody-may-see"
LITERAL = "literal-that-nobody-may-see"


async def test_nothing_secret_is_ever_printed(stack: LocalStack) -> None:
    """Refused logins, failing, lost and late statements, repeats, warnings: no password and no literal is printed."""
    environment = {
        **stack.handler_environment(),
        names.METRICS: "on",
        names.CONNECT_RETRY_SECONDS: "0.2",
        names.DEADLINE_MARGIN_MS: "1500",
        "AWS_LAMBDA_LOG_LEVEL": "DEBUG",
        "AWS_LAMBDA_LOG_FORMAT": "JSON",
    }
    printed: list[str] = []
    errors: dict[str, str | None] = {}

    async def provoke(changed: dict[str, str], handler: str, *deeds: str) -> None:
        options = {"handler": f"careless_function:{handler}", "max_environments": 1, "timeout_seconds": 3}
        async with fleet_of({**environment, **changed}, **options) as fleet:
            for do in deeds:
                outcome = await invoke(fleet, do=do, literal=LITERAL)
                errors[f"{handler}: {do}"] = outcome.error_type
                printed.append(str(outcome))
            printed.extend(line for each in fleet.environments for line in each.log_lines)

    await provoke({}, "handler", "session", "fail", "swallow", "lose", "late", "nothing")
    await provoke({}, "idempotent_handler", "nothing", "lose")
    await provoke({names.PASSWORD: WRONG_PASSWORD}, "handler", "wrong password")
    await provoke({names.PORT: "1"}, "handler", "unreachable")
    assert errors == {
        "handler: session": None,
        "handler: fail": "DivisionByZero",
        "handler: swallow": "TransactionAborted",
        "handler: lose": "AdminShutdown",
        "handler: late": "QueryCanceled",
        "handler: nothing": None,
        "idempotent_handler: nothing": None,
        "idempotent_handler: lose": "AdminShutdown",
        "handler: wrong password": "ConnectionUnavailable",
        "handler: unreachable": "ConnectionUnavailable",
    }
    everything = "\n".join(printed)
    for provoked in ("session_state_set", "retried", "connection_opened", "authentication failed", "CloudWatchMetrics"):
        assert provoked in everything
    for secret in (environment[names.PASSWORD], WRONG_PASSWORD, LITERAL):
        assert secret not in everything
