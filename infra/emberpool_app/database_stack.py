"""The database of `database=new`: a small RDS PostgreSQL to try emberpool with."""

from __future__ import annotations

from typing import Any

from aws_cdk import RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_rds as rds
from constructs import Construct

from emberpool_cdk import PoolDatabase, TunedParameterGroup

ENGINE_VERSION = rds.PostgresEngineVersion.VER_17_9


class DatabaseStack(Stack):
    """One encrypted RDS instance that accepts TLS only, with a `max_connections` that is known here.

    The pool logs in as the instance's master user, to have a first query without a manual step. In production
    give it a role of its own that can log in and use the application's schema only, with its own secret.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        vpc: ec2.IVpc,
        subnets: ec2.SubnetSelection,
        max_connections: int,
        database_name: str,
        **stack: Any,
    ) -> None:
        super().__init__(scope, construct_id, **stack)
        engine = rds.DatabaseInstanceEngine.postgres(version=ENGINE_VERSION)
        instance = rds.DatabaseInstance(
            self,
            "Instance",
            engine=engine,
            instance_type=ec2.InstanceType.of(ec2.InstanceClass.BURSTABLE4_GRAVITON, ec2.InstanceSize.MICRO),
            vpc=vpc,
            vpc_subnets=subnets,
            # A secret of ours, rotated when you say so. The tasks would follow RDS's managed one, too.
            credentials=rds.Credentials.from_generated_secret("emberpool_owner"),
            database_name=database_name,
            allocated_storage=20,
            storage_encrypted=True,
            parameter_group=TunedParameterGroup(self, "Parameters", engine=engine, max_connections=max_connections),
            publicly_accessible=False,
            # `cdk destroy` leaves nothing that costs money: this database is for trying things out.
            removal_policy=RemovalPolicy.DESTROY,
            deletion_protection=False,
            delete_automated_backups=True,
        )
        self.database = PoolDatabase.from_instance(instance)
