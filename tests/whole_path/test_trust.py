"""A deployment as infra makes it, secrets and CA included: functions verify the proxy with nothing but their secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.proxy_service.simulated_aws import SimulatedAws, login, simulated_aws

from emberpool import settings as layer
from emberpool_local.errors import ProxyUnavailable
from emberpool_local.lambda_runtime import Fleet, Outcome
from emberpool_local.pgbouncer.program import PgbouncerProgram
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_local.proxy import DatabaseAccess, LocalProxy

FOLDER = Path(__file__).parent
ROLE, PASSWORD, DATABASE = "trust_role", "trust-password", "trust"
ENDPOINT = "127.0.0.2"  # in the certificate only because the settings name it
PLACEHOLDER = {"placeholder": "aB3dE5"}


@dataclass
class Deployment:
    """The secrets, and what the tasks and the functions are told of them."""

    aws: SimulatedAws
    postgres: EmbeddedPostgres
    program: PgbouncerProgram
    database_arn: str
    client_arn: str
    ca_arn: str
    function_tmp: Path

    def task(self, port: int | None = None, **changed: str) -> LocalProxy:
        """A task's proxy, not yet started."""
        access = DatabaseAccess(self.postgres.host, self.postgres.port, DATABASE, "", "")
        given = {
            "database_secret_arn": self.database_arn,
            "client_user": "",
            "client_password": "",
            "client_secret_arn": self.client_arn,
            "client_ca_secret_arn": self.ca_arn,
            "client_tls_host_names": ENDPOINT,
            "credentials_check_seconds": "1",
            **changed,
        }
        proxy = LocalProxy(access, client_port=port, settings=given, pgbouncer=self.program)
        proxy.host = ENDPOINT
        return proxy

    def fleet(self, task: LocalProxy) -> Fleet:
        """Execution environments of a function that is attached to the pool."""
        environment = {
            layer.HOST: ENDPOINT,
            layer.PORT: str(task.port),
            layer.DATABASE: DATABASE,
            layer.USER: "emberpool",
            layer.SECRET_ARN: self.client_arn,
            layer.SSLMODE: "verify-full",
            layer.METRICS: "off",
            "AWS_ENDPOINT_URL": self.aws.url,
            "TMPDIR": str(self.function_tmp),
            **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), "testing"),
        }
        return Fleet(handler="function:handler", code_folder=FOLDER, environment=environment, function_name="trust")

    def client_secret(self) -> dict[str, Any]:
        text = self.aws.client("secretsmanager").get_secret_value(SecretId=self.client_arn, VersionStage="AWSCURRENT")
        value: dict[str, Any] = json.loads(text["SecretString"])
        return value


@pytest.fixture(scope="module")
def deployment(
    postgres: EmbeddedPostgres, pgbouncer_program: PgbouncerProgram, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    postgres.create_role_and_database(ROLE, PASSWORD, DATABASE)
    with psycopg.connect(postgres.conninfo(user=ROLE, password=PASSWORD, database=DATABASE)) as connection:
        connection.execute("create table ledger (id text primary key)")
    with simulated_aws() as aws:
        yield Deployment(
            aws,
            postgres,
            pgbouncer_program,
            aws.secret("database", login(ROLE, PASSWORD)),
            aws.secret("client", {"username": "emberpool", "password": "c" * 48}),
            aws.secret("ca", PLACEHOLDER),
            tmp_path_factory.mktemp("function"),
        )


def answer(outcome: Outcome) -> Any:
    assert outcome.status == "succeeded", f"{outcome.error_type}: {outcome.error_message}\n{outcome.log}"
    return json.loads(outcome.payload)


async def test_functions_verify_every_task_by_their_secret_alone(deployment: Deployment) -> None:
    """Two tasks start on empty secrets and share one CA; a function verifies either, with no file and no setting."""
    with deployment.task() as first, deployment.task() as second:
        for task in (first, second):
            async with deployment.fleet(task) as fleet:
                seen = answer(await fleet.invoke(b"{}"))
            assert (seen["user"], seen["tls"]) == (ROLE, True)
    assert len(list(deployment.function_tmp.iterdir())) == 1  # libpq takes the CA from a file
    secret = deployment.client_secret()
    assert secret["username"] == "emberpool"
    assert secret["ca_certificate"].count("BEGIN CERTIFICATE") == 1


async def test_replaced_ca_costs_no_invocation(deployment: Deployment) -> None:
    """An environment that knows the old CA only finds the new one in its secret when it has to connect again."""
    with deployment.task() as old:
        fleet = deployment.fleet(old)
        async with fleet:
            answer(await fleet.invoke(b"{}"))
            before = deployment.client_secret()["ca_certificate"]
            # What an operator does who wants another CA at once.
            deployment.aws.put(deployment.ca_arn, {"placeholder": "another"})
            old.close()
            with deployment.task(port=old.port):
                answer(await fleet.invoke(b"{}"))
    both = deployment.client_secret()["ca_certificate"]
    assert both.startswith(before)
    assert both.count("BEGIN CERTIFICATE") == 2


def test_secret_of_somebody_else_ends_the_start_with_one_line(deployment: Deployment) -> None:
    """A task whose CA secret holds anything else does not start, and says which secret it is."""
    theirs = deployment.aws.secret("theirs", login("shop", "hush-hush"))
    with pytest.raises(ProxyUnavailable) as caught:
        deployment.task(client_ca_secret_arn=theirs).open()
    message = str(caught.value)
    assert f"the secret {theirs} must be empty or hold the CA" in message
    assert "hush" not in message
    assert "Traceback" not in message
