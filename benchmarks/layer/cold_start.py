"""Cold start to the first row: the real runtime client in a new process each time, through the proxy by TLS and SCRAM.

The usual function reads its secret by boto3 and connects in its handler; the layer's differ in where the password
comes from and where the decorator stands. Database and Secrets Manager (moto) are reached through relays, which delay
both directions; the secrets extension is on the function's side of them.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.command import Progress
from benchmarks.layer.cores import Cores, confirm, on
from benchmarks.layer.relay import round_trip_ms, running_relay
from benchmarks.layer.secrets_extension import running_extension

from emberpool import settings as names
from emberpool_local.aws.moto_process import CREDENTIALS, REGION, MotoServer, running_moto
from emberpool_local.lambda_runtime.fleet import Fleet
from emberpool_local.stack import LocalStack

ROOT = Path(__file__).parents[2]  # the functions import as the benchmark does
EXTENSION_PORT = "PARAMETERS_SECRETS_EXTENSION_HTTP_PORT"
OWN_IMPORTS = ("powertools", "boto3")
USUAL = "boto3 get_secret_value + psycopg.connect in the handler"


@dataclass(frozen=True)
class Way:
    """A function and what is in its environment beside what all have."""

    name: str
    handler: str
    password_from: str  # "secret", "extension", "refusing extension" or "environment"


WAYS = (
    Way(USUAL, "usual", "secret"),
    Way("layer, secret from Secrets Manager", "layer", "secret"),
    Way("layer, the same, decorator below imports", "layer_below", "secret"),
    Way("layer, secret by the extension", "layer", "extension"),
    Way("layer, extension refuses during init", "layer", "refusing extension"),
    Way("layer, password in the environment", "layer", "environment"),
)


@dataclass(frozen=True)
class Setting:
    """One of the tables: a delay of the path and what else the function imports."""

    round_trip_ms: float
    own_imports: str


@dataclass(frozen=True)
class Start:
    """One cold start in milliseconds to its first row: from the process's start, from the handler module's import."""

    from_process_ms: float
    from_import_ms: float


@dataclass
class ColdStart:
    """All starts by setting and way, and the round trips of the relays as they were measured."""

    starts: dict[Setting, dict[str, list[Start]]] = field(default_factory=dict)
    measured_round_trips_ms: dict[float, list[float]] = field(default_factory=dict)


def measure(
    cores: Cores,
    folder: Path,
    repetitions: int,
    delays_ms: Sequence[float],
    own_imports: Sequence[str],
    progress: Progress,
) -> ColdStart:
    """Measure every way at every delay (of a round trip); `folder` gets the servers' files."""
    found = ColdStart()
    with ExitStack() as stack:
        with on(cores.servers):
            local = stack.enter_context(LocalStack())
            moto = stack.enter_context(running_moto(folder))
        secret_arn = _create_secret(moto, local)
        for delay_ms in delays_ms:
            with on(cores.servers):
                found.measured_round_trips_ms[delay_ms] = round_trip_ms(delay_ms / 2)
            with _path(cores, local, moto, delay_ms, secret_arn) as environments, on(cores.measured):
                for imports in own_imports:
                    progress(f"cold start over {delay_ms:g} ms, own imports: {imports}; {repetitions} of each way")
                    found.starts[Setting(delay_ms, imports)] = _starts(environments, imports, repetitions)
    return found


def _create_secret(moto: MotoServer, local: LocalStack) -> str:
    # As RDS writes them.
    secret = {"username": local.proxy.client_user, "password": local.proxy.client_password}
    client = moto.client("secretsmanager")
    return str(client.create_secret(Name="client", SecretString=json.dumps(secret))["ARN"])


@contextmanager
def _path(
    cores: Cores, local: LocalStack, moto: MotoServer, delay_ms: float, secret_arn: str
) -> Iterator[Mapping[str, dict[str, str]]]:
    """Put relays with this delay in between; the environments of functions by where their password comes from."""
    with ExitStack() as stack:
        with on(cores.servers):
            database = stack.enter_context(running_relay(local.proxy.port, delay_ms / 2))
            secrets = stack.enter_context(running_relay(moto.port, delay_ms / 2))
            aws = {
                **CREDENTIALS,
                "AWS_SESSION_TOKEN": "testing",
                "AWS_REGION": REGION,
                "AWS_DEFAULT_REGION": REGION,
                "AWS_ENDPOINT_URL_SECRETS_MANAGER": f"http://127.0.0.1:{secrets.port}",
            }
            answering, refusing = stack.enter_context(running_extension(aws))
        confirm(cores.servers)
        yield _environments(local, database.port, secret_arn, aws, answering, refusing)


def _environments(
    local: LocalStack, port: int, secret_arn: str, aws: Mapping[str, str], answering: int, refusing: int
) -> dict[str, dict[str, str]]:
    by_password = {**local.handler_environment(), names.PORT: str(port), **aws}
    by_secret = {name: value for name, value in by_password.items() if name != names.PASSWORD}
    by_secret[names.SECRET_ARN] = secret_arn
    by_secret |= {  # for the usual function, which knows no names of ours
        "SECRET_ARN": secret_arn,
        "DATABASE_HOST": by_secret[names.HOST],
        "DATABASE_PORT": by_secret[names.PORT],
        "DATABASE_NAME": by_secret[names.DATABASE],
        "DATABASE_CA": by_secret[names.SSLROOTCERT],
    }
    return {
        "secret": by_secret,
        "extension": by_secret | {EXTENSION_PORT: str(answering)},
        "refusing extension": by_secret | {EXTENSION_PORT: str(refusing)},
        "environment": by_password,
    }


def _starts(
    environments: Mapping[str, Mapping[str, str]], own_imports: str, repetitions: int
) -> dict[str, list[Start]]:
    found: dict[str, list[Start]] = {way.name: [] for way in WAYS}
    for repetition in range(repetitions + 1):
        for way in random.sample(WAYS, len(WAYS)):
            environment = {**environments[way.password_from], "OWN_IMPORTS": own_imports}
            start = asyncio.run(_start(way, environment))
            if repetition:  # the first one warms the servers and the files up
                found[way.name].append(start)
    return found


async def _start(way: Way, environment: Mapping[str, str]) -> Start:
    fleet = Fleet(
        f"benchmarks.layer.functions.{way.handler}:handler",
        ROOT,
        environment,
        start_method="process",
        freeze_when_idle=False,
    )
    async with fleet:
        # time.monotonic() is the same clock in all processes of a machine.
        began = time.monotonic()
        outcome = await fleet.invoke(b"{}")
    if outcome.status != "succeeded":
        raise RuntimeError(f"{way.name}: {outcome.error_type}: {outcome.error_message}\n{outcome.log}")
    answer = json.loads(outcome.payload)
    return Start((answer["row"] - began) * 1000, (answer["row"] - answer["began"]) * 1000)
