"""What infra writes is what the runtimes read, with the same meaning; and the image is what both expect."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emberpool import metrics as layer_metrics
from emberpool import settings as layer_settings
from emberpool.credentials import Login, _login_in
from emberpool.settings import LayerSettings
from emberpool_cdk import function_settings, task_settings
from emberpool_cdk.connection_budget import ConnectionBudget
from emberpool_cdk.proxy_container import STOP_TIMEOUT_SECONDS
from emberpool_cdk.proxy_image import CA_FILE, CONTAINER_USER
from emberpool_proxy import health
from emberpool_proxy.credentials import client_specs
from emberpool_proxy.credentials.snapshot import ClientUser, Snapshot
from emberpool_proxy.pgbouncer.config import CHANGED_DEFAULTS, DATABASE_CA_FILE, EngineIdentity, bundle_path, render
from emberpool_proxy.settings import DATA_PORT, PREFIX, ProxySettings, variable
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


def test_layer_finds_the_data_endpoint_where_the_proxy_serves_it(templates_with_all: Templates) -> None:
    """The function's URL has the port that the tasks listen on, over TLS."""
    port = _proxy_environment(templates_with_all)[variable("data_port")]
    function = _only(templates_with_all["example"], "AWS::Lambda::Function")
    url = json.dumps(function["Environment"]["Variables"][layer_settings.DATA_ENDPOINT])
    assert "https://" in url
    assert f":{port}" in url


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
    exposed = re.search(r"(?m)^EXPOSE (.*)$", dockerfile)[1].split()  # type: ignore[index]
    assert exposed == [str(port) for port in (*ports, DATA_PORT)]
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


def _fields(table: type) -> set[str]:
    return {field.name for field in dataclasses.fields(table)}


def _written_by(environment: dict[str, str], table: type, variable: Callable[[str], str]) -> set[str]:
    return {name for name in _fields(table) if variable(name) in environment}


def test_every_setting_of_the_proxy_is_written_or_chosen_or_has_its_reason(templates: Templates) -> None:
    """None is out of reach without a word: the construct writes it, `settings` takes it, or it says why not."""
    written = _written_by(_proxy_environment(templates), ProxySettings, variable)
    chosen, not_chosen = set(task_settings.CHOOSABLE), set(task_settings.NOT_CHOSEN)
    assert written | chosen | not_chosen == _fields(ProxySettings)
    assert not chosen & not_chosen
    # What is written and yet to be chosen is a default of the construct's own.
    assert written & chosen == {"server_tls_mode"}
    assert all(task_settings.NOT_CHOSEN.values())


def test_every_setting_of_the_layer_is_written_or_chosen_or_has_its_reason(templates: Templates) -> None:
    """The same of the functions' side."""
    written = _written_by(_function_environment(templates), LayerSettings, layer_settings.variable)
    chosen, not_chosen = set(function_settings.CHOOSABLE), set(function_settings.NOT_CHOSEN)
    assert written | chosen | not_chosen == _fields(LayerSettings)
    assert not chosen & not_chosen
    assert written <= not_chosen
    assert all(function_settings.NOT_CHOSEN.values())


@pytest.mark.parametrize("parts", ["templates", "templates_with_all"])
def test_every_port_of_the_proxy_is_reached_and_no_other(parts: str, request: pytest.FixtureRequest) -> None:
    """The rules into the tasks are for the ports that the proxy listens on, each for somebody."""
    templates: Templates = request.getfixturevalue(parts)
    names = [name for name in _fields(ProxySettings) if name.endswith("_port") and name != "database_port"]
    environment = _proxy_environment(templates)
    listening = {int(environment[variable(name)]) for name in names} - {0}  # 0: it has no such part
    rules = [
        each["Properties"]
        for each in templates["pool"]["Resources"].values()
        if each["Type"] == "AWS::EC2::SecurityGroupIngress"
        and "TaskSecurityGroup" in json.dumps(each["Properties"]["GroupId"])
    ]
    assert {rule["FromPort"] for rule in rules} == listening
    assert all(rule["FromPort"] == rule["ToPort"] for rule in rules)


def test_every_path_of_the_proxy_is_asked_or_is_for_people(templates: Templates) -> None:
    """Of what the health port serves, ECS and the load balancer ask two; the others are commands' and Prometheus'."""
    served = {value for name, value in vars(health).items() if name.endswith("_PATH")}
    asked = {path for path in served if f"{path}'" in _container(templates)["HealthCheck"]["Command"][-1]}
    asked.add(_only(templates["pool"], "AWS::ElasticLoadBalancingV2::TargetGroup")["HealthCheckPath"])
    for_people = {
        health.METRICS_PATH: "Prometheus; on AWS the metrics go through the log",
        health.STATUS_PATH: "python -m emberpool_proxy status",
        health.FLEET_PATH: "python -m emberpool_proxy fleet",
    }
    assert asked | set(for_people) == served
    assert not asked & set(for_people)


def test_every_metric_of_the_layer_is_on_the_dashboard_or_has_its_reason(templates: Templates) -> None:
    """The dashboard shows what the layer writes, but for what is read in the log when it matters."""
    dashboard = json.dumps(_only(templates["pool"], "AWS::CloudWatch::Dashboard")["DashboardBody"])
    in_the_log = {
        "ConnectionOpenTime": "of a function's cold starts: its own log group says which",
        "PoolWaitTime": "the pool's LongestWait is on the dashboard, of all clients",
    }
    for metric in layer_metrics.METRICS:
        is_shown = re.search(rf"MetricName=\W*{metric.name}\W", dashboard) is not None
        assert is_shown != (metric.name in in_the_log), metric.name


def test_client_that_the_construct_adds_is_read_by_the_proxy() -> None:
    """The keys of an element are those that the proxy knows."""
    assert {"secret_arn", "entry", "database_role_secret_arn", "max_connections"} <= set(client_specs.KEYS)
