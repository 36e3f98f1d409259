"""The proxy's container in its task definition: image, environment, health check and what it may write to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aws_cdk import (
    Duration,
    Token,
    Tokenization,
)
from aws_cdk import (
    aws_ecr_assets as ecr_assets,
)
from aws_cdk import (
    aws_ecs as ecs,
)
from aws_cdk import (
    aws_logs as logs,
)
from constructs import Construct

from emberpool_cdk.connection_budget import ConnectionBudget
from emberpool_cdk.explained_findings import explain
from emberpool_cdk.pool_database import PoolDatabase
from emberpool_cdk.proxy_image import CA_FILE, CONTAINER_USER, ProxyContext
from emberpool_proxy.settings import CLIENT_PORT, DATA_PORT, HEALTH_PORT, ProxySettings, variable

ARM_64, X86_64 = "arm64", "x86_64"
CONTAINER_NAME = "proxy"
RUN_VOLUME = "run"
HEALTH_PATH = "/healthz"  # is it able to serve: else ECS replaces the task
READY_PATH = "/readyz"  # should it get new connections: else the load balancer looks elsewhere
STOP_TIMEOUT_SECONDS = 120  # Fargate's longest; the proxy's own stop_seconds is shorter


def environment(
    database: PoolDatabase,
    *,
    client_secret_arn: str,
    ca_secret_arn: str,
    host_names: Sequence[str],
    fleet_name: str,
    budget: ConnectionBudget,
    budget_name: str,
    budget_database: str,
    processes: int,
    query_wait_seconds: float,
    metrics_service: str,
    has_metrics: bool,
    notice_seconds: float,
    listen_host: str,
    has_data_endpoint: bool,
) -> dict[str, str]:
    """Return the proxy's settings by the names that it reads. None is a secret: the tasks read those by their ARNs.

    So a rotated password needs no new task. `host_names` are those that clients connect to; `metrics_service` is what
    CloudWatch tells the pool's metrics by, `notice_seconds` how long clients may still come to a task that drains.
    """
    port = database.port
    values = {
        "database_host": database.host,
        "database_name": database.name,
        "database_port": Tokenization.stringify_number(port) if Token.is_unresolved(port) else str(port),
        "database_secret_arn": database.secret.secret_arn,
        "database_must_be_writable": "yes" if database.must_be_writable else "no",
        "server_tls_mode": "verify-full",
        "server_tls_ca_file": CA_FILE,
        "client_secret_arn": client_secret_arn,
        "client_tls_mode": "require",
        "client_ca_secret_arn": ca_secret_arn,
        "client_tls_host_names": ",".join(host_names),
        "listen_host": listen_host,
        "client_port": str(CLIENT_PORT),
        "health_port": str(HEALTH_PORT),
        "data_port": str(DATA_PORT if has_data_endpoint else 0),
        "fleet_name": fleet_name,
        "max_server_connections": str(budget.max_server_connections),
        "most_tasks_alive": str(budget.most_tasks_alive),
        "floor_connections": str(budget.floor_connections),
        "reserved_connections": str(budget.reserved_connections),
        "budget_name": budget_name,
        "budget_database": budget_database,
        "pgbouncer_processes": str(processes),
        "query_wait_seconds": f"{query_wait_seconds:g}",
        "balancer_notice_seconds": f"{notice_seconds:g}",
        "metrics_emf": "on" if has_metrics else "off",
        "metrics_service": metrics_service,
    }
    return {variable(name): value for name, value in values.items()}


def add_proxy_container(
    scope: Construct,
    task: ecs.FargateTaskDefinition,
    *,
    environment: Mapping[str, str],
    architecture: str,
    log_group: logs.ILogGroup,
    has_data_endpoint: bool,
) -> ecs.ContainerDefinition:
    """Add the proxy to a task definition of the same architecture. Raises SourceMissing."""
    ports = (CLIENT_PORT, HEALTH_PORT, *((DATA_PORT,) if has_data_endpoint else ()))
    container = task.add_container(
        CONTAINER_NAME,
        image=_image(scope, architecture),
        environment=environment,
        user=CONTAINER_USER,
        readonly_root_filesystem=True,
        stop_timeout=Duration.seconds(STOP_TIMEOUT_SECONDS),
        health_check=_health_check(),
        logging=ecs.LogDrivers.aws_logs(stream_prefix=CONTAINER_NAME, log_group=log_group),
        port_mappings=[ecs.PortMapping(container_port=port) for port in ports],
    )
    # Writable for the container's user because the Dockerfile declares this path as a VOLUME of that user: ECS
    # copies owner and mode from there. Fargate encrypts this storage and drops it with the task.
    task.add_volume(name=RUN_VOLUME)
    container.add_mount_points(
        ecs.MountPoint(source_volume=RUN_VOLUME, container_path=ProxySettings.run_folder, read_only=False)
    )
    _explain(task)
    return container


def _explain(task: ecs.FargateTaskDefinition) -> None:
    explain(
        task,
        "AwsSolutions-ECS2",
        "The environment has settings only. Secrets are named in it by their ARNs, and the proxy reads them itself, so "
        "that a rotated one needs no new task.",
    )
    explain(
        task.obtain_execution_role().node.find_child("DefaultPolicy"),
        "AwsSolutions-IAM5[Resource::*]",
        "ecr:GetAuthorizationToken, which the image is pulled with, knows no resource; everything else names its own.",
    )


def _image(scope: Construct, architecture: str) -> ecs.ContainerImage:
    platform = ecr_assets.Platform.LINUX_ARM64 if architecture == ARM_64 else ecr_assets.Platform.LINUX_AMD64
    with ProxyContext() as context:
        asset = ecr_assets.DockerImageAsset(
            scope, "Image", directory=str(context), platform=platform, display_name="emberpool-proxy"
        )
    return ecs.ContainerImage.from_docker_image_asset(asset)


def _health_check() -> ecs.HealthCheck:
    # The image has no curl; Python is there anyway. A non-200 answer raises, so the exit code is 1.
    program = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{HEALTH_PORT}{HEALTH_PATH}', timeout=4)"
    return ecs.HealthCheck(
        command=["CMD", "python", "-c", program],
        interval=Duration.seconds(10),
        timeout=Duration.seconds(5),
        retries=3,
        start_period=Duration.seconds(30),
    )
