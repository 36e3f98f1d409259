"""Secrets Manager and Cloud Map, simulated by moto in a thread of the tests; the proxy's child calls it over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

REGION = "eu-west-1"


@dataclass
class SimulatedAws:
    """A running moto server and a way to prepare what is in it."""

    url: str

    def client(self, service: str) -> Any:
        return boto3.session.Session(
            aws_access_key_id="testing", aws_secret_access_key="testing", region_name=REGION
        ).client(service, endpoint_url=self.url)

    def secret(self, name: str, value: object) -> str:
        """Create a secret and return its ARN; anything but text is written as JSON."""
        return str(self.client("secretsmanager").create_secret(Name=name, SecretString=_text(value))["ARN"])

    def put(self, arn: str, value: object, stage: str = "AWSCURRENT") -> str:
        """Write a version at a stage; its earlier holder keeps AWSPREVIOUS if the stage is AWSCURRENT."""
        answer = self.client("secretsmanager").put_secret_value(
            SecretId=arn, SecretString=_text(value), VersionStages=[stage]
        )
        return str(answer["VersionId"])


def login(user: str, password: str) -> dict[str, object]:
    """A secret's value as RDS writes it."""
    return {"username": user, "password": password, "engine": "postgres", "host": "db", "port": 5432}


@contextmanager
def simulated_aws() -> Iterator[SimulatedAws]:
    """Run moto on a free loopback port and point this process, and its children, at it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {
                "AWS_ENDPOINT_URL": f"http://{host}:{port}",
                "AWS_REGION": REGION,
                "AWS_DEFAULT_REGION": REGION,
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing-hush",
                "AWS_EC2_METADATA_DISABLED": "true",
            }.items():
                patch.setenv(name, value)
            yield SimulatedAws(f"http://{host}:{port}")
    finally:
        server.stop()


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
