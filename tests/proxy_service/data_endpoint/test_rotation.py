"""A rotated client secret: requests signed with the password before, or with the next one, are still answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emberpool_proxy.pgbouncer.config import DATA_KEYS_FILE

from ..conftest import Proxy, wait_until
from ..simulated_aws import SimulatedAws, login, simulated_aws
from .served import client, rows, start_endpoint

PASSED_TO_CHILDREN = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
FIRST, SECOND, THIRD = "first-password-of-the-user", "second-password-of-the-user", "third-password-of-the-user"


@pytest.fixture(scope="module")
def aws() -> Iterator[SimulatedAws]:
    """Secrets Manager."""
    with simulated_aws() as aws:
        yield aws


def is_let_in(data: Any) -> bool:
    """Whether a call of this client is answered."""
    try:
        return rows(data, "select 1") == [[1]]
    except data.exceptions.AccessDeniedException:
        return False


def finish_rotation(aws: SimulatedAws, arn: str, version: str) -> None:
    """Make a pending version the current one, as the last step of a rotation does."""
    manager = aws.client("secretsmanager")
    stages = manager.describe_secret(SecretId=arn)["VersionIdsToStages"]
    (current,) = [each for each, labels in stages.items() if "AWSCURRENT" in labels]
    manager.update_secret_version_stage(
        SecretId=arn, VersionStage="AWSCURRENT", MoveToVersionId=version, RemoveFromVersionId=current
    )


def current_password(proxy: Proxy) -> str:
    """Return the one that the endpoint logs in with at PgBouncer."""
    (key,) = json.loads((Path(proxy.setting("run_folder")) / "0" / DATA_KEYS_FILE).read_text())
    return str(key["passwords"][0])


def test_both_passwords_of_a_rotation_are_let_in_and_no_other(
    make_proxy: Callable[..., Proxy], aws: SimulatedAws
) -> None:
    """With AWSPENDING both are good; once it is AWSCURRENT the one before is, too, and the one before that is not."""
    arn = aws.secret("rotated", login("rotating", FIRST))
    proxy = start_endpoint(
        make_proxy,
        pass_on=PASSED_TO_CHILDREN,
        client_user="",
        client_password="",
        client_secret_arn=arn,
        # Else the proxy writes its CA into the secret, and moto leaves AWSCURRENT on a version with a label of its own.
        client_tls_mode="disable",
        data_tls_mode="disable",
        credentials_check_seconds=1,
    )
    first, second, third = (client(proxy, password, user="rotating") for password in (FIRST, SECOND, THIRD))
    assert is_let_in(first)
    assert not is_let_in(second)
    second_version = aws.put(arn, login("rotating", SECOND), stage="AWSPENDING")
    wait_until("the next password is not let in", lambda: is_let_in(second))
    assert is_let_in(first)
    finish_rotation(aws, arn, second_version)
    wait_until("the pool does not log in by it", lambda: current_password(proxy) == SECOND)
    assert is_let_in(first)
    assert is_let_in(second)
    assert not is_let_in(third)
    finish_rotation(aws, arn, aws.put(arn, login("rotating", THIRD), stage="AWSPENDING"))
    wait_until("the newest password is not let in", lambda: is_let_in(third))
    wait_until("the oldest password is let in", lambda: not is_let_in(first))
    assert is_let_in(second)
    for password in (FIRST, SECOND, THIRD):
        assert password not in proxy.printed()
