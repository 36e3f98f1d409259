"""PoolDatabase: where the limit of a database comes from, for instances, clusters and what others made."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_rds as rds
from aws_cdk import aws_secretsmanager as secretsmanager
from aws_cdk.assertions import Annotations, Match
from tests.infra.conftest import make_app

from emberpool_cdk import BudgetExceeded, PoolDatabase, PoolProxy, TunedParameterGroup
from emberpool_cdk.connection_estimate import by_capacity, by_instance_class, by_memory, memory_gib

POSTGRES = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_17_9)
AURORA = rds.DatabaseClusterEngine.aurora_postgres(version=rds.AuroraPostgresEngineVersion.VER_16_6)
GRAVITON = ec2.InstanceType("r6g.large")


class Users:
    """A user's own stack with a VPC."""

    def __init__(self, folder: Path) -> None:
        self.app = make_app(folder)
        self.stack = Stack(self.app, "Users")
        self.vpc = ec2.Vpc(self.stack, "Vpc", nat_gateways=1)

    def instance(self, **more: Any) -> rds.DatabaseInstance:
        """Return an RDS instance: a t4g.micro unless told otherwise."""
        given = {"engine": POSTGRES, "vpc": self.vpc, "instance_type": ec2.InstanceType("t4g.micro")}
        return rds.DatabaseInstance(self.stack, "Db", **(given | more))

    def cluster(self, *readers: rds.IClusterInstance, **more: Any) -> rds.DatabaseCluster:
        """Return an Aurora cluster: one r6g.large as its writer unless told otherwise."""
        given = {
            "engine": AURORA,
            "vpc": self.vpc,
            "writer": rds.ClusterInstance.provisioned("Writer", instance_type=GRAVITON),
            "readers": list(readers),
        }
        return rds.DatabaseCluster(self.stack, "Cluster", **(given | more))

    def tuned(self, max_connections: int | None, engine: rds.IEngine = POSTGRES) -> TunedParameterGroup:
        """Return a parameter group."""
        return TunedParameterGroup(self.stack, "Parameters", engine=engine, max_connections=max_connections)

    @cached_property
    def secret(self) -> secretsmanager.ISecret:
        """A secret that is there already."""
        return secretsmanager.Secret.from_secret_name_v2(self.stack, "Secret", "theirs")

    def warnings(self, pattern: str) -> int:
        """Return how many warnings of the synth match."""
        return len(Annotations.from_stack(self.stack).find_warning("*", Match.string_like_regexp(pattern)))


@pytest.fixture
def users(tmp_path: Path) -> Users:
    return Users(tmp_path)


def _environment(users: Users) -> dict[str, Any]:
    template = users.app.synth().get_stack_by_name("Users").template
    (task,) = [each for each in template["Resources"].values() if each["Type"] == "AWS::ECS::TaskDefinition"]
    listed = task["Properties"]["ContainerDefinitions"][0]["Environment"]
    return {each["Name"].removeprefix("EMBERPOOL_PROXY_"): each["Value"] for each in listed}


def test_limit_is_read_from_the_parameter_group(users: Users) -> None:
    """The budget is proven against the number that the database is given, which stands in one place only."""
    database = PoolDatabase.from_instance(users.instance(parameter_group=users.tuned(150)))
    pool = PoolProxy(users.stack, "Pool", vpc=users.vpc, database=database)
    assert (database.max_connections, database.estimated_from) == (150, "")
    assert pool.budget.max_connections == 150
    assert users.warnings("estimate") == 0


def test_parameter_group_of_another_stack_is_found(users: Users) -> None:
    """The group may be made elsewhere in the app."""
    other = Stack(users.app, "Other")
    group = rds.ParameterGroup(other, "Group", engine=POSTGRES, parameters={"max_connections": "321"})
    assert PoolDatabase.from_instance(users.instance(parameter_group=group)).max_connections == 321


def test_number_given_wins(users: Users) -> None:
    """Whoever knows better says so."""
    instance = users.instance(parameter_group=users.tuned(150))
    assert PoolDatabase.from_instance(instance, max_connections=90).max_connections == 90


@pytest.mark.parametrize("formula", [None, "LEAST({DBInstanceClassMemory/9531392},5000)"])
def test_limit_that_nobody_set_is_estimated_with_a_warning(users: Users, formula: str | None) -> None:
    """Without a number RDS's formula decides: the pool is proven against an estimate, and the synth says so."""
    parameters = {"max_connections": formula} if formula else {}
    group = rds.ParameterGroup(users.stack, "Group", engine=POSTGRES, parameters=parameters)
    database = PoolDatabase.from_instance(users.instance(parameter_group=group))
    assert (database.max_connections, database.estimated_from) == (by_memory(1), "db.t4g.micro")
    PoolProxy(users.stack, "Pool", vpc=users.vpc, database=database)
    assert users.warnings(f"is an estimate, {by_memory(1)} for db.t4g.micro") == 1


# AWS's table for Aurora Serverless v2 with 1, 4, 8, 16 and 32 capacity units of 2 GiB.
@pytest.mark.parametrize(("units", "told"), [(1, 189), (4, 823), (8, 1669), (16, 3360), (32, 5000), (256, 5000)])
def test_estimate_is_below_what_aws_tells_and_near_it(units: int, told: int) -> None:
    """The estimate never promises more than RDS gives, and gives away a thirtieth at most."""
    assert told * 29 / 30 <= by_capacity(1, units) <= told


@pytest.mark.parametrize("least", [0, 0.5])
def test_small_minimum_has_a_limit_of_its_own(least: float) -> None:
    """AWS allows no more than 2,000 connections when the cluster may shrink to half a unit."""
    assert by_capacity(least, 128) == 2000
    assert by_capacity(least, 1) <= 189


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("db.t4g.micro", 1),
        ("db.t3.medium", 4),
        ("db.m7g.large", 8),
        ("db.m6gd.16xlarge", 256),
        ("db.r6g.large", 16),
        ("db.r8g.2xlarge", 64),
        ("db.x2g.xlarge", 64),
        ("db.serverless", None),
        ("db.r4.large", None),
        ("db.r5.large.tpc1.mem2x", None),
        ("db.q1.large", None),
    ],
)
def test_memory_of_a_class(name: str, gib: float | None) -> None:
    """The memory of a family's sizes doubles from one to the next; what is not known is not guessed."""
    assert memory_gib(name) == gib
    assert (by_instance_class(name) is None) == (gib is None)


def test_lowest_limit_of_a_cluster_counts(users: Users) -> None:
    """A failover makes the smaller reader the writer: the budget holds there, too."""
    reader = rds.ClusterInstance.provisioned("Reader", instance_type=ec2.InstanceType("t4g.medium"))
    database = PoolDatabase.from_cluster(users.cluster(reader, default_database_name="shop"))
    assert (database.max_connections, database.estimated_from) == (by_memory(4), "db.t4g.medium")
    assert (database.name, database.must_be_writable, database.can_pause) == ("shop", True, False)


@pytest.mark.parametrize(("own", "lowest"), [(100, 100), (500, 400)])
def test_instances_own_group_wins_over_the_clusters(users: Users, own: int, lowest: int) -> None:
    """The writer has the cluster's number, the reader its own one: the lower of both counts."""
    group = rds.ParameterGroup(users.stack, "Own", engine=AURORA, parameters={"max_connections": str(own)})
    reader = rds.ClusterInstance.provisioned("Reader", instance_type=GRAVITON, parameter_group=group)
    cluster = users.cluster(reader, parameter_group=users.tuned(400, AURORA))
    assert PoolDatabase.from_cluster(cluster).max_connections == lowest


def test_serverless_cluster_that_pauses(users: Users) -> None:
    """Auto-pause is seen: the limit is the small minimum's, and a wait too short for a resume is warned about."""
    cluster = users.cluster(
        writer=rds.ClusterInstance.serverless_v2("Writer"),
        serverless_v2_min_capacity=0,
        serverless_v2_max_capacity=64,
    )
    database = PoolDatabase.from_cluster(cluster)
    assert (database.max_connections, database.can_pause) == (2000, True)
    PoolProxy(users.stack, "Pool", vpc=users.vpc, database=database)
    assert users.warnings("takes up to 30 s to resume, but query_wait_seconds is 10") == 1


def test_pool_that_waits_for_the_resume_is_not_warned_about(users: Users) -> None:
    """The tasks are told the wait."""
    cluster = users.cluster(writer=rds.ClusterInstance.serverless_v2("Writer"), serverless_v2_min_capacity=0)
    database = PoolDatabase.from_cluster(cluster)
    PoolProxy(users.stack, "Pool", vpc=users.vpc, database=database, query_wait_seconds=35)
    assert users.warnings("resume") == 0
    assert _environment(users)["QUERY_WAIT_SECONDS"] == "35"


def test_pool_of_the_reader_asks_for_no_writes(users: Users) -> None:
    """The reader's pool connects to the reader endpoint and is content with a server in recovery."""
    reader = rds.ClusterInstance.provisioned("Reader", instance_type=GRAVITON)
    database = PoolDatabase.from_cluster(users.cluster(reader), reader=True)
    PoolProxy(users.stack, "Pool", vpc=users.vpc, database=database)
    environment = _environment(users)
    assert environment["DATABASE_MUST_BE_WRITABLE"] == "no"
    assert "ReadEndpoint.Address" in str(environment["DATABASE_HOST"])


def test_several_readers_behind_one_name_are_refused(users: Users) -> None:
    """Two readers would each grant the whole budget: the message says what to do instead."""
    readers = [rds.ClusterInstance.provisioned(name, instance_type=GRAVITON) for name in ("A", "B")]
    with pytest.raises(ValueError, match=r"Users/Cluster has 2 readers .* give each reader a pool"):
        PoolDatabase.from_cluster(users.cluster(*readers), reader=True)


def test_pools_of_writer_and_reader_share_one_limit(users: Users) -> None:
    """After a failover both may be one instance: two whole budgets fail the synth."""
    reader = rds.ClusterInstance.provisioned("Reader", instance_type=GRAVITON)
    cluster = users.cluster(reader, parameter_group=users.tuned(200, AURORA))
    PoolProxy(users.stack, "Writers", vpc=users.vpc, database=PoolDatabase.from_cluster(cluster))
    with pytest.raises(BudgetExceeded, match="exceed it together"):
        PoolProxy(users.stack, "Readers", vpc=users.vpc, database=PoolDatabase.from_cluster(cluster, reader=True))


def test_replica_need_not_be_writable(users: Users) -> None:
    """A read replica of an instance is described like an instance, with the secret of its source."""
    source = users.instance()
    replica = rds.DatabaseInstanceReadReplica(
        users.stack, "Replica", source_database_instance=source, instance_type=GRAVITON, vpc=users.vpc
    )
    database = PoolDatabase.from_instance(replica, secret=source.secret)
    assert (database.must_be_writable, database.estimated_from) == (False, "db.r6g.large")


def test_imported_instance_needs_its_limit_and_secret(users: Users) -> None:
    """Nothing is known of a database that this app does not make: each missing thing is named, with where to look."""
    group = ec2.SecurityGroup.from_security_group_id(users.stack, "Group", "sg-1")
    imported = rds.DatabaseInstance.from_database_instance_attributes(
        users.stack,
        "Imported",
        instance_endpoint_address="db.example.com",
        instance_identifier="db",
        port=5433,
        security_groups=[group],
    )
    with pytest.raises(ValueError, match=r"max_connections of Users/Imported is not known here: .* `show max_conn"):
        PoolDatabase.from_instance(imported, secret=users.secret)
    with pytest.raises(ValueError, match="Users/Imported has no secret"):
        PoolDatabase.from_instance(imported, max_connections=100)
    database = PoolDatabase.from_instance(imported, max_connections=100, secret=users.secret, database_name="shop")
    PoolProxy(users.stack, "Pool", vpc=users.vpc, database=database)
    environment = _environment(users)
    assert (environment["DATABASE_HOST"], environment["DATABASE_PORT"]) == ("db.example.com", "5433")
    assert database.security_group is not None


def test_imported_cluster_is_described_by_its_endpoints(users: Users) -> None:
    """A cluster that others made needs its limit and a secret, too."""
    imported = rds.DatabaseCluster.from_database_cluster_attributes(
        users.stack,
        "Imported",
        cluster_identifier="theirs",
        cluster_endpoint_address="writer.example.com",
        reader_endpoint_address="reader.example.com",
        port=5432,
    )
    with pytest.raises(ValueError, match="max_connections of Users/Imported is not known"):
        PoolDatabase.from_cluster(imported)
    database = PoolDatabase.from_cluster(imported, reader=True, max_connections=100, secret=users.secret)
    assert (database.host, database.can_pause) == ("reader.example.com", False)
