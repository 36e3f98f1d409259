"""Which of the proxy's settings the construct writes itself, and which it takes from you.

The tasks' environment is read here by the proxy's own ProxySettings: what it would refuse at its start fails the synth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from aws_cdk import Token

from emberpool_cdk.chosen_settings import Chosen, chosen_variables
from emberpool_proxy.settings import CLIENT_PORT, DATA_PORT, ProxySettings, SettingsInvalid, variable

NO_SECRET = "a task definition holds no secret: the tasks read it from Secrets Manager"  # noqa: S105 (a reason)
NOT_CHOSEN: Mapping[str, str] = {
    "database_host": "PoolDatabase has it",
    "database_name": "PoolDatabase has it",
    "database_port": "PoolDatabase has it",
    "database_auth": "PoolDatabase has a secret; tokens would need a policy that this construct does not write",
    "database_user": "the secret of PoolDatabase has it",
    "database_password": NO_SECRET,
    "database_password_file": "there is no such file in the image",
    "database_secret_arn": "PoolDatabase has it",
    "database_must_be_writable": "PoolDatabase has it",
    "server_tls_ca_file": "the image has the authorities of RDS and of the public",
    "client_user": NO_SECRET,
    "client_password": NO_SECRET,
    "client_secret_arn": "the construct makes the secret",
    "clients": "add_client() writes them, with their secrets",
    "listen_host": "a property of the construct: dual_stack",
    "client_port": f"load balancer and security groups are for {CLIENT_PORT}",
    "health_port": "load balancer and security groups are for the image's",
    "data_port": f"a property of the construct: data_endpoint; security groups are for {DATA_PORT}",
    "data_tls_mode": "functions verify the data endpoint, too",
    "client_tls_mode": "functions verify the proxy",
    "client_tls_cert_file": "the tasks make their certificates, by a CA of their own",
    "client_tls_key_file": "the tasks make their certificates, by a CA of their own",
    "client_tls_secret_arn": "the tasks make their certificates, by a CA of their own",
    "client_ca_secret_arn": "the construct makes the secret",
    "client_tls_host_names": "it is the endpoint's name",
    "pgbouncer_processes": "it follows from cpu",
    "max_server_connections": "it follows from the budget, which is proven",
    "most_tasks_alive": "it follows from the budget, which is proven",
    "floor_connections": "a property of the construct, as the budget is proven with it",
    "reserved_connections": "a property of the construct, as the budget is proven with it",
    "budget_name": "a property of the construct",
    "budget_database": "a property of the construct",
    "query_wait_seconds": "a property of the construct, as warnings and alarms go by it",
    "fleet_name": "the construct makes the name",
    "fleet_members": "tasks come and go: they are found by name",
    "advertised_host": "a task finds its address",
    "cloud_map_service_id": "ECS takes a task out of Cloud Map",
    "metrics_emf": "a property of the construct: metrics",
    "metrics_namespace": "dashboard and alarms read it under this name",
    "metrics_service": "a property of the construct",
    "balancer_notice_seconds": "it follows from the endpoint",
    "stop_seconds": "it follows from Fargate's longest stop timeout",
    "run_folder": "it is the volume's path in the image",
    "pgbouncer_path": "it is the image's",
    "run_as_user": "the container does not run as root",
}
# Which fields `settings` takes: all others.
CHOOSABLE = tuple(f.name for f in fields(ProxySettings) if f.name not in NOT_CHOSEN)
# In place of what CloudFormation fills in.
PLACEHOLDER, PORT_PLACEHOLDER = "filled-in-at-deployment", "1"


def task_variables(settings: Chosen) -> dict[str, str]:
    """Return the variables of `settings`, whose keys are fields of ProxySettings.

    Raises ValueError for a name that is unknown or that is not to be chosen, with the reason.
    """
    return chosen_variables(settings, CHOOSABLE, NOT_CHOSEN, variable)


def check_environment(environment: Mapping[str, str]) -> None:
    """Raise ValueError with the proxy's own message when it would not start with these variables."""
    given = {name: _shown(name, value) for name, value in environment.items()}
    try:
        ProxySettings.from_environment(given)
    except SettingsInvalid as invalid:
        raise ValueError(f"the proxy would not start: {invalid}") from None


def _shown(name: str, value: str) -> str:
    if not Token.is_unresolved(value):
        return value
    return PORT_PLACEHOLDER if name == variable("database_port") else PLACEHOLDER
