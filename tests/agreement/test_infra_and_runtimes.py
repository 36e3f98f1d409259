"""What infra writes is what the runtimes read, with the same meaning; and the image is what both expect."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from emberpool import settings as layer_settings
from emberpool.credentials import Login, _login_in
from emberpool.settings import LayerSettings
from emberpool_cdk.connection_budget import ConnectionBudget
from emberpool_cdk.proxy_container import STOP_TIMEOUT_SECONDS
from emberpool_cdk.proxy_image import CA_FILE, CONTAINER_USER
from emberpool_proxy import health
from emberpool_proxy.credentials.snapshot import ClientUser, Snapshot
from emberpool_proxy.pgbouncer.config import CHANGED_DEFAULTS, DATABASE_CA_FILE, EngineIdentity, bundle_path, render
from emberpool_proxy.settings import PREFIX, ProxySettings
from emberpool_proxy.tls.published_ca import MEMBER

Templates = dict[str, dict[str, Any]]
# What CloudFormation fills in at deployment time.
RESOLVED = {
    "EMBERPOOL_PROXY_DATABASE_HOST": "db.internal",
    "EMBERPOOL_PROXY_DATABASE_PORT": "5433",
    "EMBERPOOL_PROXY_DATABASE_SECRET_ARN": "arn:aws:secretsmanager:us-east-1:123456789012:secret:database",
    "EMBERPOOL_PROXY_CLIENT_SECRET_ARN": "arn:aws:secretsmanager:us-east-1:123456789012:secret:client",
    "EMBERPOOL_PROXY_CLIENT_CA_SECRET_ARN": "arn:aws:secretsmanager:us-east-1:123456789012:secret:ca",
    "EMBERPOOL_PROXY_CLIENT_TLS_HOST_NAMES": "pool.internal",
    "EMBERPOOL_HOST": "pool.internal",
    "EMBERPOOL_SECRET_ARN": "arn:aws:secretsmanager:us-east-1:123456789012:secret:client",
}
# What the proxy reads from the secrets that its settings name.
SNAPSHOT = Snapshot(
    {"emberpool_owner": "hush"},
    (ClientUser("emberpool", "hush", "postgres", "emberpool_owner"),),
    {"postgres": "emberpool_owner"},
)


def _only(template: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = [each["Properties"] for each in template["Resources"].values() if each["Type"] == kind]
    properties: dict[str, Any] = found
    return properties


def _container(templates: Templates) -> dict[str, Any]:
    (container,) = _only(templates["pool"], "AWS::ECS::TaskDefinition")["ContainerDefinitions"]
    result: dict[str, Any] = container
    return result


def _as_deployed(name: str, value: Any) -> str:
    return value if isinstance(value, str) else RESOLVED[name]


def _proxy_environment(templates: Templates) -> dict[str, str]:
    container = _container(templates)
    assert "Secrets" not in container
    return {each["Name"]: _as_deployed(each["Name"], each["Value"]) for each in container["Environment"]}


def _function_environment(templates: Templates) -> dict[str, str]:
    variables = _only(templates["example"], "AWS::Lambda::Function")["Environment"]["Variables"]
    return {name: _as_deployed(name, value) for name, value in variables.items()}


def test_proxy_accepts_its_task_definition(templates: Templates) -> None:
    """The synthesized environment is complete and valid for the proxy, and every value arrives as it was meant."""
    environment = _proxy_environment(templates)
    assert all(name.startswith(PREFIX) for name in environment)
    settings = ProxySettings.from_environment(environment)
    assert settings.database_host == "db.internal"
    assert settings.database_port == 5433
    assert settings.database_secret_arn == RESOLVED["EMBERPOOL_PROXY_DATABASE_SECRET_ARN"]
    assert settings.client_secret_arn == RESOLVED["EMBERPOOL_PROXY_CLIENT_SECRET_ARN"]
    assert settings.client_ca_secret_arn == RESOLVED["EMBERPOOL_PROXY_CLIENT_CA_SECRET_ARN"]
    assert settings.fleet_name.startswith("tasks.emberpool-")
    assert settings.pgbouncer_processes == 1  # of half a vCPU
    assert settings.server_tls_mode == "verify-full"
    assert settings.server_tls_ca_file == CA_FILE
    assert settings.client_tls_mode == "require"


def test_proxy_divides_the_budget_as_it_was_proven(templates: Templates) -> None:
    """From its environment the proxy computes the floor and the slots of the proof."""
    settings = ProxySettings.from_environment(_proxy_environment(templates))
    proven = ConnectionBudget(100, 2, 4)
    assert settings.shares_budget
    assert (settings.max_server_connections, settings.most_tasks_alive) == (proven.budget, proven.most_tasks_alive)
    assert (settings.floor, settings.shared_slots) == (proven.floor, proven.shared_slots)
    assert settings.reserved_connections == proven.reserved_connections
    assert settings.budget_name != ProxySettings.budget_name
    assert settings.budget_database == settings.database_name


def test_pgbouncer_verifies_the_database_with_the_images_ca(templates: Templates) -> None:
    """The CA bundle that PgBouncer gets, or a part of it, is the one that the image has."""
    settings = ProxySettings.from_environment(_proxy_environment(templates))
    assert bundle_path(settings) == Path(CA_FILE)
    ini = render(settings, SNAPSHOT, EngineIdentity(0, 0, "hush")).files["pgbouncer.ini"]
    assert f"server_tls_ca_file = {settings.run_path / DATABASE_CA_FILE}\n" in ini


def test_layer_accepts_the_functions_environment(templates: Templates) -> None:
    """The synthesized environment is complete and valid for the layer, and every variable is one that it reads."""
    environment = _function_environment(templates)
    known = {value for name, value in vars(layer_settings).items() if name.isupper() and isinstance(value, str)}
    assert set(environment) <= known
    settings = LayerSettings.from_environment(environment)
    assert settings.host == "pool.internal"
    assert settings.secret_arn == RESOLVED["EMBERPOOL_SECRET_ARN"]
    assert settings.password is None


def test_function_and_proxy_mean_the_same_pool(templates: Templates) -> None:
    """Host, secret, database and port that the function uses are those that the proxy serves."""
    function = LayerSettings.from_environment(_function_environment(templates))
    proxy = ProxySettings.from_environment(_proxy_environment(templates))
    assert (function.secret_arn, function.database, function.port) == (
        proxy.client_secret_arn,
        proxy.database_name,
        proxy.client_port,
    )
    # The proxy demands TLS; the function verifies its certificate, by the CA in the secret.
    assert (function.sslmode, proxy.client_tls_mode) == ("verify-full", "require")
    assert function.sslrootcert is None
    assert proxy.client_tls_host_names == function.host


def test_function_reads_the_ca_where_the_proxy_writes_it() -> None:
    """The member that the proxy adds to the secret is the one that the layer looks for."""
    settings = LayerSettings(host="pool.internal", user="function", secret_arn="client")
    login = _login_in(json.dumps({"username": "function", "password": "hush", MEMBER: "the CA"}), settings)
    assert isinstance(login, Login)
    assert login.ca_certificate == "the CA"


def test_ports_are_the_same_everywhere(templates: Templates, dockerfile: str) -> None:
    """Container, load balancer, security groups and image name the ports that the proxy listens on."""
    proxy = ProxySettings.from_environment(_proxy_environment(templates))
    ports = [proxy.client_port, proxy.health_port]
    assert [each["ContainerPort"] for each in _container(templates)["PortMappings"]] == ports
    assert re.search(r"(?m)^EXPOSE (.*)$", dockerfile)[1].split() == [str(port) for port in ports]  # type: ignore[index]
    target = _only(templates["pool"], "AWS::ElasticLoadBalancingV2::TargetGroup")
    assert (target["Port"], target["HealthCheckPort"]) == (proxy.client_port, str(proxy.health_port))
    assert _only(templates["pool"], "AWS::ElasticLoadBalancingV2::Listener")["Port"] == proxy.client_port


def test_health_paths_are_those_that_the_proxy_serves(templates: Templates) -> None:
    """The load balancer asks for readiness, ECS for health, at the paths of the proxy's own module."""
    target = _only(templates["pool"], "AWS::ElasticLoadBalancingV2::TargetGroup")
    assert target["HealthCheckPath"] == health.READY_PATH
    assert f"{health.HEALTH_PATH}'" in _container(templates)["HealthCheck"]["Command"][-1]


def test_image_has_the_run_folder_the_user_and_the_ca_file(templates: Templates, dockerfile: str) -> None:
    """Mount, volume and the proxy's default run folder are one path; user and CA file are the image's."""
    run_folder = ProxySettings.run_folder
    (mount,) = _container(templates)["MountPoints"]
    assert mount["ContainerPath"] == run_folder
    assert f'VOLUME ["{run_folder}"]' in dockerfile
    assert re.search(rf"(?m)^USER {CONTAINER_USER}:", dockerfile)
    assert _container(templates)["User"] == CONTAINER_USER
    assert f"> {CA_FILE}" in dockerfile


def test_proxy_stops_before_ecs_kills_it(templates: Templates) -> None:
    """The proxy's whole stop fits into ECS's stop timeout."""
    proxy = ProxySettings.from_environment(_proxy_environment(templates))
    assert proxy.stop_seconds < _container(templates)["StopTimeout"] == STOP_TIMEOUT_SECONDS


def test_load_balancer_outlives_idle_clients(templates: Templates) -> None:
    """PgBouncer, which tells its client, closes an idle connection before the load balancer silently drops it."""
    listener = _only(templates["pool"], "AWS::ElasticLoadBalancingV2::Listener")
    (timeout,) = [each["Value"] for each in listener["ListenerAttributes"] if each["Key"] == "tcp.idle_timeout.seconds"]
    (idle,) = [value for name, value, _ in CHANGED_DEFAULTS if name == "client_idle_timeout"]
    assert int(idle) < int(timeout) <= 6000  # AWS's longest
