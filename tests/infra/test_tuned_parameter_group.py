"""TunedParameterGroup: real PostgreSQL takes what it says, and the pool's own sessions outlive none of its timeouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from aws_cdk import Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_rds as rds
from aws_cdk.assertions import Template
from tests.infra.conftest import make_app

from emberpool_cdk import TunedParameterGroup
from emberpool_cdk.tuned_parameters import tuned_parameters
from emberpool_local.postgres.server import EmbeddedPostgres
from emberpool_proxy.agent.control_connection import SERVER_SETTINGS
from emberpool_proxy.settings import ProxySettings

POSTGRES = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_17_9)
AURORA = rds.DatabaseClusterEngine.aurora_postgres(version=rds.AuroraPostgresEngineVersion.VER_16_6)
TUNED = {each.name: each for each in tuned_parameters(max_connections=200)}


def _seconds(name: str) -> float:
    return int(TUNED[name].value) / 1000


def test_postgresql_takes_each_parameter(postgres: EmbeddedPostgres) -> None:
    """PostgreSQL knows each parameter, times are in its milliseconds, and each value is in its range."""
    own = {name: each for name, each in TUNED.items() if not name.startswith("rds.")}
    with psycopg.connect(postgres.conninfo()) as connection:
        rows = connection.execute(
            "select name, unit, vartype, min_val, max_val from pg_settings where name = any(%s)", [list(own)]
        ).fetchall()
    assert {name for name, *_ in rows} == set(own)
    for name, unit, kind, lowest, highest in rows:
        if kind == "integer":
            assert int(lowest) <= int(own[name].value) <= int(highest), name
        if name.endswith("_timeout"):
            assert unit == "ms", name


def test_values_that_are_set_are_shown_in_force(postgres: EmbeddedPostgres) -> None:
    """A session that is given the timeouts and keepalives shows what their reasons promise."""
    session = ("idle_session_timeout", "idle_in_transaction_session_timeout", "tcp_keepalives_idle", "log_lock_waits")
    with psycopg.connect(postgres.conninfo(), autocommit=True) as connection:
        assert connection.info.host.startswith("127.")  # keepalives are TCP's
        for name in session:
            connection.execute("select set_config(%s, %s, false)", [name, TUNED[name].value])
        shown = [connection.execute(f"show {name}").fetchone() for name in session]
    assert shown == [("10min",), ("1min",), ("30",), ("on",)]


def test_pools_own_sessions_end_before_the_database_ends_them() -> None:
    """PgBouncer closes idle server connections and idle transactions first; control connections are never idle ones."""
    assert 2 * ProxySettings.server_idle_seconds <= _seconds("idle_session_timeout")
    assert 2 * ProxySettings.idle_transaction_seconds <= _seconds("idle_in_transaction_session_timeout")
    # The locks must not end with the keepalives of the group either: the control connection has its own.
    own = {name for name in TUNED if name.startswith("tcp_")}
    assert own <= set(SERVER_SETTINGS)


def test_each_parameter_has_its_reason_in_one_line() -> None:
    """No parameter is there without a reason, and each fits into a table."""
    for name, each in TUNED.items():
        assert 5 < len(each.reason) < 200, name
        assert "\n" not in each.reason


def test_instance_and_cluster_get_the_same_parameters(tmp_path: Path) -> None:
    """One construct is the parameter group of an instance and of a cluster."""
    stack = Stack(make_app(tmp_path), "Users")
    vpc = ec2.Vpc(stack, "Vpc")
    of_instance = TunedParameterGroup(stack, "OfInstance", engine=POSTGRES, max_connections=200)
    of_cluster = TunedParameterGroup(stack, "OfCluster", engine=AURORA, max_connections=200)
    rds.DatabaseInstance(stack, "Instance", engine=POSTGRES, vpc=vpc, parameter_group=of_instance)
    rds.DatabaseCluster(
        stack,
        "Cluster",
        engine=AURORA,
        vpc=vpc,
        parameter_group=of_cluster,
        writer=rds.ClusterInstance.serverless_v2("Writer"),
    )
    template = Template.from_stack(stack)
    expected = {name: each.value for name, each in TUNED.items()}
    template.has_resource_properties("AWS::RDS::DBParameterGroup", {"Family": "postgres17", "Parameters": expected})
    template.has_resource_properties(
        "AWS::RDS::DBClusterParameterGroup", {"Family": "aurora-postgresql16", "Parameters": expected}
    )


def test_older_version_gets_what_it_knows_and_further_parameters_win(tmp_path: Path) -> None:
    """PostgreSQL 13 has no idle_session_timeout; a value of one's own stands in for ours."""
    stack = Stack(make_app(tmp_path), "Users")
    engine = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.of("13.20", "13"))
    group = TunedParameterGroup(stack, "Group", engine=engine, parameters={"log_lock_waits": "0", "work_mem": "8192"})
    group.bind_to_instance()
    (found,) = Template.from_stack(stack).find_resources("AWS::RDS::DBParameterGroup").values()
    parameters = found["Properties"]["Parameters"]
    assert "idle_session_timeout" not in parameters
    assert "max_connections" not in parameters
    assert (parameters["log_lock_waits"], parameters["work_mem"]) == ("0", "8192")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_connections": 5}, "max_connections must be between 6 and 262143, got 5"),
        ({"idle_session_seconds": 60}, "idle_session_seconds must be 0 .* or between 120, twice the pool's own"),
        ({"idle_in_transaction_seconds": 10}, "idle_in_transaction_seconds must be 0 .* or between 30, .*, got 10"),
        ({"idle_session_seconds": 100_000}, "86400, got 100000"),
    ],
)
def test_values_that_would_end_the_pools_sessions_are_refused(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    """A value out of range fails the synth with the range and its reason."""
    with pytest.raises(ValueError, match=message):
        TunedParameterGroup(Stack(make_app(tmp_path), "Users"), "Group", engine=POSTGRES, **given)


def test_timeouts_can_be_turned_off() -> None:
    """0 is PostgreSQL's never."""
    values = {each.name: each.value for each in tuned_parameters(idle_session_seconds=0, idle_in_transaction_seconds=0)}
    assert (values["idle_session_timeout"], values["idle_in_transaction_session_timeout"]) == ("0", "0")


def test_engine_that_is_not_postgresql_is_refused(tmp_path: Path) -> None:
    """The parameters are PostgreSQL's."""
    engine = rds.DatabaseInstanceEngine.mysql(version=rds.MysqlEngineVersion.VER_8_0)
    with pytest.raises(ValueError, match="engine must be one of postgres, aurora-postgresql, got mysql"):
        TunedParameterGroup(Stack(make_app(tmp_path), "Users"), "Group", engine=engine)
