"""The database behind the pool: where it is, whose credentials open it, and how many connections it allows."""

from __future__ import annotations

from dataclasses import dataclass

from aws_cdk import Token
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_rds as rds
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import IConstruct

from emberpool_cdk.rds_limit import FoundLimit, capacity, limit_of_cluster, limit_of_instance

POSTGRESQL_PORT = 5432


@dataclass(frozen=True)
class PoolDatabase:
    """Any PostgreSQL that the pool's subnets reach: on RDS or run elsewhere.

    `secret` holds JSON with `username` and `password` of the role that the pool uses. `max_connections` is the
    database's own setting; what it was estimated from stands in `estimated_from`, and the pool warns about it. With
    `security_group` the pool opens the port in it; without, that is left to you. `must_be_writable` is False for a
    replica, `can_pause` True for a database that stops when nobody uses it. Databases of the same `server` (default:
    host and port) have their connections in common.

    Raises ValueError for an empty host or name and for a port or limit out of range.
    """

    host: str
    name: str
    secret: secretsmanager.ISecret
    max_connections: int
    port: int = POSTGRESQL_PORT
    security_group: ec2.ISecurityGroup | None = None
    must_be_writable: bool = True
    can_pause: bool = False
    estimated_from: str = ""
    server: str = ""

    def __post_init__(self) -> None:
        for field, text in (("host", self.host), ("name", self.name)):
            if not text:
                raise ValueError(f"{field} of the database must be set")
        if not Token.is_unresolved(self.port) and not 1 <= self.port <= 65535:  # noqa: PLR2004 (TCP's range)
            raise ValueError(f"port of the database must be between 1 and 65535, got {self.port}")
        if self.max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, got {self.max_connections}")

    @property
    def server_name(self) -> str:
        """What says whose connections these are: pools of the same one must share them."""
        return self.server or f"{self.host}:{self.port}"

    @classmethod
    def from_instance(
        cls,
        instance: rds.IDatabaseInstance,
        *,
        max_connections: int | None = None,
        database_name: str | None = None,
        secret: secretsmanager.ISecret | None = None,
    ) -> PoolDatabase:
        """Describe an RDS instance; a read replica is one that need not be writable.

        `max_connections` defaults to what the instance's parameter group says when this app makes it (see
        TunedParameterGroup), else to an estimate by its class: RDS gives LEAST(memory in bytes / 9531392, 5000), of
        the memory that its own processes leave. `secret` defaults to the instance's own. Raises ValueError when one
        of both is missing, as it is of an instance that was imported.
        """
        resource = instance.node.default_child
        made = resource if isinstance(resource, rds.CfnDBInstance) else None
        limit = _limit(instance, max_connections, limit_of_instance(made) if made else None)
        return cls(
            host=instance.instance_endpoint.hostname,
            port=_port(instance.instance_endpoint),
            name=database_name or (made and made.db_name) or "postgres",
            secret=_secret(instance, secret),
            max_connections=limit.max_connections,
            security_group=_security_group(instance),
            must_be_writable=not isinstance(instance, rds.DatabaseInstanceReadReplica),
            estimated_from=limit.estimated_from,
        )

    @classmethod
    def from_cluster(
        cls,
        cluster: rds.IDatabaseCluster,
        *,
        reader: bool = False,
        max_connections: int | None = None,
        database_name: str | None = None,
        secret: secretsmanager.ISecret | None = None,
    ) -> PoolDatabase:
        """Describe an Aurora cluster's writer, or with `reader` its one reader.

        `max_connections` and `secret` default as those of from_instance, the first to the lowest of all instances'. A
        failover makes one instance of writer and reader: pools of both count against one limit.

        Raises ValueError also for several readers: behind their one name each has its own locks, which are what the
        tasks share the budget by.
        """
        resource = cluster.node.default_child
        made = resource if isinstance(resource, rds.CfnDBCluster) else None
        instances = [each for each in cluster.node.find_all() if isinstance(each, rds.CfnDBInstance)]
        if reader:
            _check_one_reader(cluster, instances)
        found = limit_of_cluster(made, instances) if made else None
        limit = _limit(cluster, max_connections, found)
        endpoint = cluster.cluster_read_endpoint if reader else cluster.cluster_endpoint
        units = capacity(made) if made else None
        return cls(
            host=endpoint.hostname,
            port=_port(endpoint),
            name=database_name or (made and made.database_name) or "postgres",
            secret=_secret(cluster, secret),
            max_connections=limit.max_connections,
            security_group=_security_group(cluster),
            must_be_writable=not reader,
            can_pause=units is not None and units[0] == 0,
            estimated_from=limit.estimated_from,
            server=cluster.node.path,
        )


def _limit(database: IConstruct, given: int | None, found: FoundLimit | None) -> FoundLimit:
    if given is not None:
        return FoundLimit(given)
    if found is None:
        raise ValueError(
            f"max_connections of {database.node.path} is not known here: pass max_connections=, as `show "
            "max_connections` tells it; for a database that this app makes, give it a TunedParameterGroup with it"
        )
    return found


def _secret(database: IConstruct, given: secretsmanager.ISecret | None) -> secretsmanager.ISecret:
    secret: secretsmanager.ISecret | None = given or getattr(database, "secret", None)
    if secret is None:
        raise ValueError(
            f"{database.node.path} has no secret: make it with rds.Credentials.from_generated_secret, or pass "
            "secret= with the role that the pool uses"
        )
    return secret


def _check_one_reader(cluster: rds.IDatabaseCluster, instances: list[rds.CfnDBInstance]) -> None:
    readers = len(instances) - 1
    if readers > 1:
        raise ValueError(
            f"{cluster.node.path} has {readers} readers behind one name, and the tasks share their budget by locks "
            "that each has of its own: give each reader a pool, PoolDatabase(host=…) with its instance's endpoint"
        )


def _security_group(database: ec2.IConnectable) -> ec2.ISecurityGroup | None:
    groups = database.connections.security_groups
    return groups[0] if groups else None


def _port(endpoint: rds.Endpoint) -> int:
    # A number that CloudFormation fills in crosses jsii as a float.
    port: int = endpoint.port  # type: ignore[assignment]
    return port
