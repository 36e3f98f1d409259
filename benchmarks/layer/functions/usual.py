"""A function as most are written: boto3's get_secret_value and psycopg.connect in the handler."""

# ruff: noqa: E402 (the clock first)
import time

began = time.monotonic()

import json
import os
from typing import Any

import boto3
import psycopg
from benchmarks.layer.functions import own_imports  # noqa: F401


def handler(_event: Any, _context: Any) -> dict[str, float]:
    answer = boto3.client("secretsmanager").get_secret_value(SecretId=os.environ["SECRET_ARN"])
    secret = json.loads(answer["SecretString"])
    with psycopg.connect(
        host=os.environ["DATABASE_HOST"],
        port=os.environ["DATABASE_PORT"],
        dbname=os.environ["DATABASE_NAME"],
        user=secret["username"],
        password=secret["password"],
        sslmode="verify-full",
        sslrootcert=os.environ["DATABASE_CA"],
    ) as connection:
        connection.execute("select 1").fetchone()
        return {"began": began, "row": time.monotonic()}
