"""Secrets Manager for the lab, by moto: the logins of the pool and of its clients, and how both are rotated."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emberpool_local.aws.moto_process import MotoServer, running_moto
from emberpool_local.lab.database import LabDatabase
from emberpool_local.lab.network import LabNetwork

AWSCURRENT, AWSPENDING = "AWSCURRENT", "AWSPENDING"
# The users of the functions: they take turns, so that the old one and the new one are both valid in a rotation.
CLIENT_USERS = ("function", "function_clone")
# Longer than the faults last: what a task learns, it learns from a login that was refused.
CREDENTIALS_CHECK_SECONDS = 60.0
PASSWORD_BYTES = 24
TEST_SECONDS = 2.0  # between two tests of a pending password: twenty wrong ones in a minute are an attack


class LabAws:
    """The secrets of the lab; open_aws() makes them."""

    def __init__(self, server: MotoServer, database: LabDatabase) -> None:
        self._server = server
        self._database = database
        self._client = server.client("secretsmanager")
        self.database_secret_arn = self._create("lab-database", _login(database.role, database.password))
        # As after a first rotation: the tasks know both users, and look at once when one of them is refused.
        self.client_secret_arn = self._create("lab-clients", _login(CLIENT_USERS[1], _new_password()))
        self.put(self.client_secret_arn, _login(CLIENT_USERS[0], _new_password()))
        self.client_ca_secret_arn = self._create("lab-ca", {"placeholder": "filled by the first task"})

    def environment(self) -> dict[str, str]:
        """Return the AWS variables of a task or a function: the endpoint, the region, credentials that are none."""
        own = self._server.environment()
        return {name: value for name, value in own.items() if name.startswith("AWS_")}

    def proxy_settings(self) -> dict[str, str]:
        """Return the settings by which a task finds its secrets."""
        return {
            "database_secret_arn": self.database_secret_arn,
            "client_secret_arn": self.client_secret_arn,
            "client_ca_secret_arn": self.client_ca_secret_arn,
            "credentials_check_seconds": str(CREDENTIALS_CHECK_SECONDS),
        }

    def handler_environment(self) -> dict[str, str]:
        """Return the variables by which a function finds its login, and the CA of the proxy with it."""
        return {"EMBERPOOL_SECRET_ARN": self.client_secret_arn}

    # --- the secrets

    def current(self, arn: str) -> dict[str, Any]:
        """Return the members of a secret."""
        return self.read(arn, AWSCURRENT)

    def put(self, arn: str, members: Mapping[str, object], stage: str = AWSCURRENT) -> str:
        """Write a version whose other members are those of AWSCURRENT; return its id."""
        text = json.dumps({**self.current(arn), **members})
        # Never at AWSCURRENT at once: moto leaves that stage at a version to which it was moved before.
        answer = self._client.put_secret_value(SecretId=arn, SecretString=text, VersionStages=[AWSPENDING])
        version = str(answer["VersionId"])
        if stage == AWSCURRENT:
            self._finish(arn, version)
        return version

    def rotate_database(self, *, secret_first: bool, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Give the pool's role a new password; `meanwhile` is called once the database refuses the old one.

        `secret_first` is Secrets Manager's own order: AWSPENDING, the database, AWSCURRENT. Without it, as people do
        it, the secret knows nothing of the new password until `meanwhile` has returned.
        """
        login = _login(self._database.role, _new_password())
        version = self.put(self.database_secret_arn, login, AWSPENDING) if secret_first else ""
        self._database.set_password(login["password"])
        meanwhile()
        if version:
            self._finish(self.database_secret_arn, version)
        else:
            self.put(self.database_secret_arn, login)

    def rotate_clients(self, is_accepted: Callable[[str, str], bool], within_seconds: float = 30.0) -> str:
        """Give the functions the other user with a new password, as Secrets Manager does it; return the user.

        The version becomes AWSCURRENT once `is_accepted(user, password)`, the test of a rotation. Raises TimeoutError.
        """
        arn = self.client_secret_arn
        (other,) = set(CLIENT_USERS) - {self.current(arn)["username"]}
        login = _login(other, _new_password())
        version = self.put(arn, login, AWSPENDING)
        until = time.monotonic() + within_seconds
        while not is_accepted(other, login["password"]):
            if time.monotonic() > until:
                raise TimeoutError(f"no login with the pending password within {within_seconds:g} s")
            time.sleep(TEST_SECONDS)
        # What a task has added meanwhile, its CA, is not lost by the exchange.
        if {**self.read(arn, AWSPENDING), **login} != {**self.current(arn), **login}:
            version = self.put(arn, login, AWSPENDING)
        self._finish(arn, version)
        return other

    def _create(self, name: str, members: Mapping[str, object]) -> str:
        return str(self._client.create_secret(Name=name, SecretString=json.dumps(members))["ARN"])

    def read(self, arn: str, stage: str) -> dict[str, Any]:
        """Return the members of a secret at a stage. Raises ClientError when there is none."""
        text = self._client.get_secret_value(SecretId=arn, VersionStage=stage)["SecretString"]
        members: dict[str, Any] = json.loads(text)
        return members

    def _finish(self, arn: str, version: str) -> None:
        stages = self._client.describe_secret(SecretId=arn)["VersionIdsToStages"]
        before = next(known for known, names in stages.items() if AWSCURRENT in names)
        self._client.update_secret_version_stage(
            SecretId=arn, VersionStage=AWSCURRENT, MoveToVersionId=version, RemoveFromVersionId=before
        )
        self._client.update_secret_version_stage(SecretId=arn, VersionStage=AWSPENDING, RemoveFromVersionId=version)


@contextmanager
def open_aws(network: LabNetwork, folder: Path, database: LabDatabase) -> Iterator[LabAws]:
    """Run moto at the node "aws" with the secrets of `database` and its clients.

    Raises DeployUnavailable when moto is not installed or does not start.
    """
    with running_moto(folder, network.node("aws").address) as server:
        yield LabAws(server, database)


def _login(user: str, password: str) -> dict[str, str]:
    """Return a secret's members as RDS writes them."""
    return {"username": user, "password": password, "engine": "postgres"}


def _new_password() -> str:
    return secrets.token_urlsafe(PASSWORD_BYTES)
