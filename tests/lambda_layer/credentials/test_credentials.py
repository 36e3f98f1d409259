"""Where the login comes from, and what is tried after a refused one. Secrets Manager is moto's, logins are real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import boto3
import psycopg
import pytest

from emberpool import SecretUnavailable
from emberpool.credentials import AWSCURRENT, AWSPENDING, Credentials, Login

from ..conftest import PASSWORD, ROLE, Context
from .conftest import Clock, create, put, secret, settings

# --- the login itself


def test_login_comes_from_the_secret(secrets_manager: Any, handler_with: Callable) -> None:
    """User and password of the JSON secret log in."""
    assert handler_with(create(secrets_manager, secret(PASSWORD)))({}, Context()) == ROLE


def test_rotated_secret_is_read_again_after_a_refused_login(
    secrets_manager: Any, handler_with: Callable, clock: Clock
) -> None:
    """An environment that cached the old password reads the new one when its login is refused."""
    arn = create(secrets_manager, secret("old"))
    handler = handler_with(arn)
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        handler({}, Context())
    put(secrets_manager, arn, PASSWORD)
    clock.now += 1
    assert handler({}, Context()) == ROLE


def test_secret_is_read_once(secrets_manager: Any, reads: list[str]) -> None:
    """Every attempt after the first begins with the login that is kept."""
    credentials = Credentials(settings(secret_arn=create(secrets_manager, secret("one"))))
    assert [credentials.login() for _ in range(3)] == [Login(ROLE, "one")] * 3
    assert reads == [AWSCURRENT]


def test_secret_without_a_user_takes_the_settings_user(secrets_manager: Any) -> None:
    """A secret may hold only the password."""
    credentials = Credentials(settings(secret_arn=create(secrets_manager, '{"password": "one"}')))
    assert credentials.login() == Login("function", "one")


def test_secret_of_another_region_is_read_there(secrets_manager: Any) -> None:
    """The region stands in the ARN: a replica's secret need not be in the function's region."""
    arn = create(boto3.client("secretsmanager", region_name="us-east-2"), secret("far"))
    assert Credentials(settings(secret_arn=arn)).login().password == "far"


# --- after a refusal


def test_refused_login_is_followed_by_the_rotated_one(secrets_manager: Any, clock: Clock, reads: list[str]) -> None:
    """What AWSCURRENT holds by now is tried next, and kept."""
    arn = create(secrets_manager, secret("old"))
    credentials = Credentials(settings(secret_arn=arn))
    old = credentials.login()
    put(secrets_manager, arn, "new")
    clock.now += 3600
    assert credentials.after_refusal(old) == Login(ROLE, "new")
    assert credentials.login() == Login(ROLE, "new")
    assert reads == [AWSCURRENT, AWSCURRENT]


def test_pending_password_is_tried_when_the_current_one_is_refused(
    secrets_manager: Any, clock: Clock, reads: list[str]
) -> None:
    """In the middle of a rotation the database may have the new password before AWSCURRENT has it."""
    arn = create(secrets_manager, secret("old"))
    put(secrets_manager, arn, "next", AWSPENDING)
    credentials = Credentials(settings(secret_arn=arn))
    old = credentials.login()
    clock.now += 3600
    assert credentials.after_refusal(old) == Login(ROLE, "next")
    assert reads == [AWSCURRENT, AWSCURRENT, AWSPENDING]


def test_attempt_ends_when_every_password_was_refused(secrets_manager: Any, clock: Clock, reads: list[str]) -> None:
    """Cached, current and pending are tried once each; then nothing is left, and the next attempt begins as usual."""
    arn = create(secrets_manager, secret("cached"))
    put(secrets_manager, arn, "pending", AWSPENDING)
    credentials = Credentials(settings(secret_arn=arn))
    tried: list[str] = []
    login: Login | None = credentials.login()
    put(secrets_manager, arn, "current")
    clock.now += 3600
    while login is not None:
        tried.append(login.password)
        login = credentials.after_refusal(login)
    assert tried == ["cached", "current", "pending"]
    assert reads == [AWSCURRENT, AWSCURRENT, AWSPENDING]
    assert credentials.login().password == "current"


def test_slow_refusals_end_too(secrets_manager: Any, clock: Clock, reads: list[str]) -> None:
    """When each refused login takes longer than the time between two reads, each stage is read once for each."""
    arn = create(secrets_manager, secret("cached"))
    put(secrets_manager, arn, "pending", AWSPENDING)
    credentials = Credentials(settings(secret_arn=arn))
    login: Login | None = credentials.login()
    refusals = 0
    while login is not None:
        clock.now += 5
        refusals += 1
        login = credentials.after_refusal(login)
    assert refusals == 2
    assert reads == [AWSCURRENT] + [AWSCURRENT, AWSPENDING] * 2


def test_storm_of_refused_logins_is_no_storm_on_secrets_manager(
    secrets_manager: Any, clock: Clock, reads: list[str]
) -> None:
    """A hundred invocations with a wrong password within a second read each stage once, and again after it."""
    credentials = Credentials(settings(secret_arn=create(secrets_manager, secret("wrong"))))
    for _ in range(100):
        clock.now += 0.009
        assert credentials.after_refusal(credentials.login()) is None
    assert reads == [AWSCURRENT, AWSPENDING]
    clock.now += 1
    assert credentials.after_refusal(credentials.login()) is None
    assert reads == [AWSCURRENT, AWSPENDING] * 2


def test_secret_that_cannot_be_read_after_a_refusal_says_so(secrets_manager: Any, clock: Clock) -> None:
    """The reason why no other password could be tried is what the caller gets."""
    arn = create(secrets_manager, secret("old"))
    credentials = Credentials(settings(secret_arn=arn))
    old = credentials.login()
    secrets_manager.delete_secret(SecretId=arn, ForceDeleteWithoutRecovery=True)
    clock.now += 3600
    with pytest.raises(SecretUnavailable, match="ResourceNotFoundException"):
        credentials.after_refusal(old)


def test_local_password_has_no_successor() -> None:
    """A password from the environment cannot change: nothing else is tried."""
    credentials = Credentials(settings(password="hush"))
    assert credentials.login() == Login("function", "hush")
    assert credentials.after_refusal(credentials.login()) is None
