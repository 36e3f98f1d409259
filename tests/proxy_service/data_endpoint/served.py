"""A proxy with its data endpoint, and the clients that tests call it with."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
from botocore.awsrequest import AWSRequest
from botocore.config import Config

from emberpool_local.host.ports import free_port
from emberpool_proxy.settings import variable

from ...processes import children_of, command_line
from ..conftest import CLIENT_PASSWORD, CLIENT_USER, Proxy, wait_until

ARNS = {
    "resourceArn": "arn:aws:rds:us-east-1:123456789012:cluster:any",
    "secretArn": "arn:aws:secretsmanager:us-east-1:123456789012:secret:any",
}
HOST_NAME = "localhost"  # in the certificate


def start_endpoint(make_proxy: Callable[..., Proxy], **settings: object) -> Proxy:
    """Start a proxy whose endpoint speaks TLS, and wait until it serves."""
    given = {"data_port": free_port(), "client_tls_host_names": HOST_NAME, **settings}
    proxy = make_proxy(**given).start()
    wait_until("the data endpoint does not serve", lambda: is_serving(proxy))
    return proxy


def is_serving(proxy: Proxy) -> bool:
    """Whether the endpoint has said so, and listens, which it does a moment later."""
    if not times_served(proxy):
        return False
    with socket.socket() as connection:
        return connection.connect_ex((proxy.setting("listen_host"), int(proxy.setting("data_port")))) == 0


def authority(proxy: Proxy) -> Path:
    """Return the file of the authority that the proxy made for itself."""
    return Path(proxy.setting("run_folder")) / "ca.crt"


def client(
    proxy: Proxy,
    password: str = CLIENT_PASSWORD,
    user: str = CLIENT_USER,
    host: str = HOST_NAME,
    port: int = 0,
    **config: Any,
) -> Any:
    """Return boto3's own client; it verifies the certificate."""
    is_plain = proxy.environment.get(variable("data_tls_mode")) == "disable"
    return boto3.Session(user, password, region_name="eu-west-1").client(
        "rds-data",
        endpoint_url=f"{'http' if is_plain else 'https'}://{host}:{port or proxy.setting('data_port')}",
        verify=False if is_plain else str(authority(proxy)),
        config=Config(**{"retries": {"total_max_attempts": 1}, "read_timeout": 30, **config}),
    )


def run(data: Any, sql: str, **members: Any) -> dict[str, Any]:
    """Execute one statement."""
    answer: dict[str, Any] = data.execute_statement(sql=sql, **ARNS, **members)
    return answer


def rows(data: Any, sql: str, **members: Any) -> list[list[Any]]:
    """Return the values of the records, without their types."""
    return [[next(iter(field.values())) for field in record] for record in run(data, sql, **members)["records"]]


def as_attempt(data: Any, invocation: str, attempt: int) -> None:
    """Have the client's next calls be this attempt of this call, as its own retries would."""

    def say(request: AWSRequest, **_: Any) -> None:
        request.context["retries"] |= {"invocation-id": invocation, "attempt": attempt}

    data.meta.events.unregister("request-created.rds-data", unique_id="attempt")
    data.meta.events.register_first("request-created.rds-data", say, unique_id="attempt")


def endpoint_pid(proxy: Proxy) -> int:
    """Return the endpoint's process id."""
    for pid in children_of(proxy.process.pid):
        if "data-endpoint" in command_line(pid):
            return pid
    return 0


def times_served(proxy: Proxy) -> int:
    """Return how often an endpoint of this proxy has begun to serve."""
    return sum(line["message"] == "the data endpoint serves" for line in proxy.log_lines())
