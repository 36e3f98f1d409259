"""What the proxy makes of its sources. Secrets Manager is moto's; whether a login is right, a real PostgreSQL says."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.aws import AwsCalls
from emberpool_proxy.credentials.probe import LoginProbe, Verdict
from emberpool_proxy.credentials.snapshot import Login, Snapshot
from emberpool_proxy.credentials.watch import Credentials
from emberpool_proxy.errors import ClientUsersClash, DatabaseLoginUnusable, SecretUnreadable
from emberpool_proxy.log import logger
from emberpool_proxy.pgbouncer.log_lines import ClientLoginFailed, ServerLoginFailed
from emberpool_proxy.pgbouncer.scram import RANDOM_SECRET_ITERATIONS

from .credential_settings import CLIENT_PASSWORD, settings
from .simulated_aws import SimulatedAws, login, simulated_aws

pytestmark = pytest.mark.asyncio(loop_scope="module")

HUSH = "hush-password-of-43-characters-or-more-0123456789"
BOUND_SECONDS = 20.0


@pytest.fixture(scope="module")
def aws() -> Iterator[SimulatedAws]:
    with simulated_aws() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def calls(aws: SimulatedAws) -> AsyncIterator[AwsCalls]:
    made = AwsCalls(linger_seconds=60)  # one child for all tests
    yield made
    await made.close()


@pytest.fixture
def printed(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    monkeypatch.setattr(logger, "propagate", False)  # as `configure` leaves it
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.DEBUG, logger.name):
        yield caplog
    logger.removeHandler(caplog.handler)


class Roles:
    """Roles of the real server, each test's own."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self._postgres = postgres
        self._made: list[str] = []

    def create(self, name: str, password: str) -> None:
        self._postgres.create_role_and_database(name, password, name)
        self._made.append(name)

    def set_password(self, name: str, password: str) -> None:
        with psycopg.connect(self._postgres.conninfo(), autocommit=True) as connection:
            verifier = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256")
            connection.execute(f"ALTER ROLE {name} PASSWORD '{verifier.decode()}'")

    def where(self, name: str) -> dict[str, Any]:
        """The settings that lead to the database that the role owns."""
        return {"database_host": self._postgres.host, "database_port": self._postgres.port, "database_name": name}


@pytest.fixture
def roles(postgres: EmbeddedPostgres) -> Roles:
    return Roles(postgres)


@asynccontextmanager
async def watched(credentials: Credentials) -> AsyncIterator[Callable[[], Awaitable[Snapshot]]]:
    """Run watch(); the value awaits the next snapshot."""
    seen: asyncio.Queue[Snapshot] = asyncio.Queue()
    task = asyncio.create_task(credentials.watch(seen.put))
    try:
        yield lambda: asyncio.wait_for(seen.get(), BOUND_SECONDS)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def refused(role: str) -> ServerLoginFailed:
    return ServerLoginFailed("", role, "", f'password authentication failed for user "{role}"')


# --- what is loaded


async def test_logins_from_the_environment_need_no_aws(calls: AwsCalls) -> None:
    """The role's password goes in as it is, the client's as a verifier, on the entry named after the database."""
    snapshot = await Credentials(settings(), calls).load()
    (client,) = snapshot.clients
    assert dict(snapshot.database_logins) == {"pool_user": "hush-role-password"}
    assert (client.name, client.entry, client.database_role) == ("function", "orders", "pool_user")
    assert client.verifier.startswith(f"SCRAM-SHA-256${RANDOM_SECRET_ITERATIONS}:")
    assert CLIENT_PASSWORD not in repr(snapshot)
    assert "hush" not in repr(snapshot)


async def test_every_group_gets_its_own_user_entry_and_role(aws: SimulatedAws, calls: AwsCalls) -> None:
    """The default client uses the default role, a group of `clients` the role of its own entry."""
    clients = [
        {
            "secret_arn": aws.secret("reports-client", login("reports", HUSH)),
            "entry": "reporting",
            "database_role_secret_arn": aws.secret("reports-role", login("reporter", "hush-2")),
            "max_connections": 50,
        }
    ]
    given = {
        "database_secret_arn": aws.secret("main-role", login("pool", "hush-1")),
        "client_secret_arn": aws.secret("main-client", login("function", HUSH)),
    }
    snapshot = await Credentials(settings(clients=json.dumps(clients), **given), calls).load()
    assert dict(snapshot.database_logins) == {"pool": "hush-1", "reporter": "hush-2"}
    assert dict(snapshot.entries) == {"orders": "pool", "reporting": "reporter"}
    seen = [(user.name, user.entry, user.database_role, user.max_connections) for user in snapshot.clients]
    assert seen == [("function", "orders", "pool", 0), ("reports", "reporting", "reporter", 50)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "is empty"),
        ("hush", "does not hold JSON"),
        (["hush"], "a JSON list in place of an object"),
        ({"user": "hush-a", "pass": "hush-b"}, "no text under the key 'username' \\(its keys: pass, user\\)"),
        ({"username": "app", "password": ["hush"]}, "no text under the key 'password' \\(its keys: password, username"),
        (login("a b", "hush"), "a user name that does not match"),
        (login("pgbouncer", "hush"), "the user name pgbouncer, which is the admin console's"),
        (login("app", "hush-ä"), "other characters than printable ASCII"),
        (login("app", "hush" * 600), "a password of 2400 bytes; PgBouncer sends at most 2047"),
    ],
)
async def test_secret_of_another_shape_names_keys_never_values(
    aws: SimulatedAws, calls: AwsCalls, printed: pytest.LogCaptureFixture, value: object, message: str
) -> None:
    """After the bounded tries there is one error that says what was seen and what is expected."""
    arn = aws.secret("shape", value or " ")
    try:
        given = settings(database_secret_arn=arn, database_user="")
        with pytest.raises(SecretUnreadable, match=message) as raised:
            await Credentials(given, calls).load(within_seconds=0.1)
    finally:
        aws.client("secretsmanager").delete_secret(SecretId=arn, ForceDeleteWithoutRecovery=True)
    assert arn in str(raised.value)
    assert "hush" not in str(raised.value) + printed.text


async def test_secret_that_becomes_readable_is_waited_for(
    aws: SimulatedAws, calls: AwsCalls, printed: pytest.LogCaptureFixture
) -> None:
    """An unreadable secret at start is tried again, and the proxy starts once it is there."""
    arn = aws.secret("late", " ")
    loading = asyncio.create_task(Credentials(settings(database_secret_arn=arn), calls).load())
    async with asyncio.timeout(BOUND_SECONDS):
        while "trying again" not in printed.text:  # noqa: ASYNC110 (a log line tells nobody)
            await asyncio.sleep(0.02)
    aws.put(arn, login("pool", HUSH))
    assert dict((await loading).database_logins) == {"pool": HUSH}


async def test_user_that_two_secrets_name_is_an_error(aws: SimulatedAws, calls: AwsCalls) -> None:
    """A client named like a role, or like another client, could use what is not its own."""
    for number, name in enumerate(("pool_user", "function")):
        clients = json.dumps([{"secret_arn": aws.secret(f"clash-{number}", login(name, HUSH))}])
        with pytest.raises(ClientUsersClash, match=f"has the user name {name}"):
            await Credentials(settings(clients=clients), calls).load(within_seconds=0.1)


# --- the users of the pool, while their secrets rotate


async def test_old_and_new_user_are_both_valid_during_a_rotation(aws: SimulatedAws, calls: AwsCalls) -> None:
    """AWSCURRENT, AWSPENDING and AWSPREVIOUS name three users, and all of them may log in."""
    arn = aws.secret("alternating", login("first", HUSH))
    aws.put(arn, login("second", HUSH))
    aws.put(arn, login("third", HUSH), "AWSPENDING")
    snapshot = await Credentials(settings(client_secret_arn=arn), calls).load()
    assert {client.name for client in snapshot.clients if not client.is_removed} == {"first", "second", "third"}


async def test_user_that_disappears_keeps_a_line_that_no_password_opens(aws: SimulatedAws, calls: AwsCalls) -> None:
    """Two rotations later the first user is removed: a random verifier, always the same; the others keep theirs."""
    arn = aws.secret("leaving", login("first", HUSH))
    credentials = Credentials(settings(client_secret_arn=arn, credentials_check_seconds=1), calls)
    before = {client.name: client for client in (await credentials.load()).clients}
    async with watched(credentials) as next_snapshot:
        aws.put(arn, login("second", HUSH))
        both = {client.name: client for client in (await next_snapshot()).clients}
        assert both["first"] == before["first"]
        aws.put(arn, login("third", HUSH))
        after = {client.name: client for client in (await next_snapshot()).clients}
        assert after["first"].is_removed
        assert after["first"].verifier != before["first"].verifier
        assert after["second"] == both["second"]
        aws.put(arn, login("fourth", HUSH))
        assert after["first"] in (await next_snapshot()).clients


async def test_users_of_an_earlier_agent_are_locked_not_forgotten(calls: AwsCalls) -> None:
    """An agent that starts again passes on the users that its predecessor wrote."""
    snapshot = await Credentials(settings(), calls, earlier_users=["function", "gone"]).load()
    assert [(client.name, client.is_removed) for client in snapshot.clients] == [("function", False), ("gone", True)]


async def test_new_password_of_the_same_user_is_taken_over_after_its_first_refusal(
    aws: SimulatedAws, calls: AwsCalls
) -> None:
    """AWSCURRENT's password is the one that counts, and a refused client makes us look long before the schedule."""
    arn = aws.secret("same-user", login("function", HUSH))
    credentials = Credentials(settings(client_secret_arn=arn), calls)
    (before,) = (await credentials.load()).clients
    async with watched(credentials) as next_snapshot:
        aws.put(arn, login("function", f"new-{HUSH}"))
        credentials.client_login_failed(
            ClientLoginFailed("orders", "function", "10.0.0.1", "SASL authentication failed", "credentials")
        )
        (after,) = (await next_snapshot()).clients
    assert after.verifier != before.verifier


# --- the pool's login at the database


async def test_probe_tells_refused_from_away(roles: Roles) -> None:
    """Only the database's own no to the login counts as one."""
    roles.create("probed", HUSH)
    where = roles.where("probed")
    assert await LoginProbe(settings(**where))(Login("probed", HUSH)) is Verdict.ACCEPTED
    assert await LoginProbe(settings(**where))(Login("probed", "wrong")) is Verdict.REFUSED
    assert await LoginProbe(settings(**where))(Login("nobody", HUSH)) is Verdict.REFUSED
    assert await LoginProbe(settings(**{**where, "database_name": "none"}))(Login("probed", HUSH)) is Verdict.UNKNOWN
    assert await LoginProbe(settings(**{**where, "database_port": 1}))(Login("probed", HUSH)) is Verdict.AWAY


async def test_start_in_the_middle_of_a_rotation_uses_what_the_database_accepts(
    aws: SimulatedAws, calls: AwsCalls, roles: Roles
) -> None:
    """AWSCURRENT is refused, AWSPENDING accepted: the pool starts with AWSPENDING."""
    roles.create("starting", "hush-pending")
    arn = aws.secret("starting", login("starting", "hush-current"))
    aws.put(arn, login("starting", "hush-pending"), "AWSPENDING")
    snapshot = await Credentials(settings(database_secret_arn=arn, **roles.where("starting")), calls).load()
    assert dict(snapshot.database_logins) == {"starting": "hush-pending"}


async def test_refused_login_finds_awspending_at_once_and_the_schedule_does_not_undo_it(
    aws: SimulatedAws, calls: AwsCalls, roles: Roles
) -> None:
    """The first failed login brings AWSPENDING's password; AWSCURRENT, still the old one, is not taken back."""
    roles.create("rotating", "hush-old")
    arn = aws.secret("rotating", login("rotating", "hush-old"))
    given = settings(database_secret_arn=arn, credentials_check_seconds=1, **roles.where("rotating"))
    credentials = Credentials(given, calls)
    assert dict((await credentials.load()).database_logins) == {"rotating": "hush-old"}
    async with watched(credentials) as next_snapshot:
        aws.put(arn, login("rotating", "hush-new"), "AWSPENDING")
        roles.set_password("rotating", "hush-new")
        credentials.login_failed(refused("rotating"))
        assert dict((await next_snapshot()).database_logins) == {"rotating": "hush-new"}
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(next_snapshot(), 2.5)


async def test_pool_follows_a_secret_that_alternates_between_two_roles(
    aws: SimulatedAws, calls: AwsCalls, roles: Roles
) -> None:
    """New clients get AWSCURRENT's role; the role before keeps a valid password for the clients of its pool."""
    roles.create("alternate_one", "hush-one")
    roles.create("alternate_two", "hush-two")
    arn = aws.secret("alternate", login("alternate_one", "hush-one"))
    where = roles.where("postgres")
    credentials = Credentials(settings(database_secret_arn=arn, credentials_check_seconds=1, **where), calls)
    assert dict((await credentials.load()).entries) == {"postgres": "alternate_one"}
    async with watched(credentials) as next_snapshot:
        aws.put(arn, login("alternate_two", "hush-two"))
        snapshot = await next_snapshot()
        assert dict(snapshot.entries) == {"postgres": "alternate_two"}
        assert dict(snapshot.database_logins) == {"alternate_one": "hush-one", "alternate_two": "hush-two"}
        roles.set_password("alternate_one", "hush-new")
        aws.put(arn, login("alternate_one", "hush-new"), "AWSPENDING")
        credentials.login_failed(refused("alternate_one"))
        assert (await next_snapshot()).database_logins["alternate_one"] == "hush-new"


async def test_wrong_password_is_told_once_and_mended_when_the_secret_is(
    aws: SimulatedAws, calls: AwsCalls, roles: Roles, printed: pytest.LogCaptureFixture
) -> None:
    """Refused with all that the secret holds: one error line without a password; later the secret is right again."""
    roles.create("wronged", "hush-right")
    arn = aws.secret("wronged", login("wronged", "hush-wrong"))
    credentials = Credentials(settings(database_secret_arn=arn, **roles.where("wronged")), calls)
    await credentials.load()
    async with watched(credentials) as next_snapshot:
        for _ in range(50):
            credentials.login_failed(refused("wronged"))
        async with asyncio.timeout(BOUND_SECONDS):
            while "mend the password" not in printed.text:  # noqa: ASYNC110 (a log line tells nobody)
                await asyncio.sleep(0.02)
        aws.put(arn, login("wronged", "hush-right"))
        assert dict((await next_snapshot()).database_logins) == {"wronged": "hush-right"}
    assert printed.text.count("mend the password") == 1
    assert "hush" not in printed.text


async def test_password_file_is_read_again_when_it_changes(calls: AwsCalls, tmp_path: Path, roles: Roles) -> None:
    """A file that is replaced, as Kubernetes does it, brings its new password without a failed login."""
    roles.create("filed", "hush-second")
    (tmp_path / "first").write_text("hush-first\n")
    (tmp_path / "second").write_text("hush-second\n")
    path = tmp_path / "password"
    path.symlink_to("first")
    given = settings(database_user="filed", database_password_file=str(path), **roles.where("filed"))
    credentials = Credentials(given, calls)
    assert dict((await credentials.load()).database_logins) == {"filed": "hush-first"}
    async with watched(credentials) as next_snapshot:
        (tmp_path / "link").symlink_to("second")
        (tmp_path / "link").replace(path)
        assert dict((await next_snapshot()).database_logins) == {"filed": "hush-second"}


async def test_missing_password_file_is_one_clear_error(calls: AwsCalls, tmp_path: Path) -> None:
    """The error names the file and the role."""
    with pytest.raises(DatabaseLoginUnusable, match=r"password of pool_user from .*/absent: No such file"):
        await Credentials(settings(database_password_file=str(tmp_path / "absent")), calls).load(within_seconds=0.1)


async def test_iam_token_is_renewed_without_asking_the_database(
    calls: AwsCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token is signed at start, and another before the first one ages."""
    monkeypatch.setattr("emberpool_proxy.credentials.role_sources.IamSource.longest_trust_seconds", 1.2)
    given = settings(database_auth="iam", server_tls_mode="require", database_user="app")
    credentials = Credentials(given, calls)
    first = (await credentials.load()).database_logins["app"]
    assert first.startswith("127.0.0.1:5432/?Action=connect&DBUser=app&")
    async with watched(credentials) as next_snapshot:
        assert (await next_snapshot()).database_logins["app"] != first


async def test_iam_token_that_pgbouncer_cannot_send_is_a_clear_error(
    aws: SimulatedAws, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long session token makes a long IAM token: the error says how long and what helps."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "x" * 2000)
    calls = AwsCalls(linger_seconds=0)
    given = settings(database_auth="iam", server_tls_mode="require")
    with pytest.raises(DatabaseLoginUnusable, match=r"has \d{4} bytes and PgBouncer sends at most 2047") as raised:
        await Credentials(given, calls).load(within_seconds=0.1)
    await calls.close()
    assert "xxx" not in str(raised.value)
