"""The database behind the pool: where it is, whose credentials open it, and how many connections it allows."""

from __future__ import annotations

from dataclasses import dataclass

from aws_cdk import Token
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_rds as rds
from aws_cdk import aws_secretsmanager as secretsmanager

POSTGRESQL_PORT = 5432


@dataclass(frozen=True)
class PoolDatabase:
    """Any PostgreSQL that the pool's subnets reach: on RDS or run elsewhere.

    `secret` holds JSON with `username` and `password` of the role that the pool uses. `max_connections` is the
    database's own setting. With `security_group` the pool opens the port in it; without, that is left to you.

    Raises ValueError for an empty host or name and for a port or limit out of range.
    """

    host: str
    name: str
    secret: secretsmanager.ISecret
    max_connections: int
    port: int = POSTGRESQL_PORT
    security_group: ec2.ISecurityGroup | None = None

    def __post_init__(self) -> None:
        for field, text in (("host", self.host), ("name", self.name)):
            if not text:
                raise ValueError(f"{field} of the database must be set")
        if not Token.is_unresolved(self.port) and not 1 <= self.port <= 65535:  # noqa: PLR2004 (TCP's range)
            raise ValueError(f"port of the database must be between 1 and 65535, got {self.port}")
        if self.max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, got {self.max_connections}")

    @classmethod
    def from_instance(
        cls,
        instance: rds.DatabaseInstance,
        *,
        max_connections: int,
        database_name: str | None = None,
        secret: secretsmanager.ISecret | None = None,
    ) -> PoolDatabase:
        """Describe an RDS instance of the same app; `secret` defaults to the instance's own.

        RDS gives LEAST(memory in bytes / 9531392, 5000) connections unless the parameter group says otherwise.
        Raises ValueError when the instance has no secret and none is given.
        """
        secret = secret or instance.secret
        if secret is None:
            raise ValueError(
                f"{instance.node.path} has no secret: make it with rds.Credentials.from_generated_secret, or pass "
                "secret= with the role that the pool uses"
            )
        resource = instance.node.default_child
        made = resource.db_name if isinstance(resource, rds.CfnDBInstance) else None
        groups = instance.connections.security_groups
        return cls(
            host=instance.instance_endpoint.hostname,
            port=_port(instance),
            name=database_name or made or "postgres",
            secret=secret,
            max_connections=max_connections,
            security_group=groups[0] if groups else None,
        )


def _port(instance: rds.DatabaseInstance) -> int:
    # A number that CloudFormation fills in crosses jsii as a float.
    port: int = instance.instance_endpoint.port  # type: ignore[assignment]
    return port
